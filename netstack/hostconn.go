package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/rootless-sbx/sbx/internal/dgram"
	"golang.org/x/sys/unix"
)

// hostConn is the host's side of a TCP flow. Its calls never wait, so that they
// are made without telling the scheduler: to do so would wake the runtime's
// monitor thread at each of them where there is little else to do.
type hostConn struct {
	poll *hostPoller

	// mu lets both directions in and keeps close out while they are inside.
	mu sync.RWMutex
	fd int // -1 when closed
}

// dialHost connects. It waits until the connection is there, or ctx or the
// timeout end.
func dialHost(ctx context.Context, poll *hostPoller, cfg *Config, to netip.AddrPort) (_ *hostConn, err error) {
	domain, network := unix.AF_INET, "tcp4"
	if to.Addr().Is6() {
		domain, network = unix.AF_INET6, "tcp6"
	}
	var rsa unix.RawSockaddrInet6 // the larger one
	var scope uint32
	if zone := to.Addr().Zone(); zone != "" {
		ifi, err := net.InterfaceByName(zone)
		if err != nil {
			return nil, err
		}
		scope = uint32(ifi.Index)
	}
	size := dgram.PutSockaddr(&rsa, to, scope)
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(domain), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return nil, os.NewSyscallError("socket", errno)
	}
	c := &hostConn{poll: poll, fd: int(fd)}
	defer func() {
		if err != nil {
			c.reset()
		}
	}()
	if err := c.setOptions(); err != nil {
		return nil, err
	}
	if to.Addr().IsLoopback() {
		if err := withoutPacing(rawFD(c.fd)); err != nil {
			return nil, err
		}
	}
	if cfg.Control != nil {
		if err := cfg.Control(network, to.String(), rawFD(c.fd)); err != nil {
			return nil, fmt.Errorf("control hook: %w", err)
		}
	}
	// The second call says what became of the first. On the loopback interface
	// that is known at once.
	connect := func() syscall.Errno {
		for {
			_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(c.fd), uintptr(unsafe.Pointer(&rsa)), uintptr(size))
			if errno != unix.EINTR {
				return errno
			}
		}
	}
	errno = connect()
	if errno == unix.EINPROGRESS {
		errno = connect()
	}
	if errno == unix.EALREADY {
		if err := c.await(ctx, cfg.Limits.DialTimeout, func() bool {
			errno = connect()
			return errno != unix.EALREADY
		}); err != nil {
			return nil, err
		}
	}
	if errno != 0 && errno != unix.EISCONN {
		return nil, os.NewSyscallError("connect", errno)
	}
	return c, nil
}

// setOptions is for every socket to the host. See keepAliveIdle.
func (c *hostConn) setOptions() error {
	for _, o := range [...]struct {
		level, name int
		value       int32
	}{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int32(keepAliveIdle / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int32(keepAliveInterval / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAliveCount},
	} {
		if errno := c.setOption(o.level, o.name, unsafe.Pointer(&o.value), 4); errno != 0 {
			return os.NewSyscallError("setsockopt", errno)
		}
	}
	return nil
}

func (c *hostConn) setOption(level, name int, value unsafe.Pointer, size uintptr) syscall.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(c.fd), uintptr(level), uintptr(name), uintptr(value), size, 0)
	return errno
}

// dialWait listens to a socket that is being connected.
type dialWait chan struct{}

func (d dialWait) hostEvent(uint32) {
	select {
	case d <- struct{}{}:
	default:
	}
}

// await asks at each event of the socket until done.
func (c *hostConn) await(ctx context.Context, timeout time.Duration, done func() bool) error {
	event := make(dialWait, 1)
	if err := c.poll.watch(c.fd, event); err != nil {
		return err
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		select {
		case <-event:
			if done() {
				return nil
			}
		case <-timer.C:
			return os.ErrDeadlineExceeded
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// adoptConn takes over a connection that the net package made.
func adoptConn(poll *hostPoller, old *net.TCPConn) (*hostConn, error) {
	defer old.Close()
	rc, err := old.SyscallConn()
	if err != nil {
		return nil, err
	}
	c := &hostConn{poll: poll}
	if cerr := rc.Control(func(fd uintptr) { c.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return c, nil
}

// watch makes l the listener of the connection.
func (c *hostConn) watch(l hostListener) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.fd < 0 {
		return os.ErrClosed
	}
	return c.poll.watch(c.fd, l)
}

// read is read(2): unix.EAGAIN if there is nothing, 0 at the end.
func (c *hostConn) read(b []byte) (int, syscall.Errno) { return c.transfer(unix.SYS_RECVFROM, b) }

// write is write(2): unix.EAGAIN if there is no room.
func (c *hostConn) write(b []byte) (int, syscall.Errno) { return c.transfer(unix.SYS_SENDTO, b) }

func (c *hostConn) transfer(call uintptr, b []byte) (int, syscall.Errno) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.fd < 0 {
		return 0, unix.EBADF
	}
	for {
		n, _, errno := unix.RawSyscall6(call, uintptr(c.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(n), 0
	}
}

// unread is how much there is to read, 0 if that cannot be said.
func (c *hostConn) unread() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.fd < 0 {
		return 0
	}
	var n int32
	if _, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(c.fd), unix.TIOCINQ, uintptr(unsafe.Pointer(&n))); errno != 0 {
		return 0
	}
	return int(n)
}

// closeWrite sends a FIN.
func (c *hostConn) closeWrite() error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.fd < 0 {
		return os.ErrClosed
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(c.fd), unix.SHUT_WR, 0); errno != 0 {
		return os.NewSyscallError("shutdown", errno)
	}
	return nil
}

// close ends a connection whose directions are both through.
func (c *hostConn) close() { c.end(false) }

// reset ends a connection with a RST.
func (c *hostConn) reset() { c.end(true) }

// end closes the descriptor. Its errors have no reader: the connection is gone in
// any case.
func (c *hostConn) end(rst bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return
	}
	if rst {
		linger := unix.Linger{Onoff: 1}
		c.setOption(unix.SOL_SOCKET, unix.SO_LINGER, unsafe.Pointer(&linger), unsafe.Sizeof(linger))
	}
	c.poll.forget(c.fd)
	unix.RawSyscall(unix.SYS_CLOSE, uintptr(c.fd), 0, 0)
	c.fd = -1
}

// rawFD is a socket as Config.Control gets it.
type rawFD int

func (fd rawFD) Control(f func(uintptr)) error { f(uintptr(fd)); return nil }
func (rawFD) Read(func(uintptr) bool) error    { return errors.ErrUnsupported }
func (rawFD) Write(func(uintptr) bool) error   { return errors.ErrUnsupported }

// resetConn closes a connection of the net package with a RST. See end.
func resetConn(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
