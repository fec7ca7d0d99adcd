package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"syscall"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fscommon"
	"golang.org/x/sys/unix"
)

// watcher waits until the kernel has something to say about files of a group. They
// tell it as exceptional condition (POLLPRI), for which Go's poller does not ask: so
// they are in an epoll instance of ours, which is readable then and waits in Go's.
// Unlike inotify instances these have no limit of 128 for each user.
type watcher struct {
	epoll *os.File
	files []*os.File
}

func watch(dir string, names ...string) (_ *watcher, err error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	// NewFile hands a descriptor to the poller only if it does not block.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	w := &watcher{epoll: os.NewFile(uintptr(fd), "epoll")}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	for _, name := range names {
		f, err := cgroups.OpenFile(dir, name, os.O_RDONLY)
		if err != nil {
			return nil, err
		}
		w.files = append(w.files, f)
		n := int(f.Fd())
		if err := unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, n, &unix.EpollEvent{Events: unix.EPOLLPRI | unix.EPOLLET, Fd: int32(n)}); err != nil {
			return nil, os.NewSyscallError("epoll_ctl", err)
		}
	}
	return w, nil
}

// wait returns after the next event, at once if there was one since the last wait, or
// with ctx's cause. What the files say must be read after it, not before.
func (w *watcher) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { w.epoll.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := w.epoll.SyscallConn()
	if err != nil {
		return err
	}
	var werr error
	err = raw.Read(func(fd uintptr) bool {
		var ev [4]unix.EpollEvent
		n, err := unix.EpollWait(int(fd), ev[:], 0)
		if err == unix.EINTR {
			return false
		}
		werr = os.NewSyscallError("epoll_wait", err)
		return err != nil || n > 0
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(err, werr)
}

func (w *watcher) close() {
	for _, f := range w.files {
		f.Close()
	}
	w.epoll.Close()
}

// until waits until the key of a file has the value, for at most patience; the error is
// context.DeadlineExceeded then.
func until(ctx context.Context, dir, file, key string, value uint64, patience time.Duration) error {
	late := fmt.Errorf("no %q in %s: %w", fmt.Sprint(key, " ", value), path.Join(dir, file), context.DeadlineExceeded)
	ctx, cancel := context.WithTimeoutCause(ctx, patience, late)
	defer cancel()
	w, err := watch(dir, file)
	if err != nil {
		return err
	}
	defer w.close()
	for {
		got, err := fscommon.GetValueByKey(dir, file, key)
		if err != nil || got == value {
			return err
		}
		if err := w.wait(ctx); err != nil {
			return err
		}
	}
}

// OOMKills is how many processes of the workload the kernel has killed because the
// group's memory was used up; 0 without the memory controller.
func (g *Group) OOMKills() (uint64, error) {
	n, err := fscommon.GetValueByKey(g.box(), "memory.events", "oom_kill")
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	return n, err
}

// WatchOOM calls fn with the number of OOM kills whenever it has grown, until ctx ends
// or the group is gone, which is no error. Without the memory controller there are none.
func (g *Group) WatchOOM(ctx context.Context, fn func(kills uint64)) error {
	w, err := watch(g.box(), "memory.events")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer w.close()
	var last uint64
	for {
		n, err := fscommon.GetValueByKey(g.box(), "memory.events", "oom_kill")
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
			return nil
		}
		if err != nil {
			return err
		}
		if n > last {
			last = n
			fn(n)
		}
		if err := w.wait(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}
