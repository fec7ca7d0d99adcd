package seqfile

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Watch of one directory: files in it that are written to, made or removed.
type Watch struct {
	file *os.File
	stop func() bool
}

// NewWatch begins to watch dir. A Wait ends with ctx.
func NewWatch(ctx context.Context, dir string) (*Watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	w := &Watch{file: os.NewFile(uintptr(fd), "inotify")}
	const events = unix.IN_MODIFY | unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_ONLYDIR
	if _, err := unix.InotifyAddWatch(fd, dir, events); err != nil {
		w.file.Close()
		return nil, &os.PathError{Op: "inotify_add_watch", Path: dir, Err: err}
	}
	w.stop = context.AfterFunc(ctx, func() { w.file.Close() })
	return w, nil
}

// Wait returns after at least one change since the last wait.
func (w *Watch) Wait(ctx context.Context) error {
	var buf [4096]byte
	_, err := w.file.Read(buf[:])
	if errors.Is(err, os.ErrClosed) && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Close ends the watch.
func (w *Watch) Close() {
	w.stop()
	w.file.Close()
}
