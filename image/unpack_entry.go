package image

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path"
	"strings"

	"github.com/rootless-sbx/sbx/internal/archive"
	"golang.org/x/sys/unix"
)

const (
	whPrefix = ".wh."
	whMeta   = ".wh..wh."     // AUFS's own files; only one has a meaning
	whOpaque = ".wh..wh..opq" // hides what lower layers have in this directory
)

// entry makes one entry of the layer.
func (u *unpacker) entry(h *tar.Header, body io.Reader) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader, 'V': // not files
		return nil
	}
	name, err := u.cleanName(h.Name)
	if err != nil {
		return err
	}
	parent, base := "", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		parent, base = name[:i], name[i+1:]
	}
	for c := range strings.SplitSeq(parent, "/") {
		if strings.HasPrefix(c, whMeta) {
			u.note("%s: AUFS metadata, skipped", name)
			return nil
		}
		if strings.HasPrefix(c, whPrefix) {
			return bad(name, "its path goes through a whiteout")
		}
	}
	switch {
	case name == "":
		if h.Typeflag != tar.TypeDir {
			return bad(h.Name, "the root of the layer is not a directory")
		}
		return u.rootEntry(h)
	case base == whOpaque:
		return u.opaque(parent)
	case strings.HasPrefix(base, whMeta):
		u.note("%s: AUFS metadata, skipped", name)
		return nil
	case strings.HasPrefix(base, whPrefix):
		return u.whiteout(parent, base[len(whPrefix):], name)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, tar.TypeSymlink, tar.TypeFifo, tar.TypeDir, tar.TypeLink:
	case tar.TypeChar, tar.TypeBlock:
		u.note("%s: device node %d:%d, skipped: a user namespace cannot make it", name, h.Devmajor, h.Devminor)
		return nil
	default:
		return bad(h.Name, "unknown type %q of a tar entry", h.Typeflag)
	}
	if h.Typeflag == tar.TypeLink {
		return u.hardlink(parent, base, name, h.Linkname)
	}
	dirfd, real, err := u.tree.dir(parent)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		return u.directory(dirfd, path.Join(real, base), base, h)
	}
	if err := u.clear(dirfd, base); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		return u.symlink(dirfd, base, name, h)
	case tar.TypeFifo:
		if err := unix.Mknodat(dirfd, base, unix.S_IFIFO|0o600, 0); err != nil {
			return &os.PathError{Op: "mkfifo", Path: name, Err: err}
		}
		return u.attrsAt(dirfd, base, name, h)
	}
	return u.file(dirfd, base, name, h, body)
}

// clear makes room for something that is no directory: the last entry of a
// name wins.
func (u *unpacker) clear(dirfd int, base string) error {
	st, ok, err := lstatAt(dirfd, base)
	if err != nil || !ok {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		u.tree.stale()
	}
	return u.tree.remove(dirfd, base)
}

// rootEntry is the layer's own idea of "/".
func (u *unpacker) rootEntry(h *tar.Header) error {
	return u.dirAttrs(u.tree.root, "", h)
}

func (u *unpacker) directory(dirfd int, real, base string, h *tar.Header) error {
	st, ok, err := lstatAt(dirfd, base)
	if err != nil {
		return err
	}
	if ok && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		fd, err := unix.Openat(dirfd, base, dirFlags, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: real, Err: err}
		}
		defer unix.Close(fd)
		return u.dirAttrs(fd, real, h)
	}
	if ok {
		if err := u.clear(dirfd, base); err != nil {
			return err
		}
	}
	fd, ino, err := mkdirAt(dirfd, base, real)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	u.dirs[ino] = &dirMeta{path: real}
	if ok { // a whiteout or something else that has replaced what is below
		if err := u.opaqueAt(fd, real, true); err != nil {
			return err
		}
	}
	return u.dirAttrs(fd, real, h)
}

func (u *unpacker) symlink(dirfd int, base, name string, h *tar.Header) error {
	if len(h.Linkname) > u.limits.PathLen {
		return &LimitError{What: "PathLen", Limit: int64(u.limits.PathLen), Got: int64(len(h.Linkname)), Path: name}
	}
	if h.Linkname == "" {
		return bad(name, "a symbolic link without target")
	}
	if err := unix.Symlinkat(h.Linkname, dirfd, base); err != nil {
		return &os.PathError{Op: "symlink", Path: name, Err: err}
	}
	return u.attrsAt(dirfd, base, name, h)
}

// hardlink makes a second name for a file of this layer. The target's parent is
// resolved within the root like any other; the target itself is not followed.
func (u *unpacker) hardlink(parent, base, name, linkname string) error {
	target, err := u.cleanName(linkname)
	if err != nil {
		return err
	}
	tparent, tbase := path.Split(target)
	if tbase == "" {
		return bad(name, "a hard link to the root")
	}
	tfd, _, err := u.tree.open(strings.TrimSuffix(tparent, "/"))
	if err == nil {
		defer unix.Close(tfd)
		var st unix.Stat_t
		err = unix.Fstatat(tfd, tbase, &st, unix.AT_SYMLINK_NOFOLLOW)
		switch {
		case err != nil:
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			return bad(name, "a hard link to the directory %q", linkname)
		case isWhiteout(&st):
			err = unix.ENOENT
		}
	}
	if errors.Is(err, unix.ENOENT) {
		return bad(name, "a hard link to %q, which does not exist in this layer", linkname)
	}
	if err != nil {
		return &os.PathError{Op: "link " + name + " to", Path: linkname, Err: err}
	}
	dirfd, _, err := u.tree.dir(parent)
	if err != nil {
		return err
	}
	if tbase == base && sameDir(tfd, dirfd) {
		return nil // a link to itself
	}
	if err := u.clear(dirfd, base); err != nil {
		return err
	}
	if err := unix.Linkat(tfd, tbase, dirfd, base, 0); err != nil {
		return &os.LinkError{Op: "link", Old: linkname, New: name, Err: err}
	}
	return nil
}

func sameDir(a, b int) bool {
	var x, y unix.Stat_t
	return unix.Fstat(a, &x) == nil && unix.Fstat(b, &y) == nil && x.Dev == y.Dev && x.Ino == y.Ino
}

func (u *unpacker) file(dirfd int, base, name string, h *tar.Header, body io.Reader) error {
	// What a sparse file pretends to have takes as long to read as if it had.
	if u.res.Bytes+h.Size > u.limits.Bytes {
		return &LimitError{What: "Bytes", Limit: u.limits.Bytes, Got: u.res.Bytes + h.Size, Path: name}
	}
	u.res.Bytes += h.Size
	fd, err := unix.Openat(dirfd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "create", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	if err := archive.WriteSparse(f, body, h.Size, u.buf); err != nil {
		f.Close()
		return err
	}
	if err := u.attrs(fd, dirfd, base, name, h); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
