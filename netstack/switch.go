package netstack

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
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
	if macAddr(eth[6:12]) != p.mac {
		p.count.drop(DropSpoofed)
		return
	}
	dst := macAddr(eth[:6])
	switch etherType := binary.BigEndian.Uint16(eth[12:]); etherType {
	case etherARP:
		p.inputARP(eth[ethLen:])
	case etherIPv4, etherIPv6:
		ip, ok := parseIP(etherType, eth[ethLen:], f.tail)
		if !ok {
			p.count.drop(DropMalformed)
			return
		}
		// Neighbour discovery must not cross the switch, whatever it is
		// addressed to: one guest could take over another's gateway.
		if ip.proto == protoICMPv6 && ip.v6() && isNeighborDiscovery(&ip) {
			p.inputND(&ip)
			return
		}
		if !p.owns(ip.src) {
			if ip.v6() && ip.src.IsUnspecified() {
				// A group membership report: the kernel sends one before its
				// interface has an address.
				p.count.drop(DropNeighbor)
			} else {
				p.count.drop(DropSpoofed)
			}
			return
		}
		if dst == p.net.gwMAC {
			p.net.route(p, f, &ip)
			return
		}
		p.forward(dst, f)
	default:
		p.count.drop(DropEtherType)
	}
}

// forward writes a frame to the member with the MAC, or to every other one.
func (p *Port) forward(dst macAddr, f *frame) {
	t := p.net.members.Load()
	if dst.group() {
		for _, q := range t.byMAC {
			if q != p {
				q.writeFrame(f)
			}
		}
		return
	}
	q := t.byMAC[dst]
	if q == nil || q == p {
		p.count.drop(DropNoMember)
		return
	}
	q.writeFrame(f)
}

// writeFrame sends another port's frame to the guest as it came, virtio header
// included.
func (p *Port) writeFrame(f *frame) {
	var arr [3]unix.Iovec
	iov := iovec(arr[:0], f.raw)
	iov = iovec(iov, f.head)
	iov = iovec(iov, f.tail)
	_ = p.write(iov, f.size()) // counted as a drop of the receiver
}

// inputARP answers for the gateway and the other members. ARP packets are
// never passed on.
func (p *Port) inputARP(b []byte) {
	const arpLen = 28
	if len(b) < arpLen || [6]byte(b[:6]) != [6]byte{0, 1, 8, 0, 6, 4} {
		p.count.drop(DropMalformed)
		return
	}
	spa, tpa := netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	if macAddr(b[8:14]) != p.mac || spa != p.cfg.Addr4 && !spa.IsUnspecified() {
		p.count.drop(DropSpoofed)
		return
	}
	mac, ok := p.neighbor(tpa)
	if op := binary.BigEndian.Uint16(b[6:]); op != 1 || !ok {
		p.count.drop(DropNeighbor)
		return
	}
	var r [vnetHdrLen + ethLen + arpLen]byte
	a := p.ethernet(r[:], mac, etherARP)
	copy(a, b[:6])
	a[7] = 2
	copy(a[8:], mac[:])
	copy(a[14:], b[24:28])
	copy(a[18:], b[8:18])
	p.writeBytes(r[:])
}

// neighbor returns the MAC of the gateway or of another member.
func (p *Port) neighbor(a netip.Addr) (macAddr, bool) {
	if p.net.isGateway(a) {
		return p.net.gwMAC, true
	}
	if q := p.net.member(a); q != nil && q != p {
		return q.mac, true
	}
	return macAddr{}, false
}

const (
	ndRouterSolicit   = 133
	ndNeighborSolicit = 135
	ndNeighborAdvert  = 136
	ndRedirect        = 137
)

// isNeighborDiscovery tells whether an ICMPv6 packet is one of router or
// neighbour discovery. Of a fragment the first part decides.
func isNeighborDiscovery(ip *packet) bool {
	l4 := ip.l4()
	return ip.offset == 0 && len(l4) > 0 && l4[0] >= ndRouterSolicit && l4[0] <= ndRedirect
}

// inputND answers neighbour solicitations for the gateway and the other
// members, and drops everything else.
func (p *Port) inputND(ip *packet) {
	const nsLen = 24
	m := ip.l4()
	if ip.frag || ip.ttl != 255 || len(m) < nsLen || ip.hdrLen != ip6Len || !ip.checksumOK() {
		p.count.drop(DropMalformed)
		return
	}
	if m[0] != ndNeighborSolicit {
		p.count.drop(DropNeighbor)
		return
	}
	if !p.owns(ip.src) {
		// From :: it would be duplicate address detection: addresses are
		// pinned, so the answer is silence.
		if ip.src.IsUnspecified() {
			p.count.drop(DropNeighbor)
		} else {
			p.count.drop(DropSpoofed)
		}
		return
	}
	// The source link-layer address option, if there, must be the port's.
	for opts := m[nsLen:]; len(opts) >= 8; {
		n := int(opts[1]) * 8
		if n == 0 || n > len(opts) {
			p.count.drop(DropMalformed)
			return
		}
		if opts[0] == 1 && macAddr(opts[2:8]) != p.mac {
			p.count.drop(DropSpoofed)
			return
		}
		opts = opts[n:]
	}
	target := netip.AddrFrom16([16]byte(m[8:24]))
	mac, ok := p.neighbor(target)
	if !ok {
		p.count.drop(DropNeighbor)
		return
	}
	const naLen = nsLen + 8
	var r [vnetHdrLen + ethLen + ip6Len + naLen]byte
	h := p.ethernet(r[:], mac, etherIPv6)
	putIPv6(h, target, ip.src, protoICMPv6, 255, naLen)
	na := h[ip6Len:]
	na[0] = ndNeighborAdvert
	na[4] = 0x60 // solicited, override
	if p.net.isGateway(target) {
		na[4] |= 0x80 // router
	}
	copy(na[8:], m[8:24])
	na[24], na[25] = 2, 1
	copy(na[26:], mac[:])
	binary.BigEndian.PutUint16(na[2:], ^sum(pseudoSum(target, ip.src, protoICMPv6, naLen), na))
	p.writeBytes(r[:])
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

// writeBytes sends a frame with its virtio header in one piece.
func (p *Port) writeBytes(b []byte) {
	iov := [...]unix.Iovec{iovecOf(b[:vnetHdrLen]), iovecOf(b[vnetHdrLen:])}
	_ = p.write(iov[:], len(b)-vnetHdrLen) // counted as a drop
}
