package portfwd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The way of a TCP connection, in the order of the functions below: accepted,
// within the limits, sent the direct way or through the stack. It stays a bare
// descriptor until the stack needs more: the runtime would poll it, too, and be
// woken by every byte.

// tcpSocket is one listening socket.
type tcpSocket struct {
	ln   *os.File // the runtime waits for connections on it
	port uint16
	// tuned says that the sockets accepted here are set up by tuneLoopback.
	tuned bool
}

func (s *tcpSocket) localPort() uint16 { return s.port }
func (s *tcpSocket) close() error      { return s.ln.Close() }

func (s *tcpSocket) start(p *published) { p.wg.Go(func() { s.acceptAll(p) }) }

// acceptAll takes connections until the listener is closed. When the process is
// out of descriptors it waits, and the clients wait in the backlog.
func (s *tcpSocket) acceptAll(p *published) {
	const minWait, maxWait = 5 * time.Millisecond, time.Second
	wait := minWait
	rc, err := s.ln.SyscallConn()
	if err != nil {
		return // closed already
	}
	for {
		fd, client, err := accept(rc)
		if err != nil {
			if p.ctx.Err() != nil {
				return
			}
			p.m.count.acceptErrors.Add(1)
			if errors.Is(err, syscall.ECONNABORTED) {
				continue
			}
			p.m.cfg.Logger.Warn("accept on a published port", "port", p.String(), "err", err, "retry_in", wait)
			select {
			case <-time.After(wait):
			case <-p.ctx.Done():
				return
			}
			wait = min(2*wait, maxWait)
			continue
		}
		wait = minWait
		p.m.count.accepted.Add(1)
		if !take(&p.m.count.conns, 1, int64(p.m.lim.Conns)) {
			p.m.count.overLimit.Add(1)
			resetFD(fd)
			continue
		}
		select {
		case p.dials <- struct{}{}:
		case <-p.ctx.Done():
			resetFD(fd)
			p.m.count.conns.Add(-1)
			return
		}
		p.wg.Add(1)
		p.serve(fd, client, s.tuned)
	}
}

func accept(rc syscall.RawConn) (fd int, client netip.AddrPort, err error) {
	var sa unix.Sockaddr
	werr := rc.Read(func(ln uintptr) bool {
		for {
			fd, sa, err = unix.Accept4(int(ln), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	if werr != nil {
		return -1, client, werr
	}
	return fd, addrPort(sa), os.NewSyscallError("accept4", err)
}

// addrPort is the address of a client; an IPv4 address as such.
func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(a.Addr)
		if a.ZoneId != 0 {
			ip = ip.WithZone(fmt.Sprint(a.ZoneId))
		}
		return netip.AddrPortFrom(ip.Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

func localOf(fd int) netip.Addr {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.Addr{} // not asked for again: the client is gone
	}
	return addrPort(sa).Addr()
}

// serve begins to carry a connection. It comes with a dial slot and a place in
// p.wg and in the count of connections, and mostly is under way on return.
func (p *published) serve(fd int, client netip.AddrPort, tuned bool) {
	if routes := p.routes(client, func() netip.Addr { return localOf(fd) }); len(routes) > 0 {
		<-p.dials // the stack bounds its own dials
		go func() {
			p.failed(client, p.forward(fd, routes))
			p.over()
		}()
		return
	}
	if !tuned && client.Addr().IsLoopback() {
		tuneLoopback(fd)
	}
	d := &guestDial{p: p, left: p.targets(client.Addr()), fd: -1}
	guest, err := d.run(p.ctx, false)
	if err != errNotYet {
		p.direct(fd, guest, client, err)
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(p.ctx, p.m.lim.DialTimeout)
		defer cancel()
		guest, err := d.run(ctx, true)
		p.direct(fd, guest, client, err)
	}()
}

// direct hands a client's and a guest's socket to the loop.
func (p *published) direct(fd, guest int, client netip.AddrPort, err error) {
	<-p.dials
	if err != nil {
		p.failed(client, err)
		resetFD(fd)
		p.over()
		return
	}
	c := &p.m.count
	pr := &pair{pipes: p.m.pipes, fd: [2]int{fd, guest}, moved: [2]*atomic.Uint64{&c.bytesIn, &c.bytesOut}}
	stop := context.AfterFunc(p.ctx, pr.kill)
	pr.ended = func() {
		stop()
		p.over()
	}
	c.direct.Add(1)
	if err := p.m.carry(pr); err != nil {
		p.failed(client, err)
	}
}

// forward sends a connection through the stack, to the first route that the
// guest does not refuse.
func (p *published) forward(fd int, routes []route) error {
	p.m.count.stacked.Add(1)
	f := os.NewFile(uintptr(fd), "client")
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return err
	}
	host := c.(*net.TCPConn)
	var first error
	for _, r := range routes {
		err := p.m.cfg.Stack.ForwardTCP(p.ctx, host, r.src, r.dst)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
	}
	host.SetLinger(0) // fails only on a connection that is gone already
	host.Close()
	return first
}

// over is the end of each connection that serve was called for.
func (p *published) over() {
	p.m.count.conns.Add(-1)
	p.wg.Done()
}

// failed counts and logs why a connection did not come about.
func (p *published) failed(client netip.AddrPort, err error) {
	switch {
	case err == nil || p.ctx.Err() != nil:
		return
	case errors.Is(err, syscall.ECONNREFUSED):
		p.m.count.refused.Add(1)
	default:
		p.m.count.dialErrors.Add(1)
	}
	p.m.cfg.Logger.LogAttrs(context.Background(), slog.LevelDebug, "published port: connection failed",
		slog.String("port", p.String()), slog.Any("client", client), slog.Any("err", err))
}

// loopbackCongestion is the congestion control for clients on the loopback, empty
// if the host's own is good there: bbr's paced sending costs a third on a path
// without loss.
var loopbackCongestion = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	if err != nil || len(b) < 3 || string(b[:3]) != "bbr" {
		return ""
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	for _, cc := range []string{"cubic", "reno"} {
		if unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, cc) == nil {
			return cc
		}
	}
	return "" // tcp_allowed_congestion_control has neither
})

// localReceive is the receive buffer towards peers without a network between; the
// kernel doubles it. Left to itself it grows to tcp_rmem's maximum, often 32 MiB
// for each connection that stalls.
const localReceive = 2 << 20

// boundReceive sets it, unless rmem_max would make far less of it.
func boundReceive(fd int) {
	if receiveAllowed() {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, localReceive)
	}
}

var receiveAllowed = sync.OnceValue(func() bool {
	b, err := os.ReadFile("/proc/sys/net/core/rmem_max")
	if err != nil {
		return false
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	return err == nil && n >= localReceive
})

// tuneLoopback sets up the socket of a client on the loopback, or a listener for
// such. A failure leaves a connection that works.
func tuneLoopback(fd int) {
	boundReceive(fd)
	if cc := loopbackCongestion(); cc != "" {
		unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, cc)
	}
}
