package netstack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"syscall"
)

// readErrors passes the entries of a socket's error queue on to the guest. It
// returns false if there were none.
func (m *mapping) readErrors(s *hostSocket) bool {
	any := false
	// Control keeps the descriptor open; it fails when it is closed already.
	_ = s.raw.Control(func(fd uintptr) {
		for {
			e, ok := s.readError(int(fd))
			if !ok {
				return
			}
			any = true
			m.reportError(s, &e)
		}
	})
	return any
}

// reportError tells the guest what became of a datagram of its own.
func (m *mapping) reportError(s *hostSocket, e *hostError) {
	p, v6 := m.port, m.src.Addr().Is6()
	visible, ok := m.peerOf(e.to)
	if !ok || m.tryLoopback6(e) {
		return
	}
	gw := p.net.gateway(v6)
	u, from := e.what, gw
	switch {
	case e.icmp && s.v6 == v6 && relayable(u, v6):
		if e.offender == e.to.Addr() {
			from = visible.Addr()
		} else if e.offender.Is6() == v6 && outside(e.offender) == allow {
			from = e.offender
		}
	case e.icmp && errors.Is(e.errno, syscall.EMSGSIZE):
		u = errTooBig(v6, uint32(mtuInFamily(int(e.what.info), s.v6, v6)))
	default:
		// EMSGSIZE is none of them: what the host itself finds too big is
		// tooBig's business.
		var known bool
		if u, known = explain(e.errno, v6); !known {
			return
		}
		if errors.Is(e.errno, syscall.ECONNREFUSED) {
			from = visible.Addr()
		}
	}
	p.sendError(from, m.src.Addr(), u, m.cause(visible, e.data))
}

// peerOf is seenAs for a destination.
func (m *mapping) peerOf(to netip.AddrPort) (netip.AddrPort, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if pr := m.byReal[to]; pr != nil {
		return pr.visible, true
	}
	_, ok := m.peers[to]
	return to, ok
}

// relayable tells whether an ICMP error says something about a datagram.
func relayable(u unreachable, v6 bool) bool {
	if v6 {
		return u.typ >= 1 && u.typ <= 4
	}
	return u.typ == 3 || u.typ == 11 || u.typ == 12
}

// tryLoopback6 sends the first datagram to a host port to [::1] after
// 127.0.0.1 refused it.
func (m *mapping) tryLoopback6(e *hostError) bool {
	if !errors.Is(e.errno, syscall.ECONNREFUSED) {
		return false
	}
	m.mu.Lock()
	pr := m.byReal[e.to]
	if pr == nil || pr.retry == nil || !pr.real.Addr().Is4() {
		m.mu.Unlock()
		return false
	}
	data := pr.retry
	delete(m.byReal, pr.real)
	pr.real, pr.retry = hostLoopback(pr.visible.Port())[1], nil
	m.byReal[pr.real] = pr
	real := pr.real
	m.mu.Unlock()
	s, err := m.socket(true)
	return err == nil && s != nil && s.send(real, guestTTL, false, 0, [][]byte{data}) == nil
}

// cause rebuilds the start of the guest's datagram that an error is about.
func (m *mapping) cause(dst netip.AddrPort, data []byte) []byte {
	var l4 [udpLen]byte
	if m.proto == protoUDP {
		binary.BigEndian.PutUint16(l4[0:], m.src.Port())
		binary.BigEndian.PutUint16(l4[2:], dst.Port())
		binary.BigEndian.PutUint16(l4[4:], uint16(udpLen+len(data)))
	} else {
		// An echo request's own header comes first in data.
		l4[0] = echoRequest(m.src.Addr().Is6())
		if len(data) >= icmpLen {
			copy(l4[6:8], data[6:8])
			data = data[icmpLen:]
		}
		binary.BigEndian.PutUint16(l4[4:], m.src.Port())
	}
	b := make([]byte, ip6Len, ip6Len+len(l4)+len(data))
	if dst.Addr().Is6() {
		putIPv6(b, m.src.Addr(), dst.Addr(), m.proto, guestTTL, len(l4)+len(data))
	} else {
		b = b[:ip4Len]
		putIPv4(b, m.src.Addr(), dst.Addr(), m.proto, guestTTL, len(l4)+len(data), 0, 0)
	}
	return append(append(b, l4[:]...), data...)
}
