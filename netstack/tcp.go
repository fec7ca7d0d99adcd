package netstack

import (
	"math"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// tcpGateway turns SYNs into host connections. The order is
//
//	handle (reader)    policy, bounds, the copy of the SYN that an ICMP error needs
//	work (a worker)    connect on the host, then finish the guest's handshake
//	relay              until both directions have ended
//
// The host is dialled first, so that the guest sees the host's answer. gVisor's
// forwarder has one bound for all and drops what exceeds it in silence; it is
// set out of the way, and the bound is ours, per port: a black hole delays
// nobody else.
type tcpGateway struct {
	net *Network
	fwd *tcp.Forwarder

	mu      sync.Mutex
	pending map[stack.TransportEndpointID]*dialAttempt
}

// dialAttempt is a SYN whose connection is not established yet.
type dialAttempt struct {
	port     *Port
	src, dst netip.AddrPort
	verdict  verdict
	syn      []byte // its IP datagram, without payload

	gateway *tcpGateway
	request *tcp.ForwarderRequest
}

func (g *tcpGateway) init(n *Network, s *stack.Stack) {
	g.net = n
	g.pending = map[stack.TransportEndpointID]*dialAttempt{}
	g.fwd = tcp.NewForwarder(s, tcpBufMax, math.MaxInt, g.accept)
}

// reopen ends what is left of a connection whose tuple a guest uses again: while the
// gateway, which was told of the end first, is in TIME_WAIT. gVisor gives such a SYN to
// a listening endpoint or to nobody (RFC 1122, 4.2.2.13), and none listens here: the
// guest would ask again after a second, and after another one. An older SYN of its own
// cannot be under way on a link that keeps the order.
func (g *tcpGateway) reopen(ip *packet) {
	l4 := ip.l4()
	if len(l4) < header.TCPMinimumSize || ip.frag || header.TCP(l4).Flags()&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) != header.TCPFlagSyn {
		return
	}
	proto := header.IPv4ProtocolNumber
	if ip.v6() {
		proto = header.IPv6ProtocolNumber
	}
	ep := g.net.stack.FindTransportEndpoint(proto, tcp.ProtocolNumber, stack.TransportEndpointID{
		LocalPort: header.TCP(l4).DestinationPort(), LocalAddress: tcpip.AddrFromSlice(ip.dst.AsSlice()),
		RemotePort: header.TCP(l4).SourcePort(), RemoteAddress: tcpip.AddrFromSlice(ip.src.AsSlice()),
	}, nicID)
	if ep, ok := ep.(*tcp.Endpoint); ok && ep.EndpointState() == tcp.StateTimeWait {
		ep.Abort()
	}
}

// handle gets each segment that belongs to no connection. It runs on the
// reader of the port the segment came from. False makes gVisor answer with a
// RST.
func (g *tcpGateway) handle(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.TCP(pkt.TransportHeader().Slice())
	if len(h) < header.TCPMinimumSize || h.Flags()&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) != header.TCPFlagSyn {
		return false
	}
	src, dst := addrPort(id.RemoteAddress, id.RemotePort), addrPort(id.LocalAddress, id.LocalPort)
	p := g.net.member(src.Addr())
	if p == nil {
		return true // detached meanwhile
	}
	syn := append(append([]byte{}, pkt.NetworkHeader().Slice()...), h...)
	a := &dialAttempt{port: p, src: src, dst: dst, verdict: p.check(dst), syn: syn, gateway: g}
	if a.verdict == closed {
		return false
	}
	if p.refuse(a.verdict, src.Addr(), dst.Addr(), syn) {
		return true
	}

	g.mu.Lock()
	if _, again := g.pending[id]; again {
		g.mu.Unlock()
		return true
	}
	g.mu.Unlock()
	// Only this port's reader adds this id, so the gap is harmless.
	if d := p.flows.beginDial(p); d >= 0 {
		p.count.drop(d)
		return true
	}
	p.reader.account.charge(costDial)
	g.mu.Lock()
	g.pending[id] = a
	g.mu.Unlock()
	if !g.fwd.HandlePacket(id, pkt) {
		g.forget(id, a)
		return false
	}
	return true
}

// forget ends an attempt, whatever became of it.
func (g *tcpGateway) forget(id stack.TransportEndpointID, a *dialAttempt) {
	g.mu.Lock()
	delete(g.pending, id)
	g.mu.Unlock()
	a.port.flows.endDial(a.port)
}

// accept runs on a goroutine of its own for each attempt, whose stack would have
// to grow: a worker has done that before.
func (g *tcpGateway) accept(r *tcp.ForwarderRequest) {
	g.mu.Lock()
	a := g.pending[r.ID()]
	g.mu.Unlock()
	a.request = r
	if !a.port.workers.start(a) {
		r.Complete(false)
		g.forget(r.ID(), a)
	}
}

// work implements job.
func (a *dialAttempt) work(*worker) {
	p, g := a.port, a.gateway
	p.wg.Add(1) // beginDial holds the group open
	defer p.wg.Done()

	if a.verdict == service {
		if f := a.establish(nil); f != nil {
			p.serveDNSConn(f)
		}
		return
	}
	host, err := g.dial(p, a)
	if err != nil {
		v6 := a.dst.Addr().Is6()
		reset := refused(err)
		if u, ok := explain(err, v6); ok && !reset {
			p.sendError(g.net.gateway(v6), a.src.Addr(), u, a.syn)
		}
		id := a.request.ID()
		a.request.Complete(reset)
		g.forget(id, a)
		return
	}
	if f := a.establish(host); f != nil {
		p.relay(f)
	}
}

// establish finishes the guest's handshake. host, if not nil, is reset when
// that fails.
func (a *dialAttempt) establish(host *hostConn) *tcpFlow {
	f := &tcpFlow{host: host}
	id := a.request.ID()
	ep, err := a.request.CreateEndpoint(&f.wq)
	a.request.Complete(false)
	a.gateway.forget(id, a)
	if err != nil {
		if host != nil {
			host.reset()
		}
		return nil
	}
	f.ep = ep
	return f
}

// dial connects on the host.
func (g *tcpGateway) dial(p *Port, a *dialAttempt) (*hostConn, error) {
	targets, err := g.net.targets("tcp", a.verdict, a.src, a.dst)
	if err != nil {
		return nil, err
	}
	var first error
	for _, t := range targets {
		c, err := dialHost(p.ctx, &p.hosts, &g.net.cfg, t)
		if err == nil {
			return c, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// abortHandshakes ends the guest's side of a port's attempts; the host's side
// ends with the port's context.
func (g *tcpGateway) abortHandshakes(p *Port) {
	var ids []stack.TransportEndpointID
	g.mu.Lock()
	for id, a := range g.pending {
		if a.port == p {
			ids = append(ids, id)
		}
	}
	g.mu.Unlock()
	for _, id := range ids {
		proto := header.IPv4ProtocolNumber
		if id.LocalAddress.Len() == 16 {
			proto = header.IPv6ProtocolNumber
		}
		if ep := g.net.stack.FindTransportEndpoint(proto, tcp.ProtocolNumber, id, nicID); ep != nil {
			ep.Abort()
		}
	}
}

func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	ip, _ := netip.AddrFromSlice(a.AsSlice()) // always 4 or 16 bytes
	return netip.AddrPortFrom(ip, port)
}

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

// Keep-alive on both sides: an idle connection lives while both ends do, and
// middle boxes on the way keep it in mind.
const (
	keepAliveIdle     = 60 * time.Second
	keepAliveInterval = 15 * time.Second
	keepAliveCount    = 8
)
