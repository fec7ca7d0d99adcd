package sandbox

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/internal/archive"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/userns"
)

// Copied says what was copied, and what could not be kept.
type Copied = archive.Stats

// Change is a file of a sandbox that is not as in its image.
type Change = fsoverlay.Change

// Kinds of changes, with Docker's numbers.
const (
	FileChanged = fsoverlay.Changed
	FileAdded   = fsoverlay.Added
	FileDeleted = fsoverlay.Deleted
)

// Diff returns what has changed in the sandbox's own files since it was made, by path.
// Volumes and other mounts are not its own.
func (s *Sandbox) Diff(ctx context.Context) ([]Change, error) {
	var list []Change
	_, err := s.tree(ctx, proto.TreeChanges, func(r *os.File) error {
		b := bufio.NewReader(r)
		for {
			line, err := b.ReadString(0)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if len(line) < 3 {
				return fmt.Errorf("a change of %d bytes", len(line))
			}
			list = append(list, Change{Path: line[1 : len(line)-1], Kind: fsoverlay.ChangeKind(line[0] - '0')})
		}
	})
	slices.SortFunc(list, func(a, b Change) int { return cmp.Compare(a.Path, b.Path) })
	return list, err
}

// Export writes the sandbox's root file system as a tar stream, with the owners that the
// sandbox sees. What is mounted in it is not part of it: of a volume there is what it
// covers.
func (s *Sandbox) Export(ctx context.Context, w io.Writer) (Copied, error) {
	res, err := s.tree(ctx, proto.TreeAll, func(r *os.File) error {
		return copyUntil(ctx, w, r)
	})
	if err == nil {
		s.event(events.Export)
	}
	return res, err
}

// tree lets a worker read the sandbox's files, and read take what it writes. Whether
// the sandbox runs makes no difference: the layers are read where they lie.
func (s *Sandbox) tree(ctx context.Context, what string, read func(*os.File) error) (Copied, error) {
	var res Copied
	st, err := s.storage(ctx)
	if err != nil {
		return res, err
	}
	defer st.release()
	w, err := s.e.startWorker(ctx, st.mapping)
	if err != nil {
		return res, err
	}
	defer w.close()
	err = piped(read, func(out *os.File) error {
		return w.call(ctx, proto.MsgTree, proto.Tree{What: what, View: st.view}, &res, wire.File{Name: "out", File: out})
	})
	if err == nil {
		_, err = s.look(ctx) // or somebody has removed it under our hands
	}
	return res, err
}

// piped runs read and write on the two ends of a pipe, and returns the error that is no
// consequence of the other.
func piped(read func(*os.File) error, write func(*os.File) error) error {
	pr, pw, err := os.Pipe()
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		err := read(pr)
		pr.Close() // if it has failed, the other side learns of it by EPIPE
		done <- err
	}()
	werr := write(pw)
	pw.Close()
	rerr := <-done
	if werr == nil || rerr != nil && errors.Is(werr, syscall.EPIPE) {
		return rerr
	}
	return werr
}

// copyUntil copies until ctx ends. Then its goroutine stays until the caller's reader or
// writer returns, as with os/exec.
func copyUntil(ctx context.Context, w io.Writer, r io.Reader) error {
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(w, r)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// storage is where the files of a sandbox are.
type storage struct {
	mapping *userns.Mapping
	layers  []string // of its image
	view    fsoverlay.ViewSpec
	release func() // the image
}

func (s *Sandbox) storage(ctx context.Context) (*storage, error) {
	if _, err := s.look(ctx); err != nil {
		return nil, err
	}
	p, err := s.e.resolve(ctx, s.rec.UserNS)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(s.e.containers(), s.id)
	st := &storage{mapping: p.mapping, release: func() {}}
	st.view = fsoverlay.ViewSpec{Driver: s.start.Driver, Upper: filepath.Join(dir, "upper")}
	if s.rec.ImageID == "" {
		root, err := filepath.EvalSymlinks(s.rec.RootFS)
		if err != nil {
			return nil, &ConfigError{Field: "rootfs", Err: err}
		}
		st.layers = []string{root}
	} else {
		lease, err := s.acquire(ctx, p.mapping)
		if err != nil {
			return nil, err
		}
		st.layers, st.release = lease.Layers, func() { lease.Close() }
	}
	init := filepath.Join(dir, "init")
	if _, err := os.Lstat(init); err == nil {
		st.view.Lowers = append(st.view.Lowers, init)
	} else if !errors.Is(err, fs.ErrNotExist) {
		st.release()
		return nil, err
	}
	st.view.Lowers = append(st.view.Lowers, st.layers...)
	return st, nil
}

// writeTree is the worker's side.
func writeTree(ctx context.Context, m *wire.Message) (any, error) {
	var req proto.Tree
	if err := m.Decode(&req); err != nil {
		return nil, err
	}
	out, err := m.Take("out")
	if err != nil {
		return nil, err
	}
	defer out.Close()
	v, err := fsoverlay.OpenView(req.View)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	b := bufio.NewWriterSize(out, 256<<10)
	p := archive.NewPacker(b)
	switch req.What {
	case proto.TreeChanges:
		err = v.Changes(ctx, func(c Change) error {
			_, err := fmt.Fprintf(b, "%d%s\x00", c.Kind, c.Path)
			return err
		})
	case proto.TreeLayer:
		err = errors.Join(v.PackChanges(ctx, p), p.Close())
	case proto.TreeAll:
		p.Sparse = true
		err = errors.Join(v.Pack(ctx, p, ".", "."), p.Close())
	default:
		err = fmt.Errorf("unknown tree %q", req.What)
	}
	return p.Stats, errors.Join(err, b.Flush())
}
