package portfwd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"golang.org/x/sys/unix"
)

const (
	familyInet  = unix.AF_INET
	familyInet6 = unix.AF_INET6

	portStartSysctl = "net.ipv4.ip_unprivileged_port_start"
	// randomTries bounds the search for a port that is free for IPv4 and IPv6.
	randomTries = 64
	// nearTries bounds the search for a port to suggest.
	nearTries = 64
)

// bindAll binds every address of a spec, all with the same port. A family that
// this host's kernel does not have is left out of a wildcard.
func (m *manager) bindAll(ctx context.Context, spec Spec, hostIP netip.Addr) ([]boundSocket, error) {
	addrs := families(spec.Proto, hostIP)
	next := spec.Spec
	for try := 0; ; try++ {
		var socks []boundSocket
		at, err := netip.AddrPortFrom(addrs[0], uint16(next.ParentPort)), error(syscall.EADDRINUSE)
		if _, own := m.clash(Spec{Spec: next}); !own {
			socks, at, err = m.bindOnce(ctx, next, addrs)
		}
		if err == nil {
			return socks, nil
		}
		if errors.Is(err, syscall.EADDRINUSE) && ctx.Err() == nil {
			// A random port that IPv4 gave may be taken for IPv6: take another.
			if spec.ParentPort == 0 && try < randomTries {
				continue
			}
			if next.ParentPort < spec.ParentEnd {
				next.ParentPort++
				continue
			}
			if spec.ParentEnd != 0 {
				at = netip.AddrPortFrom(at.Addr(), uint16(spec.ParentPort))
				return nil, &ErrPortInUse{Proto: transport(spec.Proto), Addr: at, Last: uint16(spec.ParentEnd)}
			}
		}
		return nil, m.explain(transport(spec.Proto), at, err)
	}
}

// bindOnce also says where it failed.
func (m *manager) bindOnce(ctx context.Context, spec port.Spec, addrs []netip.Addr) (socks []boundSocket, at netip.AddrPort, err error) {
	defer func() {
		if err != nil {
			for _, s := range socks {
				s.close()
			}
			socks = nil
		}
	}()
	num := uint16(spec.ParentPort)
	var missing error
	for _, a := range addrs {
		ap := netip.AddrPortFrom(a, num)
		s, err := m.bindOne(ctx, spec, ap)
		if err != nil {
			if len(addrs) > 1 && noSuchFamily(err) {
				missing = err
				continue
			}
			return socks, ap, err
		}
		socks = append(socks, s)
		num = s.localPort()
	}
	if len(socks) == 0 {
		return nil, netip.AddrPortFrom(addrs[0], num), missing
	}
	return socks, netip.AddrPort{}, nil
}

func (m *manager) bindOne(ctx context.Context, spec port.Spec, ap netip.AddrPort) (boundSocket, error) {
	if m.builtin != nil {
		return m.builtin.bind(ctx, spec, ap, m.cfg.Guest)
	}
	if transport(spec.Proto) == "udp" {
		return listenUDP(ctx, ap)
	}
	return listenTCP(ctx, ap, m.lim.Backlog)
}

func noSuchFamily(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

// network gives Go's name for a socket of one family; Go sets IPV6_V6ONLY for "6".
func network(transport string, a netip.Addr) string {
	if a.Is4() {
		return transport + "4"
	}
	return transport + "6"
}

// listenTCP listens with SO_REUSEADDR, as Go always does: that only skips
// connections in TIME_WAIT, a listener on the wildcard or on a specific address
// still makes the other fail.
//
// What is set here, each accepted socket inherits.
func listenTCP(ctx context.Context, ap netip.AddrPort, backlog int) (*tcpSocket, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // the kernel splices plain TCP only
	l, err := lc.Listen(ctx, network("tcp", ap.Addr()), ap.String())
	if err != nil {
		return nil, err
	}
	ln := l.(*net.TCPListener)
	defer ln.Close()
	s := &tcpSocket{port: ln.Addr().(*net.TCPAddr).AddrPort().Port(), tuned: ap.Addr().IsLoopback()}
	if err := control(ln, func(fd int) error {
		if s.tuned {
			tuneLoopback(fd)
		}
		for _, o := range acceptedOptions {
			if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
				return os.NewSyscallError("setsockopt", err)
			}
		}
		// A second listen(2) sets the backlog, which Go takes from somaxconn.
		return os.NewSyscallError("listen", unix.Listen(fd, backlog))
	}); err != nil {
		return nil, err
	}
	if s.ln, err = ln.File(); err != nil {
		return nil, err
	}
	return s, nil
}

// acceptedOptions: a splice is what the sender wrote, with nothing to wait for,
// and a client that vanished is found as with Go's own defaults.
var acceptedOptions = []struct{ level, name, value int }{
	{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
	{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
	{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
	{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
	{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
}

// listenUDP binds without SO_REUSEADDR, with which a second socket would
// silently share the port, and asks for the address that each client talked to.
func listenUDP(ctx context.Context, ap netip.AddrPort) (*udpSocket, error) {
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, network("udp", ap.Addr()), ap.String())
	if err != nil {
		return nil, err
	}
	uc := pc.(*net.UDPConn)
	err = control(uc, func(fd int) error {
		if ap.Addr().Is4() {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	})
	if err != nil {
		uc.Close()
		return nil, os.NewSyscallError("setsockopt PKTINFO", err)
	}
	return newUDPSocket(uc)
}

func control(c syscall.Conn, f func(fd int) error) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := rc.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// explain turns a failed bind into the typed error that tells the user what to do.
func (m *manager) explain(proto string, ap netip.AddrPort, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		e := &ErrPortInUse{Proto: proto, Addr: ap}
		if ap.Port() != 0 {
			e.Owner, e.OwnerPID = findOwner(proto, ap)
			e.Free = m.freePort(proto, ap)
		}
		return e
	case errors.Is(err, syscall.EACCES):
		start, rerr := unprivilegedPortStart()
		if rerr != nil {
			return fmt.Errorf("publish %s: %w (and %v)", addrText(proto, ap), err, rerr)
		}
		if int(ap.Port()) >= start {
			break // not about the port number: a security module, say
		}
		return &ErrPrivilegedPort{Proto: proto, Addr: ap, Start: start, Free: m.freePort(proto, ap)}
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return &ErrNoSuchAddress{Proto: proto, Addr: ap}
	}
	return fmt.Errorf("publish %s: %w", addrText(proto, ap), err)
}

func unprivilegedPortStart() (int, error) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// freePort looks for a port to suggest in place of ap's: the next free one, for
// a privileged port the usual 8080, 8443, 8022.
func (m *manager) freePort(proto string, ap netip.AddrPort) uint16 {
	from := int(ap.Port()) + 1
	if ap.Port() < 1024 {
		from = int(ap.Port()) + 8000
	}
	if start, err := unprivilegedPortStart(); err == nil && from < start {
		from = start
	}
	for p := from; p < from+nearTries && p <= 65535; p++ {
		if canBind(proto, netip.AddrPortFrom(ap.Addr(), uint16(p))) {
			return uint16(p)
		}
	}
	return 0
}

func canBind(proto string, ap netip.AddrPort) bool {
	if proto == "udp" {
		s, err := listenUDP(context.Background(), ap)
		if err != nil {
			return false
		}
		return s.close() == nil
	}
	s, err := listenTCP(context.Background(), ap, 1)
	if err != nil {
		return false
	}
	return s.close() == nil
}
