package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/rootless-sbx/sbx/internal/inroot"
	"golang.org/x/sys/unix"
)

const (
	maxName = 4095
	maxDirs = 1 << 20
)

// Target says where and how to unpack.
type Target struct {
	// Root is a descriptor of the directory that nothing leads out of, Dir the
	// directory below it that names begin at; empty: Root itself.
	Root int
	Dir  string
	// FollowLinks follows symbolic links on the way, inside of Root. Else they are
	// refused.
	FollowLinks bool
	// Owners gives the files their owners of the stream; else they belong to
	// UID and GID. Owners without an id here are noted and get those too.
	Owners   bool
	UID, GID int
	// NoChown leaves owners to the kernel: only one id can be had.
	NoChown bool
}

// Unpack makes the files of a stream. When it fails, what was complete stays, and
// nothing of the entry that the error names.
func Unpack(ctx context.Context, r io.Reader, t Target) (Stats, error) {
	u := &unpacker{t: t, made: map[string]int{}, buf: make([]byte, bufferSize)}
	src := &source{ctx: ctx, r: r}
	err := u.all(tar.NewReader(src))
	if src.err != nil && !errors.Is(src.err, io.EOF) {
		err = src.err
	}
	if err == nil && src.n == 0 {
		err = fmt.Errorf("%w: it is empty", ErrDamaged)
	}
	if ferr := u.finish(); err == nil {
		err = ferr
	}
	if err == nil { // the padding, so that its writer does not fail
		_, err = io.CopyBuffer(io.Discard, src, u.buf)
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return u.Stats, err
}

// source remembers its error, to tell it from one of the tree.
type source struct {
	ctx context.Context
	r   io.Reader
	n   int64
	err error
}

func (s *source) Read(b []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	n, err := s.r.Read(b)
	s.n += int64(n)
	if err != nil {
		s.err = err
	}
	return n, err
}

type unpacker struct {
	Stats
	t    Target
	dirs []madeDir
	made map[string]int // dirs by their names
	buf  []byte
	// noTmpfile: the file system cannot make files without a name.
	noTmpfile bool
}

// madeDir is a directory of the stream: it gets its mode and times at the end, when
// all is in it.
type madeDir struct {
	name string
	mode uint32
	ts   []unix.Timespec
}

func (u *unpacker) all(tr *tar.Reader) error {
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // names are judged below
			return fmt.Errorf("%w after %d entries: %w", ErrDamaged, u.Entries, err)
		}
		if err := u.entry(h, tr); err != nil {
			return err
		}
	}
}

func (u *unpacker) entry(h *tar.Header, body io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader || h.Typeflag == 'V' { // not files
		return nil
	}
	u.Entries++
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return bad(ErrKind, h.Name, "it is the directory to copy to, and no file")
		}
		return nil // which stays as it is
	}
	dir, err := u.openDir(path.Dir(name), inroot.Dir)
	if err != nil {
		return failed(name, "open its directory", err)
	}
	defer unix.Close(dir)
	base := path.Base(name)
	switch h.Typeflag {
	case tar.TypeDir:
		return u.dir(dir, base, name, h)
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return u.file(dir, base, name, h, body)
	case tar.TypeLink:
		return u.link(dir, base, name, h)
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxName {
			return bad(ErrDamaged, name, "a symbolic link to a path of %d bytes", len(h.Linkname))
		}
		if err := u.clear(dir, base, name); err != nil {
			return err
		}
		if err := unix.Symlinkat(h.Linkname, dir, base); err != nil {
			return failed(name, "make a symbolic link", err)
		}
		return u.special(dir, base, name, h)
	case tar.TypeFifo:
		if err := u.clear(dir, base, name); err != nil {
			return err
		}
		if err := unix.Mknodat(dir, base, unix.S_IFIFO|0o600, 0); err != nil {
			return failed(name, "make a fifo", err)
		}
		return u.special(dir, base, name, h)
	case tar.TypeChar, tar.TypeBlock:
		u.Note(name, "device node %d:%d, left out: a user namespace cannot make it", h.Devmajor, h.Devminor)
		return nil
	}
	return bad(ErrDamaged, name, "an entry of the unknown type %q", h.Typeflag)
}

