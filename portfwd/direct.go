package portfwd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// targets returns where a port leads, the best first: the guest's address of
// the client's family, then that of the other, for a server that listens on one.
func (p *published) targets(client netip.Addr) []netip.AddrPort {
	num := uint16(p.spec.ChildPort)
	if p.childIP.IsValid() {
		return []netip.AddrPort{netip.AddrPortFrom(p.childIP, num)}
	}
	a, b := p.m.cfg.Guest.Addr4(), p.m.cfg.Guest.Addr6()
	if client.Is6() {
		a, b = b, a
	}
	var out []netip.AddrPort
	for _, ip := range []netip.Addr{a, b} {
		if ip.IsValid() {
			out = append(out, netip.AddrPortFrom(ip, num))
		}
	}
	return out
}

// dialTCP connects a socket of the guest's namespace to the guest's own address.
func (p *published) dialTCP(client netip.Addr) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(p.ctx, p.m.lim.DialTimeout)
	defer cancel()
	var first error
	for _, dst := range p.targets(client) {
		pool := p.m.pools[0]
		if dst.Addr().Is6() {
			pool = p.m.pools[1]
		}
		f, err := pool.get(ctx)
		if err != nil {
			return nil, fmt.Errorf("make a socket in the guest: %w", err)
		}
		c, err := connect(ctx, f, dst)
		if err == nil {
			tc, ok := c.(*net.TCPConn)
			if !ok {
				c.Close()
				return nil, fmt.Errorf("the guest's socket is not TCP but %T", c)
			}
			return tc, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, first
}

// connect connects a non-blocking socket and closes f in any case.
func connect(ctx context.Context, f *os.File, dst netip.AddrPort) (net.Conn, error) {
	defer f.Close()
	fail := func(err error) (net.Conn, error) {
		return nil, fmt.Errorf("connect to the guest at %s: %w", dst, err)
	}
	rc, err := f.SyscallConn()
	if err != nil {
		return fail(err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := f.SetWriteDeadline(deadline); err != nil {
			return fail(fmt.Errorf("the socket is not in non-blocking mode: %w", err))
		}
	}
	stop := context.AfterFunc(ctx, func() { f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var cerr error
	started := false
	err = rc.Write(func(fd uintptr) bool {
		if !started {
			started = true
			cerr = unix.Connect(int(fd), sockaddr(dst))
			if cerr != unix.EINPROGRESS && cerr != unix.EINTR {
				return true
			}
			// Inside one namespace the handshake is over by now.
		}
		var done bool
		done, cerr = connected(int(fd))
		return done
	})
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = unix.ETIMEDOUT
		}
		return fail(err)
	}
	if cerr != nil {
		return fail(os.NewSyscallError("connect", cerr))
	}
	c, err := net.FileConn(f)
	if err != nil {
		return fail(err)
	}
	return c, nil
}

// connected says whether a connection attempt is over, and how it ended.
func connected(fd int) (bool, error) {
	soerr, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return true, err
	}
	if soerr != 0 {
		return true, syscall.Errno(soerr)
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return false, nil // still under way
	}
	return true, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port()), ZoneId: zoneID(a.Addr())}
}

// socketPool keeps a few guest sockets ready: making one is a round trip to the
// sandbox's monitor. It is empty until the first use, so that a sandbox without
// connections holds none, and never holds more than its size.
type socketPool struct {
	guest  Guest
	family int
	log    *slog.Logger
	ctx    context.Context
	wake   chan struct{} // at most one pending
	free   chan *os.File // nil: no pool
	once   sync.Once     // starts fill
	wg     sync.WaitGroup
}

func newSocketPool(ctx context.Context, g Guest, family, size int, log *slog.Logger) *socketPool {
	s := &socketPool{guest: g, family: family, log: log, ctx: ctx, wake: make(chan struct{}, 1)}
	if size > 0 {
		s.free = make(chan *os.File, size)
	}
	return s
}

func (s *socketPool) get(ctx context.Context) (*os.File, error) {
	if s.free != nil {
		s.once.Do(func() { s.wg.Go(s.fill) })
		select {
		case s.wake <- struct{}{}:
		default:
		}
		select {
		case f := <-s.free:
			return f, nil
		default:
		}
	}
	return s.guest.Socket(ctx, s.family, unix.SOCK_STREAM)
}

func (s *socketPool) fill() {
	for {
		select {
		case <-s.wake:
		case <-s.ctx.Done():
			return
		}
		for len(s.free) < cap(s.free) && s.ctx.Err() == nil {
			f, err := s.guest.Socket(s.ctx, s.family, unix.SOCK_STREAM)
			if err != nil {
				// The next get makes its own socket and reports its error.
				s.log.Debug("make guest sockets in advance", "err", err)
				break
			}
			s.free <- f // this goroutine is the only sender, so there is room
		}
	}
}

// close is called after the context's end. The sockets hold the guest's network
// namespace, so none may stay.
func (s *socketPool) close() {
	s.once.Do(func() {}) // a get from now on starts nothing
	s.wg.Wait()
	for {
		select {
		case f := <-s.free:
			f.Close()
		default:
			return
		}
	}
}
