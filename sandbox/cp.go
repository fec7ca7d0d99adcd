package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"

	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/internal/archive"
	"github.com/rootless-sbx/sbx/internal/inroot"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxfiles"
	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"golang.org/x/sys/unix"
)

// CopyOptions say how files are copied.
type CopyOptions struct {
	// Owners are kept as numbers. Else files arrive as those of the sandbox's root, and
	// on the host as the user's own, where only root can have it otherwise.
	Owners bool
	// FollowLink copies what a source that is a symbolic link leads to. Links below it
	// stay links.
	FollowLink bool
}

// CopyTo copies a file or directory of the host to a path in the sandbox, which need
// not run. Where it arrives is decided by docker cp's rules: into a directory that is
// there, else under the new name; a source that ends in "/." means what is in it.
func (s *Sandbox) CopyTo(ctx context.Context, local, dst string, o CopyOptions) (Copied, error) {
	parent, name, src, err := localSource(local, o.FollowLink)
	if err != nil {
		return Copied{}, s.copyError(local, err)
	}
	defer unix.Close(parent)
	f, err := s.openFiles(ctx)
	if err != nil {
		return Copied{}, err
	}
	defer f.close()
	g, err := f.goal(ctx, dst)
	if err != nil {
		return Copied{}, s.boxError(dst, err)
	}
	dir, as, err := place(src, g)
	if err != nil {
		return Copied{}, s.boxError(dst, err)
	}
	return s.copyInto(ctx, f, dst, dir, o, func(ctx context.Context, w *os.File) (Copied, error) {
		return boxfiles.Pack(ctx, w, parent, name, as)
	})
}

// CopyTarTo unpacks a tar stream, which may be compressed, into a directory of the
// sandbox. Its owners are kept if the options say so.
func (s *Sandbox) CopyTarTo(ctx context.Context, r io.Reader, dst string, o CopyOptions) (Copied, error) {
	f, err := s.openFiles(ctx)
	if err != nil {
		return Copied{}, err
	}
	defer f.close()
	g, err := f.goal(ctx, dst)
	if err == nil && !g.dir {
		err = ErrNotDirectory
		if !g.exists {
			err = ErrNoDirectory
		}
	}
	if err != nil {
		return Copied{}, s.boxError(dst, err)
	}
	return s.copyInto(ctx, f, dst, g.path, o, func(ctx context.Context, w *os.File) (Copied, error) {
		return Copied{}, copyUntil(ctx, w, &plainReader{from: r})
	})
}

// plainReader uncompresses what is compressed.
type plainReader struct {
	from, to io.Reader
	free     func()
}

func (p *plainReader) Read(b []byte) (n int, err error) {
	if p.to == nil {
		if p.to, p.free, err = image.Decompress(p.from); err != nil {
			return 0, err
		}
	}
	if n, err = p.to.Read(b); err != nil {
		p.free()
	}
	return n, err
}

// copyInto lets what write writes be unpacked in a directory of the sandbox.
func (s *Sandbox) copyInto(ctx context.Context, f *boxFiles, dst, dir string, o CopyOptions, write func(context.Context, *os.File) (Copied, error)) (Copied, error) {
	var res, sent Copied
	sending, stop := context.WithCancelCause(ctx)
	err := piped(func(r *os.File) (err error) {
		defer stop(syscall.EPIPE) // a writer that waits for its input does not see it
		res, err = f.unpack(ctx, dir, o.Owners, r)
		return err
	}, func(w *os.File) (err error) {
		sent, err = write(sending, w)
		return err
	})
	res.Notes, res.MoreNotes = append(sent.Notes, res.Notes...), res.MoreNotes+sent.MoreNotes
	if err != nil {
		return res, s.boxError(dst, err)
	}
	s.event(events.Copy, "to", dst)
	return res, nil
}

// CopyFrom copies a file or directory of the sandbox, which need not run, to the host,
// by the same rules as CopyTo.
func (s *Sandbox) CopyFrom(ctx context.Context, src, local string, o CopyOptions) (Copied, error) {
	f, err := s.openFiles(ctx)
	if err != nil {
		return Copied{}, err
	}
	defer f.close()
	st, from, err := f.source(ctx, src, o.FollowLink)
	if err != nil {
		return Copied{}, s.boxError(src, err)
	}
	g, err := localGoal(local)
	if err != nil {
		return Copied{}, s.copyError(local, err)
	}
	dir, as, err := place(from, g)
	if err != nil {
		return Copied{}, s.copyError(local, err)
	}
	root, err := inroot.OpenDir(dir)
	if err != nil {
		return Copied{}, s.copyError(local, err)
	}
	defer unix.Close(root)
	target := archive.Target{Root: root, Owners: o.Owners, NoChown: !o.Owners || os.Geteuid() != 0, UID: os.Geteuid(), GID: os.Getegid()}
	var res, sent Copied
	var here error
	err = piped(func(r *os.File) error {
		res, here = archive.Unpack(ctx, bufio.NewReaderSize(r, 256<<10), target)
		return here
	}, func(w *os.File) (err error) {
		sent, err = f.pack(ctx, string(st.Path), as, w)
		return err
	})
	res.Notes, res.MoreNotes = append(sent.Notes, res.Notes...), res.MoreNotes+sent.MoreNotes
	switch {
	case err != nil && err == here:
		return res, s.copyError(local, err)
	case err != nil:
		return res, s.boxError(src, err)
	}
	s.event(events.Copy, "from", src)
	return res, nil
}

