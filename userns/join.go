package userns

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/internal/wire"
)

// Join is the first thing a child does, before it opens anything. It takes the
// control connection and waits until the ids are mapped. Afterwards the process
// has no supplementary group (where the kernel allows dropping them: not with a
// single-id map), every descriptor from 3 on is close-on-exec, and those that
// came from further up by accident are closed. Spec.Files are open from 4 on.
// A failure of Join is reported to the parent by Join itself.
func Join() (*wire.Conn, error) {
	conn, err := JoinPlain()
	if err != nil {
		return nil, err
	}
	if err := join(conn); err != nil {
		rerr := Report(conn, err)
		conn.Close()
		return nil, errors.Join(err, rerr)
	}
	return conn, nil
}

// JoinPlain takes the control connection of a process that was started without
// Start, and so without ids to wait for.
func JoinPlain() (*wire.Conn, error) {
	if t, err := unix.GetsockoptInt(ControlFD, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || t != unix.SOCK_SEQPACKET {
		return nil, &Error{Kind: ErrNotChild, Step: "join", Msg: "descriptor 3 is no control connection: sbx starts this program itself"}
	}
	unix.CloseOnExec(ControlFD)
	return wire.NewConn(os.NewFile(ControlFD, "control"))
}

func join(conn *wire.Conn) error {
	m, err := conn.Recv()
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("join: the parent ended before the ids were mapped: %w", err)
	}
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	defer m.CloseFiles()
	if m.Type != MsgMapped {
		return fmt.Errorf("join: expected message %q, got %q", MsgMapped, m.Type)
	}
	var b mapped
	if err := m.Decode(&b); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	if b.Files < 0 || b.Files > maxFiles {
		return fmt.Errorf("join: %d descriptors announced, limit %d", b.Files, maxFiles)
	}
	if err := closeStrays(ControlFD + 1 + b.Files); err != nil {
		return fmt.Errorf("join: close inherited descriptors: %w", err)
	}
	if b.SetGroups {
		// syscall's, as it reaches every thread; x/sys/unix's changes one.
		if err := syscall.Setgroups(nil); err != nil {
			return fmt.Errorf("join: leave the supplementary groups: %w", os.NewSyscallError("setgroups", err))
		}
	}
	if b.User {
		return checkConfinement(confinement())
	}
	return nil
}

// closeStrays closes inherited descriptors from first on and marks the rest
// close-on-exec. What this process has opened itself (the runtime's epoll, the
// control connection) is close-on-exec already; what was inherited cannot be, or
// it would not be here.
func closeStrays(first int) error {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	if err := errors.Join(err, dir.Close()); err != nil {
		return err
	}
	for _, name := range names {
		fd, err := strconv.Atoi(name)
		if err != nil || fd < ControlFD {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC != 0 {
			continue // ours, or the directory we have just read
		}
		if fd >= first {
			err = unix.Close(fd)
		} else {
			_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags|unix.FD_CLOEXEC)
		}
		if err != nil {
			return fmt.Errorf("descriptor %d: %w", fd, err)
		}
	}
	return nil
}

// Report sends err to the parent, whose Recv returns it. It does nothing if err is nil.
func Report(conn *wire.Conn, err error) error {
	if err == nil {
		return nil
	}
	return conn.Send(MsgError, wire.ToError("", err))
}

// Recover, deferred, reports *errp, or the panic that is under way with its
// stack, which it turns into *errp.
func Recover(conn *wire.Conn, errp *error) {
	if p := recover(); p != nil {
		e := wire.Errorf("panic", "panic: %v", p)
		e.Stack = string(debug.Stack())
		*errp = e
	}
	if err := Report(conn, *errp); err != nil {
		*errp = errors.Join(*errp, err)
	}
}
