package logfile

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// watch waits for a change in a directory.
type watch struct {
	file *os.File
	stop func() bool
}

func newWatch(ctx context.Context, dir string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	w := &watch{file: os.NewFile(uintptr(fd), "inotify")}
	const events = unix.IN_MODIFY | unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_ONLYDIR
	if _, err := unix.InotifyAddWatch(fd, dir, events); err != nil {
		w.file.Close()
		return nil, &os.PathError{Op: "inotify_add_watch", Path: dir, Err: err}
	}
	w.stop = context.AfterFunc(ctx, func() { w.file.Close() })
	return w, nil
}

// wait returns after at least one change since the last wait.
func (w *watch) wait(ctx context.Context) error {
	var buf [4096]byte
	_, err := w.file.Read(buf[:])
	if errors.Is(err, os.ErrClosed) && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (w *watch) close() {
	w.stop()
	w.file.Close()
}
