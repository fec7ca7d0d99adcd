package netstack

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/sys/unix"
)

// guestTTL is the TTL of what the gateway itself sends.
const guestTTL = 64

func putIPv4(h []byte, src, dst netip.Addr, proto, ttl uint8, payload int, id, flags uint16) {
	h[0], h[1] = 0x45, 0
	binary.BigEndian.PutUint16(h[2:], uint16(ip4Len+payload))
	binary.BigEndian.PutUint16(h[4:], id)
	binary.BigEndian.PutUint16(h[6:], flags)
	h[8], h[9], h[10], h[11] = ttl, proto, 0, 0
	s, d := src.As4(), dst.As4()
	copy(h[12:], s[:])
	copy(h[16:], d[:])
	binary.BigEndian.PutUint16(h[10:], ^sum(0, h[:ip4Len]))
}

func putIPv6(h []byte, src, dst netip.Addr, proto, ttl uint8, payload int) {
	h[0], h[1], h[2], h[3] = 0x60, 0, 0, 0
	binary.BigEndian.PutUint16(h[4:], uint16(payload))
	h[6], h[7] = proto, ttl
	s, d := src.As16(), dst.As16()
	copy(h[8:], s[:])
	copy(h[24:], d[:])
}

// sendIP sends one datagram to the guest: l4 is its transport header, whose
// checksum field at csumOff is filled in here, and payload what follows. It is
// fragmented if the link cannot take it in one piece.
func (p *Port) sendIP(src, dst netip.Addr, proto, ttl uint8, l4, payload []byte, csumOff int) {
	v6 := dst.Is6()
	ipLen, etherType := ip4Len, uint16(etherIPv4)
	if v6 {
		ipLen, etherType = ip6Len, etherIPv6
	}
	n := len(l4) + len(payload)
	limit := 65535 // of the length field, which for IPv6 leaves out the header
	if !v6 {
		limit -= ipLen
	}
	if n > limit {
		p.count.drop(DropMalformed)
		return
	}
	whole := n+ipLen <= p.cfg.MTU

	// The checksum is the kernel's business if it can be: its receiver does
	// not look at it at all then. ICMP over IPv4 has no pseudo header, and the
	// pieces of a fragmented datagram must add up on their own.
	var vnet vnetHdr
	var pseudo uint32
	if proto != protoICMP {
		pseudo = pseudoSum(src, dst, proto, n)
	}
	l4[csumOff], l4[csumOff+1] = 0, 0
	if whole && proto == protoUDP {
		vnet.flags = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
		vnet.csumStart, vnet.csumOffset = uint16(ethLen+ipLen), uint16(csumOff)
		binary.BigEndian.PutUint16(l4[csumOff:], sum(pseudo, nil))
	} else {
		c := ^sum2(pseudo, l4, payload)
		if c == 0 && proto == protoUDP {
			c = 0xffff
		}
		binary.BigEndian.PutUint16(l4[csumOff:], c)
	}

	var buf [vnetHdrLen + ethLen + ip6Len + fragLen]byte
	vnet.put(buf[:])
	h := p.ethernet(buf[:], p.net.gwMAC, etherType)
	if whole {
		if v6 {
			putIPv6(h, src, dst, proto, ttl, n)
		} else {
			putIPv4(h, src, dst, proto, ttl, n, uint16(rand.Uint32()), 0)
		}
		p.writePieces(buf[:vnetHdrLen+ethLen+ipLen], l4, payload)
		return
	}
	p.sendFragments(buf[:], h, src, dst, proto, ttl, l4, payload)
}

// sendFragments cuts a datagram into pieces that fit the MTU.
func (p *Port) sendFragments(buf, h []byte, src, dst netip.Addr, proto, ttl uint8, l4, payload []byte) {
	v6 := dst.Is6()
	hdrLen := ip4Len
	if v6 {
		hdrLen = ip6Len + fragLen
	}
	id := rand.Uint32()
	chunk := (p.cfg.MTU - hdrLen) &^ 7
	n := len(l4) + len(payload)
	for off := 0; off < n; off += chunk {
		size := min(chunk, n-off)
		more := uint16(0)
		if off+size < n {
			more = 1
		}
		if v6 {
			putIPv6(h, src, dst, ext6Fragment, ttl, fragLen+size)
			fh := h[ip6Len:]
			fh[0], fh[1] = proto, 0
			binary.BigEndian.PutUint16(fh[2:], uint16(off)|more)
			binary.BigEndian.PutUint32(fh[4:], id)
		} else {
			putIPv4(h, src, dst, proto, ttl, size, uint16(id), uint16(off/8)|more<<13)
		}
		var a, b []byte
		if off < len(l4) {
			a = l4[off:min(len(l4), off+size)]
		}
		if rest := size - len(a); rest > 0 {
			start := off + len(a) - len(l4)
			b = payload[start : start+rest]
		}
		p.writePieces(buf[:vnetHdrLen+ethLen+hdrLen], a, b)
	}
}

// writePieces sends a frame whose first piece starts with the virtio header.
func (p *Port) writePieces(hdr, a, b []byte) {
	// Not by append, which would move the callers' headers to the heap.
	var arr [4]unix.Iovec
	arr[0].Base, arr[1].Base = &hdr[0], &hdr[vnetHdrLen]
	arr[1].SetLen(len(hdr) - vnetHdrLen) // and the first by write
	n := 2
	if len(a) > 0 {
		arr[n].Base = &a[0]
		arr[n].SetLen(len(a))
		n++
	}
	if len(b) > 0 {
		arr[n].Base = &b[0]
		arr[n].SetLen(len(b))
		n++
	}
	_ = p.write(arr[:n], len(hdr)-vnetHdrLen+len(a)+len(b)) // counted as a drop
}

// unreachable is what an ICMP error says, in a form common to both families.
type unreachable struct {
	typ, code uint8
	// info is the second word of the header: the MTU of "too big".
	info uint32
}

// The errors that the gateway itself makes.
func errHost(v6 bool) unreachable  { return pick(v6, unreachable{3, 1, 0}, unreachable{1, 3, 0}) }
func errNet(v6 bool) unreachable   { return pick(v6, unreachable{3, 0, 0}, unreachable{1, 0, 0}) }
func errPort(v6 bool) unreachable  { return pick(v6, unreachable{3, 3, 0}, unreachable{1, 4, 0}) }
func errAdmin(v6 bool) unreachable { return pick(v6, unreachable{3, 13, 0}, unreachable{1, 1, 0}) }
func errHops(v6 bool) unreachable  { return pick(v6, unreachable{11, 0, 0}, unreachable{3, 0, 0}) }
func errTooBig(v6 bool, mtu uint32) unreachable {
	return pick(v6, unreachable{3, 4, mtu & 0xffff}, unreachable{2, 0, mtu})
}

func pick[T any](second bool, a, b T) T {
	if second {
		return b
	}
	return a
}

// sendError sends an ICMP error from an address to the guest, about a datagram
// of the guest's whose first bytes are in cause.
func (p *Port) sendError(from, to netip.Addr, u unreachable, cause []byte) {
	var l4 [icmpLen]byte
	l4[0], l4[1] = u.typ, u.code
	binary.BigEndian.PutUint32(l4[4:], u.info)
	proto, maxCause := uint8(protoICMP), 576-ip4Len-icmpLen
	if to.Is6() {
		proto, maxCause = protoICMPv6, minMTU6-ip6Len-icmpLen
	}
	p.sendIP(from, to, proto, guestTTL, l4[:], cause[:min(len(cause), maxCause)], 2)
}
