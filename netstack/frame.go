package netstack

import (
	"encoding/binary"
	"net/netip"
)

// Sizes and types of the headers that this package reads and writes itself.
const (
	ethLen  = 14
	ip4Len  = 20
	ip6Len  = 40
	fragLen = 8
	udpLen  = 8
	icmpLen = 8

	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd

	protoICMP   = 1
	protoIGMP   = 2
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58

	ext6HopByHop = 0
	ext6Routing  = 43
	ext6Fragment = 44
	ext6None     = 59
	ext6DestOpts = 60
)

type macAddr [6]byte

func (m macAddr) group() bool { return m[0]&1 != 0 }

// frame is one frame as read from a link. Its slices point into the reader's
// buffers and are valid until the next read.
type frame struct {
	vnet vnetHdr
	raw  []byte // the virtio-net header, always vnetHdrLen bytes
	head []byte // the first bytes from the Ethernet header on, at most headLen
	tail []byte // the rest

	// Of its 802.1Q tag, which the reader has taken out.
	tagged bool
	tci    uint16
	qinq   bool // it was a provider's
}

func (f *frame) size() int { return len(f.head) + len(f.tail) }

// packet is an IP datagram. head holds every header; tail follows it.
type packet struct {
	src, dst netip.Addr
	proto    uint8 // of the transport
	ttl      uint8
	df       bool
	hdrLen   int // IP header with options or extension headers
	head     []byte
	tail     []byte

	// Fragments: offset in bytes, and whether more follow.
	frag   bool
	offset int
	more   bool
	id     uint32
}

func (p *packet) v6() bool { return p.src.Is6() }

// l4 returns the part of head behind the IP header.
func (p *packet) l4() []byte { return p.head[p.hdrLen:] }

// l4Size is the length of the transport header and payload.
func (p *packet) l4Size() int { return len(p.head) - p.hdrLen + len(p.tail) }

// trim cuts what follows the datagram: Ethernet pads short frames.
func (p *packet) trim(n int) {
	if n <= len(p.head) {
		p.head, p.tail = p.head[:n], nil
	} else {
		p.tail = p.tail[:n-len(p.head)]
	}
}

// parseIP reads the IP header of a datagram whose first bytes are in head. It
// refuses what it cannot make sense of.
func parseIP(etherType uint16, head, tail []byte) (p packet, ok bool) {
	p.head, p.tail = head, tail
	switch etherType {
	case etherIPv4:
		return parseIPv4(p)
	case etherIPv6:
		return parseIPv6(p)
	}
	return p, false
}

func parseIPv4(p packet) (packet, bool) {
	h := p.head
	if len(h) < ip4Len || h[0]>>4 != 4 {
		return p, false
	}
	p.hdrLen = int(h[0]&0xf) * 4
	total := int(binary.BigEndian.Uint16(h[2:]))
	if p.hdrLen < ip4Len || p.hdrLen > len(h) || total < p.hdrLen || total > len(h)+len(p.tail) {
		return p, false
	}
	if ^sum(0, h[:p.hdrLen]) != 0 {
		return p, false
	}
	fl := binary.BigEndian.Uint16(h[6:])
	p.df = fl&0x4000 != 0
	p.more = fl&0x2000 != 0
	p.offset = int(fl&0x1fff) * 8
	p.frag = p.more || p.offset != 0
	p.id = uint32(binary.BigEndian.Uint16(h[4:]))
	p.ttl, p.proto = h[8], h[9]
	p.src = netip.AddrFrom4([4]byte(h[12:16]))
	p.dst = netip.AddrFrom4([4]byte(h[16:20]))
	p.trim(total)
	return p, true
}

func parseIPv6(p packet) (packet, bool) {
	h := p.head
	if len(h) < ip6Len || h[0]>>4 != 6 {
		return p, false
	}
	total := ip6Len + int(binary.BigEndian.Uint16(h[4:]))
	if total > len(h)+len(p.tail) {
		return p, false
	}
	p.df = true // IPv6 routers never fragment
	p.ttl = h[7]
	p.src = netip.AddrFrom16([16]byte(h[8:24]))
	p.dst = netip.AddrFrom16([16]byte(h[24:40]))
	p.trim(total)
	h = p.head

	// Extension headers must all be in head; eight are more than any host
	// sends.
	next, off := h[6], ip6Len
	for range 8 {
		switch next {
		case ext6HopByHop, ext6Routing, ext6DestOpts:
			if off+2 > len(h) {
				return p, false
			}
			n := (int(h[off+1]) + 1) * 8
			next, off = h[off], off+n
			if off > len(h) {
				return p, false
			}
		case ext6Fragment:
			if p.frag || off+fragLen > len(h) {
				return p, false
			}
			fl := binary.BigEndian.Uint16(h[off+2:])
			p.offset, p.more = int(fl&^7), fl&1 != 0
			p.frag, p.df = true, false
			p.id = binary.BigEndian.Uint32(h[off+4:])
			next, off = h[off], off+fragLen
			if p.offset != 0 {
				// What follows is the middle of something.
				p.proto, p.hdrLen = next, off
				return p, true
			}
		default:
			p.proto, p.hdrLen = next, off
			return p, true
		}
	}
	return p, false
}

// sum adds b to a ones' complement sum and folds it.
func sum(initial uint32, b []byte) uint16 {
	s := uint64(initial)
	for len(b) >= 8 {
		v := binary.BigEndian.Uint64(b)
		s += v>>32 + v&0xffffffff
		b = b[8:]
	}
	for len(b) >= 2 {
		s += uint64(b[0])<<8 | uint64(b[1])
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// sum2 is the sum over two consecutive parts.
func sum2(initial uint32, a, b []byte) uint16 {
	s := sum(initial, a)
	t := sum(0, b)
	if len(a)&1 != 0 {
		t = t<<8 | t>>8
	}
	return sum(uint32(s)+uint32(t), nil)
}

// pseudoSum is the sum of the pseudo header that TCP, UDP and ICMPv6 share.
func pseudoSum(src, dst netip.Addr, proto uint8, n int) uint32 {
	s := uint32(proto) + uint32(n)
	add := func(b []byte) { s += uint32(sum(0, b)) }
	if src.Is4() {
		a, b := src.As4(), dst.As4()
		add(a[:])
		add(b[:])
	} else {
		a, b := src.As16(), dst.As16()
		add(a[:])
		add(b[:])
	}
	return s
}

// checksumOK verifies the transport checksum of a whole datagram.
func (p *packet) checksumOK() bool {
	l4 := p.l4()
	switch p.proto {
	case protoUDP:
		if len(l4) < udpLen {
			return false
		}
		// Zero means none over IPv4 (RFC 768) and is an error over IPv6.
		if l4[6] == 0 && l4[7] == 0 {
			return !p.v6()
		}
	case protoTCP:
	case protoICMPv6:
		if !p.v6() {
			return true
		}
	case protoICMP:
		if p.v6() {
			return true
		}
		return ^sum2(0, l4, p.tail) == 0
	default:
		return true
	}
	return ^sum2(pseudoSum(p.src, p.dst, p.proto, p.l4Size()), l4, p.tail) == 0
}

// linkLocal6 is the address that a kernel derives from a MAC (RFC 4291,
// appendix A).
func linkLocal6(m macAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}
