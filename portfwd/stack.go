package portfwd

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Stack is the gateway stack of the guest's network. Both methods take the
// address that the guest shall see as the client's, and the guest's.
type Stack interface {
	// ForwardTCP connects to dst and relays until both directions end; then it has
	// closed host. It ends early when ctx does. An error says that dst could not be
	// connected to, and leaves host as it was; it wraps ECONNREFUSED if dst refuses.
	ForwardTCP(ctx context.Context, host *net.TCPConn, src, dst netip.AddrPort) error
	// OpenUDP makes a flow. reply is called for what dst sends, in the form that
	// UDPFlow.Send takes; it does not block nor keep the slices.
	OpenUDP(src, dst netip.AddrPort, reply func(segment int, pieces ...[]byte)) (UDPFlow, error)
}

// UDPFlow is one client's datagrams towards the guest. Send takes one datagram
// in pieces or, if segment is not zero, as many as result from cutting them each
// segment bytes; it does not keep the slices. UDPFlow is an alias so that a Stack
// need not import this package.
type UDPFlow = interface {
	Send(segment int, pieces ...[]byte) error
	Close() error
}

// route is a way through the stack: the client's address as the guest sees it, and
// the guest's.
type route struct{ src, dst netip.AddrPort }

// viaStack is the best of routes.
func (p *published) viaStack(client netip.AddrPort, local netip.Addr) (src, dst netip.AddrPort, ok bool) {
	r := p.routes(client, func() netip.Addr { return local })
	if len(r) == 0 {
		return src, dst, false
	}
	return r[0].src, r[0].dst, true
}

// routes returns the ways of a connection or flow through the stack, the best
// first; none if it goes the direct way.
func (p *published) routes(client netip.AddrPort, local func() netip.Addr) []route {
	m := p.m
	switch m.cfg.Driver {
	case DriverStack:
	case "", DriverAuto:
		if m.cfg.Stack == nil || m.locals.has(client.Addr(), local) {
			return nil
		}
		if p.childIP.IsValid() && p.childIP != m.cfg.Guest.Addr4() && p.childIP != m.cfg.Guest.Addr6() {
			return nil // an address inside the guest that its link does not lead to
		}
	default:
		return nil
	}
	var out []route
	for _, dst := range p.targets(client.Addr()) {
		if src := m.visibleSource(client, dst.Addr()); src.IsValid() {
			out = append(out, route{src, dst})
		}
	}
	return out
}

// visibleSource is the client's address as the guest sees it: its own, or, where
// the guest could not answer that one through the gateway, the gateway's with
// the client's port. Invalid if there is no gateway of that family.
func (m *manager) visibleSource(client netip.AddrPort, guest netip.Addr) netip.AddrPort {
	a := client.Addr()
	usable := a.Is4() == guest.Is4() && !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLinkLocalUnicast() &&
		a != m.cfg.Guest.Addr4() && a != m.cfg.Guest.Addr6() && a != m.cfg.Gateway4 && a != m.cfg.Gateway6
	for _, n := range m.cfg.Subnets {
		usable = usable && !n.Contains(a)
	}
	if usable {
		return client
	}
	gw := m.cfg.Gateway4
	if guest.Is6() {
		gw = m.cfg.Gateway6
	}
	if !gw.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(gw, client.Port())
}

// localAddrs knows the addresses of this host. For a client among them there is
// no address worth keeping, so auto takes the faster way.
type localAddrs struct {
	mu    sync.Mutex // guards what follows
	known map[netip.Addr]bool
	until time.Time
}

// localTTL is how long a changed address may be treated as it was.
const localTTL = 2 * time.Second

// has says whether client is on this host; local returns the address it talks to.
func (l *localAddrs) has(client netip.Addr, local func() netip.Addr) bool {
	client = client.WithZone("")
	if client.IsLoopback() || client == local().WithZone("") {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.After(l.until) {
		l.until = now.Add(localTTL)
		l.known = map[netip.Addr]bool{}
		// On failure nothing is known as local, and the client's address is kept.
		addrs, _ := net.InterfaceAddrs()
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok {
					l.known[ip.Unmap()] = true
				}
			}
		}
	}
	return l.known[client]
}
