package initproc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
	"golang.org/x/sys/unix"
)

// Join is the body of a process that becomes another program in a sandbox that
// runs. It was born in the sandbox's pid namespace and enters the others here, on
// the main thread, which is locked.
//
// What the sandbox runs can see it, but not look into it or take it over: it is
// not dumpable until it executes the program, with the sandbox's own rights then.
func Join(ctx context.Context, conn *wire.Conn) error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_DUMPABLE", err)
	}
	for {
		m, err := conn.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil // the monitor has gone
			}
			return err
		}
		if err := handleJoined(conn, m); err != nil {
			return err
		}
	}
}

func handleJoined(conn *wire.Conn, m *wire.Message) error {
	defer m.CloseFiles()
	switch m.Type {
	case proto.MsgJoin:
		var files []wire.File
		pty, err := join(m)
		if pty != nil {
			defer pty.Close()
			files = []wire.File{{Name: "pty", File: pty}}
		}
		return conn.Reply(m, nil, err, files...)
	case proto.MsgExec:
		spec, err := takeSpec(m)
		if err != nil {
			return conn.Reply(m, nil, err)
		}
		return conn.Reply(m, nil, workload.Exec(spec))
	}
	return conn.Reply(m, nil, fmt.Errorf("unknown request %q", m.Type))
}

// join enters the namespaces of the sandbox's pid 1, and opens a terminal there.
func join(m *wire.Message) (pty *os.File, err error) {
	var req proto.Join
	if err := m.Decode(&req); err != nil {
		return nil, err
	}
	one, err := m.Take("pid1")
	if err != nil {
		return nil, err
	}
	defer one.Close()
	// The working directory and the root are shared with the process's other threads.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, os.NewSyscallError("unshare CLONE_FS", err)
	}
	spaces := unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	if !req.HostNetwork {
		spaces |= unix.CLONE_NEWNET
	}
	if err := unix.Setns(int(one.Fd()), spaces); err != nil {
		return nil, &wire.Error{Step: "enter the sandbox", Errno: err.(unix.Errno)}
	}
	if err := unix.Chdir("/"); err != nil {
		return nil, os.NewSyscallError("chdir", err)
	}
	if !req.TTY {
		return nil, nil
	}
	return useTerminal(fsoverlay.OpenTerminal, req.Rows, req.Cols)
}
