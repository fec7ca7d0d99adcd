package netstack

import (
	"encoding/binary"
	"net/netip"
)

// input is the switch: it takes one frame from the guest. It runs on the
// port's reader alone, so that no lock is shared between ports.
func (p *Port) input(f *frame) {
	p.count.rxFrames.Add(1)
	p.count.rxBytes.Add(uint64(f.size()))
	p.trains.age(p, f.size())
	if !f.vnet.sane(f.size()) {
		p.count.drop(DropMalformed)
		return
	}
	eth := f.head
	if !p.mayBe(macAddr(eth[6:12])) {
		p.count.drop(DropSpoofed)
		return
	}
	v, ok := p.vlanOf(f)
	if !ok || f.qinq {
		p.count.drop(pick(f.qinq, DropVLAN, DropQinQ))
		return
	}
	dst := macAddr(eth[:6])
	switch etherType := binary.BigEndian.Uint16(eth[12:]); etherType {
	case etherARP:
		p.inputARP(f, v)
	case etherIPv4, etherIPv6:
		ip, ok := parseIP(etherType, eth[ethLen:], f.tail)
		if !ok {
			p.count.drop(DropMalformed)
			return
		}
		// What makes other hosts believe something about the network must not
		// cross the switch, whatever it is addressed to: one guest could take
		// over another's gateway.
		if ip.proto == protoICMPv6 || ip.proto == protoIGMP {
			if ip.v6() && isNeighborDiscovery(&ip) {
				p.inputND(f, &ip, v)
				return
			}
			if kind := parseGroup(&ip); kind != noGroupMessage {
				p.inputGroup(kind, ip.src, f, v)
				return
			}
		}
		if !p.mayUse(v, ip.src) {
			p.count.drop(DropSpoofed)
			return
		}
		if dst == p.net.gwMAC && p.gated && v == p.vlan {
			p.net.route(p, f, &ip)
			return
		}
		if p.uplink && p.net.dhcp.take(v, f, &ip) {
			return
		}
		if p.net.cfg.Uplink != nil && !p.uplink && isServerAnswer(&ip) {
			p.count.drop(DropNeighbor) // addresses come from outside
			return
		}
		p.forward(dst, f, v)
	case etherVLAN, etherQinQ, etherQinQOld:
		p.count.drop(DropQinQ)
	default:
		p.count.drop(DropEtherType)
	}
}

// mayBe tells whether frames of the port may come from an address. Those from
// outside have any but a member's: one that has is a loop, or a lie.
func (p *Port) mayBe(mac macAddr) bool {
	if !p.uplink {
		return mac == p.mac
	}
	return !mac.group() && p.net.members.Load().byMAC[mac] == nil
}

// forward writes a frame to the member with the MAC, to the uplink if nobody has
// it, or if it is for a group to every other one.
func (p *Port) forward(dst macAddr, f *frame, v uint16) {
	t := p.net.members.Load()
	if dst.group() {
		if l := t.lanes[v]; l != nil {
			p.flood(l.ports, f, v)
		} else {
			p.count.drop(DropVLAN)
		}
		return
	}
	q := t.byMAC[dst]
	if q == nil && p != t.uplink {
		q = t.uplink
	}
	if q == nil || q == p || !q.carries(v) {
		p.count.drop(DropNoMember)
		return
	}
	if p.apart(q) {
		p.count.drop(DropPrivate)
		return
	}
	q.writeFrame(f, v)
}

// seek passes on what looks for an address, or tells one, to those whose
// addresses the switch does not know.
func (p *Port) seek(dst macAddr, f *frame, v uint16) {
	t := p.net.members.Load()
	var loose []*Port
	if l := t.lanes[v]; l != nil {
		loose = l.loose
	}
	switch {
	case len(loose) == 0 && (t.uplink == nil || p.uplink && dst.group()):
		p.count.drop(DropNeighbor)
	case dst.group():
		p.flood(loose, f, v)
	default:
		p.forward(dst, f, v)
	}
}

const (
	arpLen   = 28
	arpQuery = 1
	arpReply = 2
)

// inputARP answers for the gateway and the other members. ARP packets are
// passed on only to and from those whose addresses the switch does not know,
// that is on trunks and outside.
func (p *Port) inputARP(f *frame, v uint16) {
	if !p.within(&p.asks, p.net.cfg.Limits.NeighborRate) {
		return
	}
	b := f.head[ethLen:]
	if len(b) < arpLen || [6]byte(b[:6]) != [6]byte{0, 1, 8, 0, 6, 4} {
		p.count.drop(DropMalformed)
		return
	}
	spa, tpa := netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	if !p.mayBe(macAddr(b[8:14])) || !spa.IsUnspecified() && !p.mayUse(v, spa) {
		p.count.drop(DropSpoofed)
		return
	}
	op := binary.BigEndian.Uint16(b[6:])
	mac, ok := p.neighbor(tpa, v)
	if op != arpQuery || !ok {
		if op == arpQuery || op == arpReply && !p.pinned(v, false) {
			p.seek(macAddr(f.head[:6]), f, v)
		} else {
			p.count.drop(DropNeighbor)
		}
		return
	}
	var r [vnetHdrLen + ethLen + arpLen]byte
	a := answerTo(f, r[:], mac, etherARP)
	copy(a, b[:6])
	a[7] = arpReply
	copy(a[8:], mac[:])
	copy(a[14:], b[24:28])
	copy(a[18:], b[8:18])
	p.writeAnswer(r[:], v)
}