// CopyTarFrom writes a file or directory of the sandbox as a tar stream.
func (s *Sandbox) CopyTarFrom(ctx context.Context, src string, w io.Writer, o CopyOptions) (Copied, error) {
	f, err := s.openFiles(ctx)
	if err != nil {
		return Copied{}, err
	}
	defer f.close()
	st, from, err := f.source(ctx, src, o.FollowLink)
	if err != nil {
		return Copied{}, s.boxError(src, err)
	}
	as := from.name
	if from.contents {
		as = "."
	}
	var res Copied
	err = piped(func(r *os.File) error {
		return copyUntil(ctx, w, r)
	}, func(out *os.File) (err error) {
		res, err = f.pack(ctx, string(st.Path), as, out)
		return err
	})
	if err != nil {
		return res, s.boxError(src, err)
	}
	s.event(events.Copy, "from", src)
	return res, nil
}

// source finds what is to be copied out of the sandbox.
func (f *boxFiles) source(ctx context.Context, p string, follow bool) (*proto.PathStat, copied, error) {
	clean := path.Clean("/" + p)
	src := copied{name: path.Base(clean), contents: contentsOf(p, clean)}
	st, err := f.stat(ctx, p, follow)
	if err == nil && !st.Exists {
		err = fs.ErrNotExist
	}
	src.dir = st.Mode&unix.S_IFMT == unix.S_IFDIR
	return st, src, err
}

// goal finds where a copy into the sandbox goes.
func (f *boxFiles) goal(ctx context.Context, p string) (goal, error) {
	st, err := f.stat(ctx, p, true)
	if err != nil {
		return goal{}, err
	}
	kind := st.Mode & unix.S_IFMT
	g := goal{path: string(st.Path), exists: st.Exists, dir: kind == unix.S_IFDIR, slash: asksForDir(p)}
	if g.exists && !g.dir && kind != unix.S_IFREG {
		return g, ErrNotFile
	}
	return g, nil
}

// Errors of copying, for errors.Is.
var (
	// ErrNoPath is returned for a path that leads to nothing.
	ErrNoPath = errors.New("no such file or directory")
	// ErrDirToFile is returned for a directory that is to be copied to a file.
	ErrDirToFile = errors.New("cannot copy a directory to a file")
	// ErrNoDirectory is returned for a directory that must be there and is not.
	ErrNoDirectory = errors.New("the destination directory must exist")
	// ErrNotDirectory is returned where a directory is wanted and something else is.
	ErrNotDirectory = errors.New("it is not a directory")
	// ErrNotFile is returned for a destination such as a device or a pipe.
	ErrNotFile = errors.New("the destination must be a directory or a regular file")
	// ErrReadOnly is returned for a destination on a read-only file system.
	ErrReadOnly = errors.New("read-only file system")
)

// CopyError is why a copy did not come about, or came to an end.
type CopyError struct {
	Path string // on the host, or NAME:PATH
	Kind error  // one of the above, or nil
	Err  error
	Fix  string
}

func (e *CopyError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("%s: %v", e.Path, e.Kind)
	}
	return fmt.Sprintf("%s: %v", e.Path, e.Err)
}

func (e *CopyError) Unwrap() []error {
	var list []error
	for _, err := range []error{e.Kind, e.Err} {
		if err != nil {
			list = append(list, err)
		}
	}
	return list
}

// boxError is about a path in the sandbox.
func (s *Sandbox) boxError(p string, err error) error {
	return s.copyError(s.name+":"+path.Clean("/"+p), err)
}

func (s *Sandbox) copyError(p string, err error) error {
	var se *StateError
	if errors.As(err, &se) || errors.Is(err, context.Canceled) {
		return err
	}
	e := &CopyError{Path: p, Err: err}
	var we *wire.Error
	var ee *archive.EntryError
	entry := errors.As(err, &ee) || errors.As(err, &we) && we.Code != "" // it says what it is about
	switch {
	case errors.As(err, &we) && we.Code == proto.CodeKernelDir:
		e.Fix = fmt.Sprintf("write there with sbx exec: sbx exec -i %s tee FILE", s.name)
	case errors.Is(err, syscall.EROFS):
		e.Kind, e.Fix = ErrReadOnly, "copy to a volume that is writable, or make the sandbox without --read-only"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		e.Fix = "free disk space and copy again; what came before it is complete"
	case errors.Is(err, fs.ErrNotExist) && !entry:
		e.Kind, e.Err = ErrNoPath, nil
	case errors.Is(err, syscall.ENOTDIR) && !entry:
		e.Kind, e.Err = ErrNotDirectory, nil
	}
	for _, kind := range []error{ErrDirToFile, ErrNoDirectory, ErrNotDirectory, ErrNotFile} {
		if errors.Is(err, kind) {
			e.Kind, e.Err = kind, nil
		}
	}
	return e
}
