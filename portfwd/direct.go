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
	out := make([]netip.AddrPort, 0, 2)
	for _, ip := range []netip.Addr{a, b} {
		if ip.IsValid() {
			out = append(out, netip.AddrPortFrom(ip, num))
		}
	}
	return out
}

// guestDial connects a socket of the guest's namespace to the guest's own
// address, one target after the other.
type guestDial struct {
	p     *published
	left  []netip.AddrPort // the first is being tried if fd >= 0
	fd    int              // -1: none
	first error            // of the first target
}

// errNotYet says that a dial has to wait for something.
var errNotYet = errors.New("not yet")

// run returns the connected socket. Where it has to wait and may not, it returns
// errNotYet, and can be called again. Mostly there is nothing to wait for: inside
// one namespace, connect(2) does the whole handshake.
func (d *guestDial) run(ctx context.Context, wait bool) (fd int, err error) {
	for len(d.left) > 0 {
		dst := d.left[0]
		if d.fd < 0 {
			pool := d.p.m.pools[0]
			if dst.Addr().Is6() {
				pool = d.p.m.pools[1]
			}
			if d.fd, err = pool.get(ctx, wait); err != nil {
				if err != errNotYet {
					err = fmt.Errorf("make a socket in the guest: %w", err)
				}
				return -1, err
			}
		}
		err := tryConnect(d.fd, dst)
		if err == unix.EALREADY {
			if !wait {
				return -1, errNotYet
			}
			d.fd, err = finish(ctx, d.fd, dst)
		}
		fd, d.fd = d.fd, -1
		if err == nil {
			return fd, nil
		}
		if fd >= 0 {
			unix.Close(fd)
		}
		if d.first == nil {
			d.first = fmt.Errorf("connect to the guest at %s: %w", dst, os.NewSyscallError("connect", err))
		}
		d.left = d.left[1:]
		if ctx.Err() != nil {
			break
		}
	}
	return -1, d.first
}

// tryConnect begins a connection or asks how it goes: nil is established, EALREADY
// under way, all else its end.
func tryConnect(fd int, dst netip.AddrPort) error {
	sa := sockaddr(dst)
	for {
		err := unix.Connect(fd, sa)
		if err != unix.EINPROGRESS && err != unix.EINTR {
			return err
		}
	}
}

// finish waits for the end of a connection attempt. It returns another descriptor
// of the same socket, or -1 with an error.
func finish(ctx context.Context, fd int, dst netip.AddrPort) (int, error) {
	f := os.NewFile(uintptr(fd), "guest socket")
	defer f.Close()
	rc, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := f.SetWriteDeadline(deadline); err != nil {
			return -1, fmt.Errorf("the socket is not in non-blocking mode: %w", err)
		}
	}
	stop := context.AfterFunc(ctx, func() { f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var cerr error
	if err := rc.Write(func(fd uintptr) bool {
		cerr = tryConnect(int(fd), dst)
		return cerr != unix.EALREADY
	}); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = unix.ETIMEDOUT
		}
		return -1, err
	}
	if cerr != nil {
		return -1, cerr
	}
	return detach(f)
}

// connect makes a connection of a UDP socket, where there is nothing to wait for.
// It closes f in any case.
func connect(_ context.Context, f *os.File, dst netip.AddrPort) (net.Conn, error) {
	defer f.Close()
	if err := control(f, func(fd int) error { return tryConnect(fd, dst) }); err != nil {
		return nil, fmt.Errorf("connect to the guest at %s: %w", dst, os.NewSyscallError("connect", err))
	}
	return net.FileConn(f)
}

// detach returns a descriptor of the file's that the runtime does not poll.
func detach(f *os.File) (int, error) {
	nfd := -1
	err := control(f, func(fd int) (err error) {
		nfd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		return os.NewSyscallError("fcntl", err)
	})
	return nfd, err
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
	free   chan int      // nil: no pool
	once   sync.Once     // starts fill
	wg     sync.WaitGroup
}

func newSocketPool(ctx context.Context, g Guest, family, size int, log *slog.Logger) *socketPool {
	s := &socketPool{guest: g, family: family, log: log, ctx: ctx, wake: make(chan struct{}, 1)}
	if size > 0 {
		s.free = make(chan int, size)
	}
	return s
}

// get returns a socket; without ctx errNotYet if none is ready.
func (s *socketPool) get(ctx context.Context, wait bool) (int, error) {
	if s.free != nil {
		s.once.Do(func() { s.wg.Go(s.fill) })
		// Half empty, it is filled again at once and not socket by socket.
		if len(s.free) <= cap(s.free)/2 {
			select {
			case s.wake <- struct{}{}:
			default:
			}
		}
		select {
		case fd := <-s.free:
			return fd, nil
		default:
		}
	}
	if !wait {
		return -1, errNotYet
	}
	return s.make(ctx)
}

func (s *socketPool) make(ctx context.Context) (int, error) {
	f, err := s.guest.Socket(ctx, s.family, unix.SOCK_STREAM)
	if err != nil {
		return -1, err
	}
	defer f.Close()
	fd, err := detach(f)
	if err != nil {
		return -1, err
	}
	// A splice is what the sender wrote: nothing to wait for.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("setsockopt TCP_NODELAY", err)
	}
	boundReceive(fd)
	return fd, nil
}

func (s *socketPool) fill() {
	for {
		select {
		case <-s.wake:
		case <-s.ctx.Done():
			return
		}
		for len(s.free) < cap(s.free) && s.ctx.Err() == nil {
			fd, err := s.make(s.ctx)
			if err != nil {
				// The next get makes its own socket and reports its error.
				s.log.Debug("make guest sockets in advance", "err", err)
				break
			}
			s.free <- fd // this goroutine is the only sender, so there is room
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
		case fd := <-s.free:
			unix.Close(fd)
		default:
			return
		}
	}
}
