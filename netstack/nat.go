package netstack

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rootless-sbx/sbx/internal/dgram"
)

// pingTimeout ends an idle echo identifier.
const pingTimeout = 30 * time.Second

// maxPeersFactor times Limits.UDPPeers is the bound of a port's peers.
const maxPeersFactor = 8

// natTable are a port's mappings: guest source ports and echo identifiers.
type natTable struct {
	mu     sync.RWMutex
	udp    map[netip.AddrPort]*mapping
	ping   map[netip.AddrPort]*mapping
	closed bool
	peers  atomic.Int64 // of all mappings
}

// mapping is one guest source (address and port, or echo identifier) and its
// host sockets, at most one of each family. It is independent of the
// destination, but lets only hosts answer that the guest has written to
// (RFC 4787: endpoint-independent mapping, address-dependent filtering).
type mapping struct {
	port  *Port
	src   netip.AddrPort
	proto uint8 // of the host sockets: UDP, ICMP or ICMPv6
	used  dgram.LastUse

	mu     sync.Mutex // guards the rest; taken before hostSocket.mu
	closed bool
	socks  [2]*hostSocket
	// peers by the address the guest uses; byReal those that Redirect or
	// HostPorts lead elsewhere; addrs the hosts that may answer from any port.
	peers  map[netip.AddrPort]*peer
	byReal map[netip.AddrPort]*peer
	addrs  map[netip.Addr]int
	dns    bool // so far every peer is a name server
}

// peer is a destination of a mapping.
type peer struct {
	visible, real netip.AddrPort
	used          time.Time
	// retry is the first datagram to a host port, unless it is large: it goes to
	// [::1] if 127.0.0.1 refuses it.
	retry []byte
}

func (t *natTable) init() {
	t.udp, t.ping = map[netip.AddrPort]*mapping{}, map[netip.AddrPort]*mapping{}
}

func (t *natTable) len() (udp, ping int) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.udp), len(t.ping)
}

func (t *natTable) table(proto uint8) map[netip.AddrPort]*mapping {
	if proto == protoUDP {
		return t.udp
	}
	return t.ping
}

func (t *natTable) find(proto uint8, src netip.AddrPort) *mapping {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.table(proto)[src]
}

// get returns the mapping of a source, a new one if need be; nil if there are
// too many. Only the port's reader calls it.
func (t *natTable) get(p *Port, proto uint8, src netip.AddrPort) *mapping {
	if m := t.find(proto, src); m != nil {
		return m
	}
	limit := p.net.cfg.Limits.UDPFlows
	if proto != protoUDP {
		limit = p.net.cfg.Limits.Pings
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || len(t.table(proto)) >= limit {
		return nil
	}
	m := &mapping{
		port: p, src: src, proto: proto, dns: true,
		peers: map[netip.AddrPort]*peer{}, byReal: map[netip.AddrPort]*peer{}, addrs: map[netip.Addr]int{},
	}
	m.used.Set(time.Now())
	t.table(proto)[src] = m
	return m
}

// remove ends one mapping.
func (t *natTable) remove(m *mapping) {
	t.mu.Lock()
	if t.table(m.proto)[m.src] == m {
		delete(t.table(m.proto), m.src)
	}
	t.mu.Unlock()
	m.port.flowsChanged()
	m.close()
}

// expire ends idle mappings.
func (t *natTable) expire(p *Port, now time.Time) {
	lim := &p.net.cfg.Limits
	var idle []*mapping
	t.mu.RLock()
	for _, table := range []map[netip.AddrPort]*mapping{t.udp, t.ping} {
		for _, m := range table {
			timeout := lim.UDPTimeout
			switch {
			case m.proto != protoUDP:
				timeout = pingTimeout
			case m.onlyDNS():
				timeout = lim.UDPTimeoutDNS
			}
			if m.used.Ago(now) > timeout {
				idle = append(idle, m)
			}
		}
	}
	t.mu.RUnlock()
	for _, m := range idle {
		t.remove(m)
	}
}

func (t *natTable) close() {
	t.mu.Lock()
	all := []map[netip.AddrPort]*mapping{t.udp, t.ping}
	t.closed = true
	t.init()
	t.mu.Unlock()
	for _, table := range all {
		for _, m := range table {
			m.close()
		}
	}
}

func (m *mapping) onlyDNS() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dns
}

func (m *mapping) close() {
	m.mu.Lock()
	if !m.closed {
		m.port.nat.peers.Add(-int64(len(m.peers)))
	}
	m.closed = true
	socks := m.socks
	m.mu.Unlock()
	// Without the lock: close waits for serve, which may be about to take it.
	for _, s := range socks {
		if s != nil {
			s.close()
		}
	}
}

// lookup returns a destination that the guest has used before.
func (m *mapping) lookup(dst netip.AddrPort) *peer {
	m.mu.Lock()
	defer m.mu.Unlock()
	pr := m.peers[dst]
	if pr != nil {
		pr.used = time.Now()
	}
	return pr
}

// addPeer adds a destination; nil if there are too many.
func (m *mapping) addPeer(dst, real netip.AddrPort) *peer {
	m.mu.Lock()
	defer m.mu.Unlock()
	limit, t := m.port.net.cfg.Limits.UDPPeers, &m.port.nat
	full := len(m.peers) >= limit || t.peers.Load() >= maxPeersFactor*int64(limit)
	if m.closed || full && !m.dropIdlePeers() {
		return nil
	}
	t.peers.Add(1) // by the port's reader alone
	pr := &peer{visible: dst, real: real, used: time.Now()}
	m.peers[dst] = pr
	if real != dst {
		m.byReal[real] = pr
	} else {
		m.addrs[dst.Addr()]++
	}
	m.dns = m.dns && dst.Port() == 53
	return pr
}

// dropIdlePeers makes room. m.mu is held.
func (m *mapping) dropIdlePeers() bool {
	limit := time.Now().Add(-m.port.net.cfg.Limits.UDPTimeout)
	room := false
	for dst, pr := range m.peers {
		if pr.used.After(limit) {
			continue
		}
		room = true
		m.port.flowsChanged()
		delete(m.peers, dst)
		m.port.nat.peers.Add(-1)
		if m.byReal[pr.real] == pr {
			delete(m.byReal, pr.real)
		} else if m.addrs[dst.Addr()]--; m.addrs[dst.Addr()] <= 0 {
			delete(m.addrs, dst.Addr())
		}
	}
	return room
}

// seenAs is the address under which the guest knows a host that sends to it.
func (m *mapping) seenAs(from netip.AddrPort) (netip.AddrPort, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if pr := m.byReal[from]; pr != nil {
		pr.retry = nil
		return pr.visible, true
	}
	return from, m.addrs[from.Addr()] > 0
}

// socket returns the mapping's socket of a family, a new one if need be.
func (m *mapping) socket(v6 bool) (*hostSocket, error) {
	i := 0
	if v6 {
		i = 1
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.socks[i]; s != nil || m.closed {
		return s, nil
	}
	s, err := m.port.net.newHostSocket(m.proto, v6)
	if err != nil {
		return nil, err
	}
	m.socks[i] = s
	m.port.wg.Add(1) // by the reader or by another socket's goroutine: both are counted
	go func() {
		defer m.port.wg.Done()
		m.serve(s)
	}()
	return s, nil
}