// clean makes a name relative, without "." and "..", "." for the directory itself.
func clean(name string) (string, error) {
	if len(name) > maxName {
		return "", bad(ErrLimit, name[:64]+"...", "a name of %d bytes, limit %d", len(name), maxName)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", bad(ErrDamaged, name, "a name with a zero byte")
	}
	var parts []string
	for _, p := range inroot.Split(name) {
		switch {
		case p != "..":
			parts = append(parts, p)
		case len(parts) > 0:
			parts = parts[:len(parts)-1]
		default:
			return "", &EntryError{Name: name, Kind: ErrBreakout}
		}
	}
	if len(parts) > inroot.MaxDepth {
		return "", bad(ErrLimit, name[:64]+"...", "%d directories deep, limit %d", len(parts), inroot.MaxDepth)
	}
	return path.Join(append([]string{"."}, parts...)...), nil
}

// openDir opens a directory of the tree. The way to Dir itself was the caller's
// choice.
func (u *unpacker) openDir(name string, create inroot.Kind) (int, error) {
	return inroot.Open(u.t.Root, path.Join(u.t.Dir, name), inroot.Lookup{Create: create, NoLinks: !u.t.FollowLinks})
}

func (u *unpacker) dir(dir int, base, name string, h *tar.Header) error {
	var st unix.Stat_t
	err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		if err := unix.Mkdirat(dir, base, 0o700); err != nil {
			return failed(name, "make a directory", err)
		}
	case err != nil:
		return failed(name, "look at it", err)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return bad(ErrKind, name, "cannot overwrite a non-directory with a directory")
	}
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed(name, "open a directory", err)
	}
	defer unix.Close(fd)
	mode, err := u.own(fd, "", name, h)
	if err != nil {
		return err
	}
	if err := u.xattrs(fd, name, h, false); err != nil {
		return err
	}
	i, again := u.made[name]
	if !again {
		if len(u.dirs) >= maxDirs {
			return bad(ErrLimit, name, "more than %d directories", maxDirs)
		}
		i = len(u.dirs)
		u.made[name] = i
		u.dirs = append(u.dirs, madeDir{name: name})
	}
	u.dirs[i].mode, u.dirs[i].ts = mode, Times(h)
	return nil
}

// finish sets what directories get last, the deeper ones first.
func (u *unpacker) finish() error {
	var first error
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := &u.dirs[i]
		if err := u.finishDir(d); err != nil && !errors.Is(err, unix.ENOENT) && first == nil {
			first = failed(d.name, "set its mode and time", err)
		}
	}
	return first
}

func (u *unpacker) finishDir(d *madeDir) error {
	p, err := u.openDir(d.name, inroot.Nothing)
	if err != nil {
		return err
	}
	defer unix.Close(p)
	fd, err := unix.Openat(p, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchmod(fd, d.mode); err != nil {
		return err
	}
	return unix.UtimesNanoAt(p, ".", d.ts, 0)
}

// link makes a second name for a file of the tree. Its target is not followed.
func (u *unpacker) link(dir int, base, name string, h *tar.Header) error {
	target, err := clean(h.Linkname)
	if err != nil {
		return err
	}
	from, err := u.openDir(path.Dir(target), inroot.Nothing)
	if err != nil {
		return failed(name, fmt.Sprintf("find %q, of which it is a hard link", h.Linkname), err)
	}
	defer unix.Close(from)
	var a, b unix.Stat_t
	if err := unix.Fstatat(from, path.Base(target), &a, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return failed(name, fmt.Sprintf("find %q, of which it is a hard link", h.Linkname), err)
	}
	if a.Mode&unix.S_IFMT == unix.S_IFDIR {
		return bad(ErrKind, name, "a hard link to the directory %q", h.Linkname)
	}
	if unix.Fstatat(dir, base, &b, unix.AT_SYMLINK_NOFOLLOW) == nil && a.Dev == b.Dev && a.Ino == b.Ino {
		return nil
	}
	if err := u.clear(dir, base, name); err != nil {
		return err
	}
	if err := unix.Linkat(from, path.Base(target), dir, base, 0); err != nil {
		return failed(name, fmt.Sprintf("link it to %q", h.Linkname), err)
	}
	return nil
}

// clear makes room for something that is no directory.
func (u *unpacker) clear(dir int, base, name string) error {
	var st unix.Stat_t
	err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return failed(name, "look at it", err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return bad(ErrKind, name, "cannot overwrite a directory with a non-directory")
	}
	if err := unix.Unlinkat(dir, base, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return failed(name, "replace it", err)
	}
	return nil
}
