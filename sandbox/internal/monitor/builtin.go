package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/rootless-sbx/sbx/portfwd"
	"golang.org/x/sys/unix"
)

// readyPipe is the named pipe that RootlessKit's parent driver makes when it can
// be reached.
const readyPipe = ".bp-ready.pipe"

const (
	builtinFirst = 5 * time.Millisecond   // between looks for the first parent
	builtinNext  = 250 * time.Millisecond // and for one in a new network process
)

// builtinChild runs the guest's half of RootlessKit's port driver in the sandbox's
// network namespace. It comes to life after the half in the network's process has
// made its pipe, and again for each process that takes that one's place.
type builtinChild struct {
	dir    string
	netns  *os.File
	log    *slog.Logger
	cancel context.CancelFunc
	done   chan struct{}
}

func startBuiltin(dir string, ns *os.File, log *slog.Logger) (*builtinChild, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	own, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()))
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &builtinChild{dir: dir, netns: own, log: log, cancel: cancel, done: make(chan struct{})}
	go b.run(ctx)
	return b, nil
}

func (b *builtinChild) run(ctx context.Context) {
	defer close(b.done)
	defer b.netns.Close()
	var serving uint64 // the pipe that belongs to the parent of this child
	stop := func() {}
	defer func() { stop() }()
	wait := builtinFirst
	for {
		var st unix.Stat_t
		err := unix.Lstat(filepath.Join(b.dir, readyPipe), &st)
		switch {
		case err == nil && st.Ino != serving:
			stop() // its listener takes the socket along, so before the next one listens
			serving, stop, wait = st.Ino, b.serve(ctx), builtinNext
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			b.log.Warn("builtin port driver", "err", err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// serve runs one child and returns what ends it.
func (b *builtinChild) serve(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := portfwd.RunBuiltinChild(ctx, portfwd.BuiltinOpaque(b.dir), b.netns, b.log); err != nil {
			b.log.Warn("builtin port driver", "err", err)
		}
	}()
	return func() {
		cancel()
		for {
			// It waits for the parent to open the pipe, who may have been killed.
			fd, err := unix.Open(filepath.Join(b.dir, readyPipe), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err == nil {
				unix.Close(fd)
			}
			select {
			case <-ended:
				return
			case <-time.After(builtinFirst):
			}
		}
	}
}

func (b *builtinChild) close() error {
	b.cancel()
	<-b.done
	return os.RemoveAll(b.dir)
}