// neighbor returns the MAC of the gateway or of another member. The members of
// a private network are sent to the gateway, which says no.
func (p *Port) neighbor(a netip.Addr, v uint16) (macAddr, bool) {
	gated := p.gated && v == p.vlan
	if gated && p.net.isGateway(a) {
		return p.net.gwMAC, true
	}
	q := p.net.member(a)
	switch {
	case q == nil || q == p || q.vlan != v:
		return macAddr{}, false
	case p.apart(q):
		return p.net.gwMAC, gated
	}
	return q.mac, true
}

const (
	ndRouterSolicit   = 133
	ndRouterAdvert    = 134
	ndNeighborSolicit = 135
	ndNeighborAdvert  = 136
	ndRedirect        = 137

	ndTargetLen = 24 // of a message with a target, before its options
)

// isNeighborDiscovery tells whether an ICMPv6 packet is one of router or
// neighbour discovery. Of a fragment the first part decides.
func isNeighborDiscovery(ip *packet) bool {
	l4 := ip.l4()
	return ip.offset == 0 && len(l4) > 0 && l4[0] >= ndRouterSolicit && l4[0] <= ndRedirect
}

// inputND answers neighbour solicitations for the gateway and the other
// members. Like ARP, the rest is passed on only to and from those whose
// addresses the switch does not know, and nobody inside is a router.
func (p *Port) inputND(f *frame, ip *packet, v uint16) {
	if !p.within(&p.asks, p.net.cfg.Limits.NeighborRate) {
		return
	}
	m, loose := ip.l4(), !p.pinned(v, true)
	dst := macAddr(f.head[:6])
	size := 0 // of the message before its options
	switch m[0] {
	case ndNeighborSolicit:
		size = ndTargetLen
	case ndNeighborAdvert:
		if loose {
			size = ndTargetLen
		}
	case ndRouterSolicit:
		if loose && p.net.cfg.Uplink != nil && !p.uplink {
			size = 8
		}
	case ndRouterAdvert:
		if p.uplink {
			size = 16
		}
	}
	if size == 0 {
		p.count.drop(DropNeighbor)
		return
	}
	if ip.frag || ip.ttl != 255 || len(m) < size || ip.hdrLen != ip6Len || !ip.checksumOK() {
		p.count.drop(DropMalformed)
		return
	}
	if !ip.src.IsUnspecified() && !p.mayUse(v, ip.src) || !p.linkOptionsOK(m[size:]) {
		p.count.drop(DropSpoofed)
		return
	}
	if size != ndTargetLen {
		p.seek(dst, f, v)
		return
	}
	target := netip.AddrFrom16([16]byte(m[8:24]))
	if m[0] == ndNeighborAdvert {
		if !p.mayUse(v, target) {
			p.count.drop(DropSpoofed)
			return
		}
		p.seek(dst, f, v)
		return
	}
	if ip.src.IsUnspecified() {
		// Duplicate address detection: pinned addresses are nobody else's inside,
		// so the answer is silence.
		if loose || p.net.cfg.Uplink != nil {
			p.seek(dst, f, v)
		} else {
			p.count.drop(DropNeighbor)
		}
		return
	}
	mac, ok := p.neighbor(target, v)
	if !ok {
		p.seek(dst, f, v)
		return
	}
	const naLen = ndTargetLen + 8
	var r [vnetHdrLen + ethLen + ip6Len + naLen]byte
	h := answerTo(f, r[:], mac, etherIPv6)
	putIPv6(h, target, ip.src, protoICMPv6, 255, naLen)
	na := h[ip6Len:]
	na[0] = ndNeighborAdvert
	na[4] = 0x60 // solicited, override
	if mac == p.net.gwMAC {
		na[4] |= 0x80 // router
	}
	copy(na[8:], m[8:24])
	na[24], na[25] = 2, 1
	copy(na[26:], mac[:])
	binary.BigEndian.PutUint16(na[2:], ^sum(pseudoSum(target, ip.src, protoICMPv6, naLen), na))
	p.writeAnswer(r[:], v)
}

// linkOptionsOK tells whether the link-layer addresses in the options of neighbour
// discovery are the port's.
func (p *Port) linkOptionsOK(opts []byte) bool {
	for len(opts) >= 8 {
		n := int(opts[1]) * 8
		if n == 0 || n > len(opts) {
			return false
		}
		if (opts[0] == 1 || opts[0] == 2) && !p.mayBe(macAddr(opts[2:8])) {
			return false
		}
		opts = opts[n:]
	}
	return true
}

// answerTo writes an empty virtio header and an Ethernet header for the sender of
// a frame, and returns what follows.
func answerTo(f *frame, b []byte, src macAddr, etherType uint16) []byte {
	e := b[vnetHdrLen:]
	copy(e, f.head[6:12])
	copy(e[6:], src[:])
	binary.BigEndian.PutUint16(e[12:], etherType)
	return e[ethLen:]
}

// writeAnswer sends a frame with its virtio header in one piece.
func (p *Port) writeAnswer(b []byte, v uint16) {
	f := frame{raw: b[:vnetHdrLen], head: b[vnetHdrLen:]}
	p.writeFrame(&f, v)
}

// ethernet writes an empty virtio header and an Ethernet header to the guest,
// and returns what follows.
func (p *Port) ethernet(b []byte, src macAddr, etherType uint16) []byte {
	e := b[vnetHdrLen:]
	copy(e, p.mac[:])
	copy(e[6:], src[:])
	binary.BigEndian.PutUint16(e[12:], etherType)
	return e[ethLen:]
}
