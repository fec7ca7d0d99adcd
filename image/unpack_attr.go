package image

import (
	"archive/tar"
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/rootless-sbx/sbx/internal/archive"
	"golang.org/x/sys/unix"
)

const (
	xattrOpaque = "user.overlay.opaque"
	xattrCaps   = "security.capability"
	paxXattr    = "SCHILY.xattr."
)

// dirMeta is what a directory gets at the end: a mode without write permission
// must not stand in the way, and times change with every entry made.
type dirMeta struct {
	path    string
	mode    uint32
	implied bool
	times   []unix.Timespec // nil: leave
}

// attrs gives an open regular file its owner, xattrs, mode and times. The order
// matters: chown clears the set-id bits and capabilities, and without
// privileges xattrs can only be set while the file is writable.
func (u *unpacker) attrs(fd, dirfd int, base, name string, h *tar.Header) error {
	if err := u.chown(fd, "", name, h); err != nil {
		return err
	}
	if err := u.xattrs(fd, name, h, false); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, archive.Mode(h)); err != nil {
		return &os.PathError{Op: "chmod", Path: name, Err: err}
	}
	if err := u.xattrs(fd, name, h, true); err != nil {
		return err
	}
	return setTimes(dirfd, base, name, archive.Times(h))
}

func setTimes(dirfd int, base, name string, ts []unix.Timespec) error {
	if err := unix.UtimesNanoAt(dirfd, base, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimensat", Path: name, Err: err}
	}
	return nil
}

// attrsAt does the same for a symlink or fifo, which cannot be opened. Neither
// can have user xattrs; other ones on them are not used by anybody.
func (u *unpacker) attrsAt(dirfd int, base, name string, h *tar.Header) error {
	if err := u.chown(dirfd, base, name, h); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeFifo {
		if err := unix.Fchmodat(dirfd, base, archive.Mode(h), 0); err != nil {
			return &os.PathError{Op: "chmod", Path: name, Err: err}
		}
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, paxXattr) {
			u.note("%s: xattr %s not kept on this type of file", name, key[len(paxXattr):])
		}
	}
	return setTimes(dirfd, base, name, archive.Times(h))
}

// dirAttrs gives a directory its owner and xattrs now, mode and times at the
// end. fd is O_PATH.
func (u *unpacker) dirAttrs(fd int, real string, h *tar.Header) error {
	rfd, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: real, Err: err}
	}
	defer unix.Close(rfd)
	var st unix.Stat_t
	if err := unix.Fstat(rfd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	m := u.dirs[st.Ino]
	if m == nil {
		return bad(real, "a directory that was not made here")
	}
	if err := u.chown(rfd, "", real, h); err != nil {
		return err
	}
	if err := u.xattrs(rfd, real, h, false); err != nil {
		return err
	}
	m.mode, m.times, m.implied = archive.Mode(h), archive.Times(h), false
	return nil
}

// finish sets modes and times of directories, deepest first: each is reached
// through parents that still have theirs to come.
func (u *unpacker) finish(ctx context.Context) error {
	list := make([]uint64, 0, len(u.dirs))
	for ino := range u.dirs {
		list = append(list, ino)
	}
	slices.SortFunc(list, func(a, b uint64) int {
		x, y := u.dirs[a], u.dirs[b]
		if d := depth(y.path) - depth(x.path); d != 0 {
			return d
		}
		return strings.Compare(x.path, y.path)
	})
	for _, ino := range list {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := u.finishDir(ino, u.dirs[ino]); err != nil {
			return err
		}
	}
	slices.Sort(u.res.Implied)
	return nil
}

func depth(p string) int {
	if p == "" {
		return -1
	}
	return strings.Count(p, "/")
}

func (u *unpacker) finishDir(ino uint64, m *dirMeta) error {
	dirfd, _, err := u.tree.dir(path.Dir("/" + m.path)[1:])
	if err != nil {
		return err
	}
	base := path.Base(m.path)
	if m.path == "" {
		base = "."
	}
	fd, err := unix.Openat(dirfd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: m.path, Err: err}
	}
	defer unix.Close(fd)
	if m.implied {
		if len(u.res.Implied) < maxNotes {
			u.res.Implied = append(u.res.Implied, m.path)
		}
		if err := u.inherit(fd, m); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(fd, m.mode); err != nil {
		return &os.PathError{Op: "chmod", Path: m.path, Err: err}
	}
	if m.times != nil {
		return setTimes(dirfd, base, m.path, m.times)
	}
	return nil
}

// chown the file of dirfd and base, or fd itself if base is empty.
func (u *unpacker) chown(fd int, base, name string, h *tar.Header) error {
	const maxID = 1<<32 - 2 // the last one means "unchanged"
	if h.Uid < 0 || h.Gid < 0 || h.Uid > maxID || h.Gid > maxID {
		return bad(name, "impossible owner %d:%d", h.Uid, h.Gid)
	}
	if u.job.Single {
		return nil // everything belongs to the one id there is
	}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if base == "" {
		flags = unix.AT_EMPTY_PATH
	}
	err := unix.Fchownat(fd, base, h.Uid, h.Gid, flags)
	switch err {
	case nil:
		return nil
	case unix.EINVAL, unix.EOVERFLOW:
		return &Error{Kind: ErrIDs, Op: "unpack", Subject: fmt.Sprintf("%q", name), Err: err,
			Msg: fmt.Sprintf("it belongs to %d:%d, which the id map does not have", h.Uid, h.Gid),
			Fix: "add to the ranges in /etc/subuid and /etc/subgid, or use the single-id map"}
	}
	return &os.PathError{Op: fmt.Sprintf("chown %d:%d", h.Uid, h.Gid), Path: name, Err: err}
}

// xattrs sets those of the header: file capabilities in a late call, since a
// change of owner or content clears them; everything else in an early one.
func (u *unpacker) xattrs(fd int, name string, h *tar.Header, late bool) error {
	for key, val := range h.PAXRecords {
		attr, ok := strings.CutPrefix(key, paxXattr)
		if !ok || (attr == xattrCaps) != late {
			continue
		}
		if archive.ReservedXattr(attr) {
			u.note("%s: xattr %s refused: it would steer the overlay", name, attr)
			continue
		}
		if strings.IndexByte(attr, 0) >= 0 || attr == "" {
			return bad(name, "bad name of an xattr")
		}
		if err := u.setXattr(fd, name, attr, []byte(val)); err != nil {
			return err
		}
	}
	if late || h.Typeflag != tar.TypeDir {
		return nil
	}
	if val, ok := h.PAXRecords[paxXattr+xattrCaps]; ok && val != "" {
		u.note("%s: xattr %s not kept on a directory", name, xattrCaps)
	}
	return nil
}

// setXattr sets one xattr, or notes that it cannot be kept.
func (u *unpacker) setXattr(fd int, name, attr string, val []byte) error {
	err := unix.Fsetxattr(fd, attr, val, 0)
	switch err {
	case nil:
		return nil
	case unix.ENOTSUP, unix.EPERM, unix.EACCES, unix.EINVAL, unix.E2BIG, unix.ERANGE:
		u.note("%s: xattr %s not kept: %v", name, attr, err)
		return nil
	case unix.ENOSPC:
		// ext4 keeps all xattrs of a file in one block.
		if len(val) >= 2048 {
			u.note("%s: xattr %s not kept: too large for the file system", name, attr)
			return nil
		}
	}
	return &os.PathError{Op: "setxattr " + attr, Path: name, Err: err}
}
