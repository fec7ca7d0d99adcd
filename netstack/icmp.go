package netstack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"strings"
	"syscall"
)

// Types of ICMP echo.
func echoRequest(v6 bool) uint8 {
	if v6 {
		return 128
	}
	return 8
}

func echoReply(v6 bool) uint8 {
	if v6 {
		return 129
	}
	return 0
}

// inputICMP takes a guest's ICMP message: echo requests, and the errors it
// reports about what was sent to it.
func (p *Port) inputICMP(r *linkReader, ip *packet) {
	l4, v6 := ip.l4(), ip.v6()
	if len(l4) < icmpLen {
		p.count.drop(DropMalformed)
		return
	}
	switch {
	case l4[0] == echoRequest(v6) && l4[1] == 0:
		p.inputEcho(ip)
	case !v6 && l4[0] == 3 || v6 && (l4[0] == 1 || l4[0] == 2):
		p.inputError(r, ip)
	default:
		p.count.drop(DropProtocol)
	}
}

// inputEcho sends an echo request to where it is for. Only a host that really
// answers makes a reply.
func (p *Port) inputEcho(ip *packet) {
	if !p.within(&p.pings, p.net.cfg.Limits.PingRate) {
		return
	}
	l4, v6 := ip.l4(), ip.v6()
	gw := p.net.gateway(v6)
	if ip.dst == gw {
		var h [icmpLen]byte
		copy(h[:], l4)
		h[0] = echoReply(v6)
		p.sendIP(gw, ip.src, ip.proto, guestTTL, h[:], flat(l4[icmpLen:], ip.tail), 2)
		return
	}
	src := netip.AddrPortFrom(ip.src, binary.BigEndian.Uint16(l4[4:]))
	dst := netip.AddrPortFrom(ip.dst, 0)
	if v := p.check(dst); p.refuse(v, ip.src, ip.dst, ip.head) {
		return
	} else if v != allow {
		p.count.drop(DropPolicy)
		return
	}
	m := p.nat.get(p, ip.proto, src)
	if m == nil {
		p.count.drop(DropPing)
		return
	}
	pr := m.lookup(dst)
	if pr == nil {
		real, err := p.net.redirect("icmp", src, dst)
		if err == nil && real.Addr().Is6() != v6 {
			err = syscall.EHOSTUNREACH // an echo has no equal in the other family
		}
		if err != nil {
			p.count.drop(DropPolicy)
			if u, ok := explain(err, v6); ok {
				p.sendError(gw, ip.src, u, ip.head)
			}
			return
		}
		if pr = m.addPeer(dst, netip.AddrPortFrom(real.Addr(), 0)); pr == nil {
			p.count.drop(DropPing)
			return
		}
	}
	// The kernel puts its own identifier and the checksum in.
	p.trains.parts = [2][]byte{l4, ip.tail}
	m.toHost(pr, ip, 0, p.trains.parts[:])
}

// sendEchoReply sends a host's answer to the guest, under the identifier it
// used.
func (p *Port) sendEchoReply(from netip.Addr, to netip.AddrPort, b []byte) {
	v6 := to.Addr().Is6()
	if len(b) < icmpLen || b[0] != echoReply(v6) {
		p.count.drop(DropMalformed)
		return
	}
	proto := uint8(protoICMP)
	if v6 {
		proto = protoICMPv6
	}
	var h [icmpLen]byte
	copy(h[:], b)
	binary.BigEndian.PutUint16(h[4:], to.Port())
	p.sendIP(from, to.Addr(), proto, guestTTL, h[:], b[icmpLen:], 2)
}

// inputError takes a guest's ICMP error about a datagram that came through the
// gateway.
func (p *Port) inputError(r *linkReader, ip *packet) {
	l4, v6 := ip.l4(), ip.v6()
	etherType := uint16(etherIPv4)
	if v6 {
		etherType = etherIPv6
	}
	inner, ok := parseCause(etherType, l4[icmpLen:])
	// It must be about something that was sent to this guest.
	if !ok || inner.dst != ip.src {
		p.count.drop(DropMalformed)
		return
	}
	h := inner.l4()
	switch inner.proto {
	case protoTCP:
		p.net.nic.inject(r, ip)
	case protoUDP:
		refusedPort := !v6 && l4[0] == 3 && l4[1] == 3 || v6 && l4[0] == 1 && l4[1] == 4
		if !refusedPort {
			return
		}
		src := netip.AddrPortFrom(inner.dst, binary.BigEndian.Uint16(h[2:]))
		client := netip.AddrPortFrom(inner.src, binary.BigEndian.Uint16(h))
		if f := p.fwd.find(src, client); f != nil {
			f.refused.Store(true)
			return
		}
		// Nobody listens behind this source port any more. Without the host
		// socket, the host's kernel says so itself.
		if m := p.nat.find(protoUDP, src); m != nil && m.lookup(client) != nil {
			p.nat.remove(m)
		}
	}
}

// parseCause reads the headers of the truncated datagram inside an ICMP error.
// Its transport header has at least eight bytes.
func parseCause(etherType uint16, b []byte) (p packet, ok bool) {
	p.head = b
	if etherType == etherIPv4 {
		if len(b) < ip4Len || b[0]>>4 != 4 {
			return p, false
		}
		p.hdrLen, p.proto = int(b[0]&0xf)*4, b[9]
		p.src, p.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	} else {
		if len(b) < ip6Len || b[0]>>4 != 6 {
			return p, false
		}
		p.hdrLen, p.proto = ip6Len, b[6]
		p.src, p.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	}
	return p, p.hdrLen >= ip4Len && len(b) >= p.hdrLen+8
}

// warnPing says once why pings get no reply.
func (n *Network) warnPing(err error) {
	n.pingWarning.Do(func() {
		cur, rerr := os.ReadFile("/proc/sys/net/ipv4/ping_group_range")
		if rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		n.log.Warn("no ICMP echo for sandboxes: this user's groups are outside net.ipv4.ping_group_range",
			"error", err, "ping_group_range", strings.TrimSpace(string(cur)),
			"fix", `sysctl -w net.ipv4.ping_group_range="0 2147483647"`)
	})
}
