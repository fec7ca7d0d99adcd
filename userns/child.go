package userns

import (
	"context"
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/internal/wire"
)

// Wait waits for the child's end. It may be called from several goroutines and
// any number of times. The child is reaped in any case.
func (c *Child) Wait() (syscall.WaitStatus, error) {
	<-c.done
	return c.status, c.waitErr
}

// Done is closed when the child has ended.
func (c *Child) Done() <-chan struct{} { return c.done }

// Kill sends SIGKILL. A child that has already ended is no error.
func (c *Child) Kill() error { return c.Signal(unix.SIGKILL) }

// Signal sends a signal through the pidfd, which cannot hit another process. A
// child that has already ended is no error.
func (c *Child) Signal(sig syscall.Signal) error {
	rc, err := c.PidFD.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := rc.Control(func(fd uintptr) {
		serr = unix.PidfdSendSignal(int(fd), sig, nil, 0)
	}); err != nil {
		return os.ErrClosed // all that Control can fail with
	}
	if serr == nil || errors.Is(serr, unix.ESRCH) {
		return nil
	}
	return os.NewSyscallError("pidfd_send_signal", serr)
}

// Alive says that the child has not been reaped: until then PID is its own.
func (c *Child) Alive() bool {
	fd, err := rawFd(c.PidFD)
	return err == nil && unix.PidfdSendSignal(int(fd), 0, nil, 0) == nil
}

// Close closes the control connection and the pidfd. It neither kills the child,
// which sees the end of its connection, nor waits for it; Wait still works.
func (c *Child) Close() error {
	err := errors.Join(c.Conn.Close(), c.PidFD.Close())
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// Recv is Conn.Recv, except that the child's MsgError is returned as the error it
// carries. io.EOF means that the child has ended or has executed another program.
func (c *Child) Recv() (*wire.Message, error) {
	m, err := c.Conn.Recv()
	if err != nil {
		return nil, err
	}
	if err := c.note(m); err != nil {
		m.CloseFiles()
		return nil, err
	}
	return m, nil
}

// Serve is Conn.Serve, except that MsgError does not reach handle: it is kept
// for Failure.
func (c *Child) Serve(handle func(*wire.Message)) error {
	return c.Conn.Serve(func(m *wire.Message) {
		if c.note(m) == nil {
			handle(m)
		}
	})
}

// note keeps the error of a MsgError and returns it.
func (c *Child) note(m *wire.Message) error {
	if m.Type != MsgError || m.Reply {
		return nil
	}
	var e *wire.Error
	if err := m.Decode(&e); err != nil || e == nil {
		e = wire.Errorf("", "%s failed and its message cannot be read", c.name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reported == nil {
		c.reported = fromWire(e)
	}
	return c.reported
}

// Failure waits for the child's end and says why it ended: what it reported
// (and Recv or Serve has read), or an *ExitError. It returns nil if the child
// ended with status 0 and without a complaint, and ctx's error if ctx ends first.
func (c *Child) Failure(ctx context.Context) error {
	select {
	case <-c.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.reported != nil:
		return c.reported
	case c.waitErr != nil:
		return c.waitErr
	case c.status.Exited() && c.status.ExitStatus() == 0:
		return nil
	}
	return &ExitError{Name: c.name, PID: c.PID, Status: c.status}
}
