package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rootless-sbx/sbx/internal/dgram"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// visible is the address under which a guest sees a client of a published
// port: its own, unless the guest could not answer to it.
func (n *Network) visible(client netip.AddrPort, dst netip.Addr) (netip.AddrPort, error) {
	a := client.Addr().Unmap().WithZone("")
	gw := n.gateway(dst.Is6())
	if !gw.IsValid() {
		return netip.AddrPort{}, fmt.Errorf("%w: %s", ErrNoSuchGuest, dst)
	}
	if a.Is6() != dst.Is6() || n.inSubnet(a) || outside(a) != allow {
		a = gw
	}
	return netip.AddrPortFrom(a, client.Port()), nil
}

// ForwardTCP connects to dst, a guest, with src as the source, and relays
// between it and host until both directions have ended; then host is closed. If
// the guest refuses or cannot be reached, the error says why and host is as it
// was, so that another address can be tried; errors after that are passed from
// one side to the other and not returned. ctx bounds the connect and the relay.
func (n *Network) ForwardTCP(ctx context.Context, host *net.TCPConn, src, dst netip.AddrPort) error {
	p, f, err := n.connect(ctx, src, dst)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", dst, err)
	}
	defer p.wg.Done()
	if f.host, err = adoptConn(&p.hosts, host); err != nil {
		f.ep.Abort()
		return fmt.Errorf("connect to %s: %w", dst, err)
	}
	f.done = make(chan struct{})
	p.relay(f)
	stop := context.AfterFunc(ctx, f.abort)
	defer stop()
	<-f.done
	return nil
}

// connect makes a connection to a guest. On success the caller has a place in
// p.wg.
func (n *Network) connect(ctx context.Context, src, dst netip.AddrPort) (*Port, *tcpFlow, error) {
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	p := n.member(dst.Addr())
	if p == nil || !p.gated {
		return nil, nil, ErrNoSuchGuest
	}
	from, err := n.visible(src, dst.Addr())
	if err != nil {
		return nil, nil, err
	}
	if d := p.flows.beginDial(p); d >= 0 {
		p.count.drop(d)
		return nil, nil, ErrTooManyFlows
	}
	f, err := n.dialAs(ctx, p, from, dst)
	if err != nil {
		p.flows.endDial(p)
		return nil, nil, err
	}
	p.wg.Add(1)
	p.flows.endDial(p)
	return p, f, nil
}

// A guest is one hop away: it answers a SYN at once, or something is wrong. One
// whose routes lead its answer to the client elsewhere is silent.
const (
	ownAddressTimeout = 3 * time.Second // two SYNs
	guestDialTimeout  = 15 * time.Second
)

// dialAs connects with the client's address and port if that works: else with
// another port, or with the gateway's address.
func (n *Network) dialAs(ctx context.Context, p *Port, from, dst netip.AddrPort) (*tcpFlow, error) {
	gw := n.gateway(dst.Addr().Is6())
	timeout := ownAddressTimeout
	if from.Addr() == gw {
		timeout = guestDialTimeout
	}
	f, err := n.dialGuest(ctx, p, from, dst, timeout)
	if errors.Is(err, ErrTupleInUse) {
		n.log.Debug("source port of a published connection is taken, using another", "client", from, "guest", dst)
		from = netip.AddrPortFrom(from.Addr(), 0)
		f, err = n.dialGuest(ctx, p, from, dst, timeout)
	}
	silent := errors.Is(err, syscall.ETIMEDOUT) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
	if silent && from.Addr() != gw {
		n.log.Debug("guest does not answer the client, using the gateway's address", "client", from, "guest", dst, "error", err)
		f, err = n.dialGuest(ctx, p, netip.AddrPortFrom(gw, 0), dst, guestDialTimeout)
	}
	return f, err
}

// dialGuest connects one endpoint.
func (n *Network) dialGuest(ctx context.Context, p *Port, src, dst netip.AddrPort, timeout time.Duration) (*tcpFlow, error) {
	netProto := ipv4.ProtocolNumber
	if dst.Addr().Is6() {
		netProto = ipv6.ProtocolNumber
	}
	f := new(tcpFlow)
	ep, terr := n.stack.NewEndpoint(tcp.ProtocolNumber, netProto, &f.wq)
	if terr != nil {
		return nil, stackError(terr)
	}
	// Another client may have the same port, another guest the same client.
	ep.SocketOptions().SetReuseAddress(true)
	ep.SocketOptions().SetReusePort(true)
	if terr := ep.Bind(fullAddress(src)); terr != nil {
		ep.Close()
		return nil, stackError(terr)
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	f.wq.EventRegister(&entry)
	defer f.wq.EventUnregister(&entry)
	terr = ep.Connect(fullAddress(dst))
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		select {
		case <-ready:
			terr = ep.LastError()
		case <-ctx.Done():
			ep.Abort()
			return nil, ctx.Err()
		case <-timer.C:
			ep.Abort()
			return nil, syscall.ETIMEDOUT
		case <-p.ctx.Done():
			ep.Abort()
			return nil, ErrClosed
		}
	}
	if terr != nil {
		ep.Abort()
		return nil, stackError(terr)
	}
	f.ep = ep
	return f, nil
}

