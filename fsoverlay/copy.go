package fsoverlay

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/rootless-sbx/sbx/internal/inroot"
	"github.com/rootless-sbx/sbx/internal/rmtree"
	"golang.org/x/sys/unix"
)

// copyDriver makes the root as a plain tree: it needs nothing from the kernel,
// costs the time to copy the image once per sandbox, and its space where the file
// system has no reflinks. Upper is the tree.
type copyDriver struct{ log *slog.Logger }

func (copyDriver) Name() string { return DriverCopy }

// Prepare makes the tree unless Upper already holds one. It appears in Upper at
// once, by a rename, so a crash leaves no half of it.
func (d copyDriver) Prepare(ctx context.Context, s RootSpec) (*Prepared, error) {
	const step = "copy the image"
	if err := s.check(); err != nil {
		return nil, err
	}
	if err := mkdirs(s.Upper, s.Work, s.Merged); err != nil {
		return nil, err
	}
	names, err := os.ReadDir(s.Upper)
	if err != nil {
		return nil, fail(step, s.Upper, err)
	}
	if len(names) > 0 {
		return &Prepared{}, nil // a sandbox that is started again
	}
	tmp := filepath.Join(s.Work, "copy")
	if err := rmtree.Remove(tmp); err != nil {
		return nil, err
	}
	notes, err := copyLayers(ctx, s.Lowers, tmp)
	if err == nil {
		err = unix.Rename(tmp, s.Upper) // os.Rename refuses to replace an empty directory
	}
	if err != nil {
		if rerr := rmtree.Remove(tmp); rerr != nil {
			d.log.Warn("remove an unfinished copy", "path", tmp, "err", rerr)
		}
		return nil, fail(step, s.Upper, err)
	}
	return &Prepared{Notes: notes}, nil
}

func copyLayers(ctx context.Context, lowers []string, to string) ([]string, error) {
	if err := os.Mkdir(to, 0o700); err != nil {
		return nil, err
	}
	src, err := openStack(lowers)
	if err != nil {
		return nil, err
	}
	defer src.close()
	dst, err := inroot.OpenDir(to)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dst)
	c := &treeCopy{src: src, dst: dst}
	if err := c.run(ctx); err != nil {
		return nil, err
	}
	return c.notes(), nil
}

// Mount binds the tree to Merged.
func (copyDriver) Mount(s RootSpec) error {
	const step = "mount the copied root"
	if err := s.check(); err != nil {
		return err
	}
	if err := mkdirs(s.Merged); err != nil {
		return err
	}
	target, err := inroot.OpenDir(s.Merged)
	if err != nil {
		return fail(step, s.Merged, err)
	}
	defer unix.Close(target)
	if s.ReadOnly {
		return fail(step, s.Merged, bindReadOnly(s.Upper, target))
	}
	tree, err := cloneTree(unix.AT_FDCWD, s.Upper, true)
	if err != nil {
		return fail(step, s.Upper, err)
	}
	defer unix.Close(tree)
	return fail(step, s.Merged, attach(tree, target))
}
