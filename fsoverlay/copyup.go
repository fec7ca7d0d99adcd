package fsoverlay

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/rootless-sbx/sbx/internal/flock"
	"github.com/rootless-sbx/sbx/internal/inroot"
	"github.com/rootless-sbx/sbx/internal/rmtree"
	"golang.org/x/sys/unix"
)

// Beside a volume's data directory, where no guest can reach them:
const (
	fillLock   = "fill.lock"  // held while the volume is filled
	fillMarker = "fill.begun" // exists while its contents are incomplete
)

// copyUp fills an empty volume with what the image has at the target, as Docker
// does. It runs before the volume is mounted there.
func (a *applier) copyUp(op Op) error {
	src, err := a.target(op, inroot.Nothing)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	if dir, err := inroot.IsDir(src); err != nil || !dir {
		return err // the bind that follows explains it
	}
	notes, err := fillVolume(context.Background(), op.Source, src)
	for _, n := range notes {
		a.notes = append(a.notes, "volume on "+op.Target+": "+n)
	}
	return err
}

// fillVolume copies the directory src into the volume's data directory if that
// is empty, or if an earlier attempt did not come to its end.
func fillVolume(ctx context.Context, data string, src int) (notes []string, err error) {
	dir := filepath.Dir(data)
	lock, err := os.OpenFile(filepath.Join(dir, fillLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := flock.Wait(ctx, lock, unix.LOCK_EX); err != nil {
		return nil, err
	}
	marker := filepath.Join(dir, fillMarker)
	if _, err := os.Lstat(marker); err == nil {
		if err := rmtree.Empty(data); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	dst, err := unix.Open(data, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: data, Err: err}
	}
	d := os.NewFile(uintptr(dst), data)
	defer d.Close()
	if _, err := d.Readdirnames(1); !errors.Is(err, io.EOF) {
		return nil, err // nil: it has contents
	}
	m, err := os.OpenFile(marker, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if err := m.Close(); err != nil {
		return nil, err
	}
	from := &stack{roots: []int{src}, plain: true}
	defer from.forget()
	c := &treeCopy{src: from, dst: dst}
	if err := c.run(ctx); err != nil {
		return nil, err // the marker stays: the next sandbox starts over
	}
	return c.notes(), os.Remove(marker)
}
