package netstack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// inputUDP takes a guest's datagram. If segment is not zero, it is several
// that the guest's kernel left for the device to cut.
func (p *Port) inputUDP(ip *packet, segment int) {
	l4 := ip.l4()
	if len(l4) < udpLen {
		p.count.drop(DropMalformed)
		return
	}
	src := netip.AddrPortFrom(ip.src, binary.BigEndian.Uint16(l4))
	dst := netip.AddrPortFrom(ip.dst, binary.BigEndian.Uint16(l4[2:]))
	n := int(binary.BigEndian.Uint16(l4[4:]))
	if n < udpLen || n > ip.l4Size() || src.Port() == 0 || dst.Port() == 0 {
		p.count.drop(DropMalformed)
		return
	}
	ip.trim(ip.hdrLen + n)
	a, b := ip.l4()[udpLen:], ip.tail
	for segment > 0 && len(a)+len(b) > segment {
		var a1, b1 []byte
		a1, b1, a, b = split(a, b, segment)
		p.fromGuest(ip, src, dst, a1, b1)
	}
	p.fromGuest(ip, src, dst, a, b)
}

// split cuts n bytes off the front of two consecutive parts.
func split(a, b []byte, n int) (a1, b1, a2, b2 []byte) {
	if n <= len(a) {
		return a[:n], nil, a[n:], b
	}
	return a, b[:n-len(a)], nil, b[n-len(a):]
}

// fromGuest sends one datagram on its way. Flows that began outside come
// first: to the guest, their client is an address like any other.
func (p *Port) fromGuest(ip *packet, src, dst netip.AddrPort, a, b []byte) {
	if f := p.fwd.find(src, dst); f != nil {
		f.reply(flat(a, b))
		return
	}
	if m := p.nat.find(protoUDP, src); m != nil {
		if pr := m.lookup(dst); pr != nil {
			m.toHost(pr, ip, a, b)
			return
		}
	}
	v6 := dst.Addr().Is6()
	gw := p.net.gateway(v6)
	v := p.check(dst)
	switch v {
	case ignore:
		p.count.drop(DropPolicy)
		return
	case deny:
		p.count.drop(DropPolicy)
		p.sendError(gw, src.Addr(), errAdmin(v6), ip.head)
		return
	case nobody:
		p.sendError(gw, src.Addr(), errHost(v6), ip.head)
		return
	case closed:
		p.sendError(gw, src.Addr(), errPort(v6), ip.head)
		return
	case service:
		p.serveDNSDatagram(src, dst, flatCopy(a, b))
		return
	}
	real := dst
	if v == hostPort {
		real = hostLoopback(dst.Port())[0]
	} else {
		var err error
		if real, err = p.net.redirect("udp", src, dst); err != nil {
			p.count.drop(DropPolicy)
			if u, ok := explain(err, v6); ok {
				p.sendError(gw, src.Addr(), u, ip.head)
			}
			return
		}
	}
	m := p.nat.get(p, protoUDP, src)
	if m == nil {
		p.count.drop(DropUDPFlows)
		return
	}
	pr := m.addPeer(dst, real)
	if pr == nil {
		p.count.drop(DropUDPFlows)
		return
	}
	if v == hostPort && len(a)+len(b) <= etherMTU {
		m.mu.Lock()
		pr.retry = flatCopy(a, b)
		m.mu.Unlock()
	}
	m.toHost(pr, ip, a, b)
}

// flat returns two consecutive parts as one, without a copy if it can.
func flat(a, b []byte) []byte {
	if len(b) == 0 {
		return a
	}
	return flatCopy(a, b)
}

func flatCopy(a, b []byte) []byte {
	return append(append(make([]byte, 0, len(a)+len(b)), a...), b...)
}

// toHost sends a guest's datagram to a peer. A failure that a router would
// report is reported to the guest.
func (m *mapping) toHost(pr *peer, ip *packet, pieces ...[]byte) {
	p := m.port
	m.used.Store(time.Now().UnixNano())
	m.mu.Lock()
	real := pr.real
	m.mu.Unlock()
	s, err := m.socket(real.Addr().Is6())
	if err == nil && s != nil {
		ttl := ip.ttl - 1
		if ttl == 0 {
			ttl = 1 // to the gateway: a host behind it is no further hop
		}
		err = s.send(real, ttl, ip.df, pieces...)
		if err != nil && pendingError(err) && m.readErrors(s) {
			// Maybe it was about an earlier one.
			err = s.send(real, ttl, ip.df, pieces...)
		}
		if ip.df && errors.Is(err, syscall.EMSGSIZE) {
			err = m.tooBig(s, real, ttl, ip, pieces...)
		}
	}
	if err == nil || errors.Is(err, os.ErrClosed) {
		return
	}
	p.count.drop(DropUDPSend)
	if m.proto != protoUDP && errors.Is(err, syscall.EACCES) && s == nil {
		p.net.warnPing(err)
		return
	}
	v6 := ip.v6()
	if u, ok := explain(err, v6); ok {
		p.sendError(p.net.gateway(v6), ip.src, u, ip.head)
	}
}

// maxSocketErrors in a row mean that a socket is broken.
const maxSocketErrors = 1000

// serve takes what the host sends to a mapping, until its socket is closed.
func (m *mapping) serve(s *hostSocket) {
	var failed error
	err := s.raw.Read(func(fd uintptr) bool {
		buf := datagramBufs.Get().(*[64 << 10]byte)
		defer datagramBufs.Put(buf)
		for bad := 0; bad < maxSocketErrors; {
			n, from, errno := receive(int(fd), buf[:])
			switch errno {
			case 0:
				bad = 0
				m.fromHost(from, buf[:n])
			case unix.EAGAIN:
				return m.isClosed()
			case unix.EINTR:
			default:
				// The errno belongs to an entry of the error queue.
				bad++
				failed = errno
				m.readErrors(s)
			}
		}
		return true
	})
	if !m.isClosed() {
		err = errors.Join(err, failed)
		m.port.net.log.Warn("host socket failed", "port", m.port.cfg.ID, "source", m.src, "error", err)
		m.port.nat.remove(m)
	}
}

func (m *mapping) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

// fromHost sends a host's datagram to the guest.
func (m *mapping) fromHost(from netip.AddrPort, b []byte) {
	p := m.port
	visible, ok := m.seenAs(from)
	if !ok {
		p.count.drop(DropUDPFiltered)
		return
	}
	m.used.Store(time.Now().UnixNano())
	if m.proto == protoUDP {
		p.sendUDP(visible, m.src, b)
		return
	}
	p.sendEchoReply(visible.Addr(), m.src, b)
}

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
	return err == nil && s != nil && s.send(real, guestTTL, false, data) == nil
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