// stackError makes an error of gVisor's: an errno where the kernel has one.
func stackError(err tcpip.Error) error {
	switch err.(type) {
	case *tcpip.ErrBadLocalAddress, *tcpip.ErrPortInUse, *tcpip.ErrDuplicateAddress, *tcpip.ErrNoPortAvailable:
		return ErrTupleInUse
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrConnectionReset, *tcpip.ErrConnectionAborted, *tcpip.ErrAborted:
		return syscall.ECONNRESET
	case *tcpip.ErrHostUnreachable, *tcpip.ErrHostDown:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrNetworkUnreachable:
		return syscall.ENETUNREACH
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	}
	return errors.New(err.String())
}

// UDPFlow is one client's datagrams to a guest.
type UDPFlow = interface {
	// Send sends one datagram, whose bytes may be in several pieces, or, if
	// segment is not zero, as many as result from cutting them each segment
	// bytes. It fails with ECONNREFUSED after the guest said that nobody
	// listens. The pieces may be used again when it returns.
	Send(segment int, pieces ...[]byte) error
	// Close ends the flow. A reply that is in progress may still end after it.
	Close() error
}

// forwardTable are the UDP flows to one port that began outside.
type forwardTable struct {
	mu     sync.RWMutex
	flows  map[tuple]*udpForward
	closed bool
}

type tuple struct{ guest, client netip.AddrPort }

type udpForward struct {
	port    *Port
	key     tuple
	reply   func(segment int, pieces ...[]byte)
	refused atomic.Bool
	closed  atomic.Bool
}

// OpenUDP makes a flow from src, a client, to dst, a guest. reply gets the
// guest's answers in the form that Send takes; it must not block nor keep its
// arguments, as it runs on the goroutine that reads the guest's link. The caller
// ends idle flows.
func (n *Network) OpenUDP(src, dst netip.AddrPort, reply func(segment int, pieces ...[]byte)) (UDPFlow, error) {
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	p := n.member(dst.Addr())
	if p == nil || !p.gated {
		return nil, fmt.Errorf("open a UDP flow to %s: %w", dst, ErrNoSuchGuest)
	}
	from, err := n.visible(src, dst.Addr())
	if err != nil {
		return nil, fmt.Errorf("open a UDP flow to %s: %w", dst, err)
	}
	f := &udpForward{port: p, reply: reply}
	if err := p.fwd.add(f, from, dst); err != nil {
		if errors.Is(err, ErrTooManyFlows) {
			p.count.drop(DropUDPFlows)
		}
		return nil, fmt.Errorf("open a UDP flow from %s to %s: %w", from, dst, err)
	}
	return f, nil
}

func (t *forwardTable) init() { t.flows = map[tuple]*udpForward{} }

func (t *forwardTable) find(guest, client netip.AddrPort) *udpForward {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.flows[tuple{guest, client}]
}

// firstEphemeral starts the range of ports that stand in for a client's own.
const firstEphemeral = 49152

// add registers a flow, under another port of the client if its own is taken.
func (t *forwardTable) add(f *udpForward, client, guest netip.AddrPort) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	if len(t.flows) >= f.port.net.cfg.Limits.UDPFlows {
		return ErrTooManyFlows
	}
	f.key = tuple{guest, client}
	if t.flows[f.key] != nil || client.Port() == 0 {
		for port := firstEphemeral; ; port++ {
			if port > 65535 {
				return ErrTupleInUse
			}
			f.key.client = netip.AddrPortFrom(client.Addr(), uint16(port))
			if t.flows[f.key] == nil {
				break
			}
		}
	}
	t.flows[f.key] = f
	f.port.flowsChanged()
	return nil
}

func (t *forwardTable) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for _, f := range t.flows {
		f.closed.Store(true)
	}
	t.init()
}

// Send implements UDPFlow.
func (f *udpForward) Send(segment int, pieces ...[]byte) error {
	n, size := dgram.Count(segment, pieces)
	if n > 1 {
		size = segment
	}
	switch {
	case f.closed.Load():
		return ErrClosed
	case f.refused.Swap(false):
		return syscall.ECONNREFUSED
	case size > maxDatagram:
		return syscall.EMSGSIZE
	}
	f.port.sendUDP(f.key.client, f.key.guest, segment, pieces)
	return nil
}

// Close implements UDPFlow.
func (f *udpForward) Close() error {
	f.closed.Store(true)
	t := &f.port.fwd
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.flows[f.key] == f {
		delete(t.flows, f.key)
		f.port.flowsChanged()
	}
	return nil
}
