package wire

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Handle is a descriptor that this process does not use, but keeps open or passes
// on. An os.File would be in the runtime's poller, which wakes up for whatever
// others do with the open file: for a network link, at each frame.
type Handle struct{ fd int }

// TakeHandle is Take for a descriptor that is only to be kept. The caller closes it.
func (m *Message) TakeHandle(name string) (*Handle, error) {
	f, err := m.Take(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() // which takes it out of the poller
	return NewHandle(f)
}

// NewHandle returns a duplicate of a descriptor. The caller closes it.
func NewHandle(d Descriptor) (*Handle, error) {
	fd, err := rawFd(d)
	if err != nil {
		return nil, err
	}
	if fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return &Handle{fd: fd}, nil
}

// Close closes the descriptor. It must not be used afterwards.
func (h *Handle) Close() error { return os.NewSyscallError("close", unix.Close(h.fd)) }

// SyscallConn implements syscall.Conn.
func (h *Handle) SyscallConn() (syscall.RawConn, error) { return rawHandle(h.fd), nil }

type rawHandle int

func (h rawHandle) Control(f func(uintptr)) error { f(uintptr(h)); return nil }
func (rawHandle) Read(func(uintptr) bool) error   { return errors.ErrUnsupported }
func (rawHandle) Write(func(uintptr) bool) error  { return errors.ErrUnsupported }
