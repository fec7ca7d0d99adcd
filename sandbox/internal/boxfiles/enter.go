package boxfiles

import (
	"context"
	"fmt"
	"os"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"golang.org/x/sys/unix"
)

// Main is the body of a process that has the tree of a sandbox that runs. The monitor
// has started it, on the main thread, which is locked, and gives it a connection to
// who wants to copy; it ends with that.
func Main(ctx context.Context, conn *wire.Conn) error {
	m, err := conn.Recv()
	if err != nil {
		return fmt.Errorf("wait for the sandbox: %w", err)
	}
	t, peer, err := begin(m)
	if rerr := conn.Reply(m, nil, err); err != nil || rerr != nil {
		return rerr
	}
	defer t.Close()
	defer peer.Close()
	// The main thread is in the sandbox's tree, and its mounts last as long as it does;
	// the work is done on others.
	done := make(chan error, 1)
	go func() { done <- serve(ctx, peer, t) }()
	return <-done
}

func begin(m *wire.Message) (*Tree, *wire.Conn, error) {
	defer m.CloseFiles()
	if m.Type != proto.MsgEnter {
		return nil, nil, fmt.Errorf("expected %q, got %q", proto.MsgEnter, m.Type)
	}
	one, err := m.Take("pid1")
	if err != nil {
		return nil, nil, err
	}
	defer one.Close()
	f, err := m.Take("peer")
	if err != nil {
		return nil, nil, err
	}
	peer, err := wire.NewConn(f)
	if err != nil {
		return nil, nil, err
	}
	t, err := enter(one)
	if err != nil {
		peer.Close()
		return nil, nil, err
	}
	return t, peer, nil
}

// enter takes a copy of the mount namespace of pid 1, and what is the kernel's out of it.
func enter(one *os.File) (*Tree, error) {
	// The root is shared with the process's other threads.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, os.NewSyscallError("unshare CLONE_FS", err)
	}
	if err := unix.Setns(int(one.Fd()), unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("enter the sandbox: %w", os.NewSyscallError("setns", err))
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, os.NewSyscallError("unshare CLONE_NEWNS", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	for _, dir := range fsoverlay.KernelDirs {
		for range 16 { // mounts on top of each other
			if unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) != nil {
				break
			}
		}
	}
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the sandbox's root: %w", err)
	}
	return &Tree{root}, nil
}

// serve answers until the connection ends.
func serve(ctx context.Context, conn *wire.Conn, t *Tree) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return conn.Serve(func(m *wire.Message) {
		body, ok, err := t.Handle(ctx, m)
		if !ok {
			err = fmt.Errorf("unknown request %q", m.Type)
		}
		m.CloseFiles()
		if conn.Reply(m, body, err) != nil {
			conn.Close()
		}
	})
}
