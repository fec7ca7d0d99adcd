package netstack

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"

	"github.com/rootless-sbx/sbx/internal/dgram"
	"golang.org/x/sys/unix"
)

// sendUDP sends a datagram, or a train of them, to the guest.
func (p *Port) sendUDP(src, dst netip.AddrPort, segment int, pieces [][]byte) {
	n, size := dgram.Count(segment, pieces)
	if n > 1 && p.sendTrain(src, dst, segment, size, pieces) {
		return
	}
	dgram.Cut(segment, pieces, func(a, b []byte) bool {
		p.sendDatagram(src, dst, flat(a, b))
		return true
	})
	if size == 0 {
		p.sendDatagram(src, dst, nil)
	}
}

func (p *Port) sendDatagram(src, dst netip.AddrPort, payload []byte) {
	var l4 [udpLen]byte
	putUDP(l4[:], src, dst, len(payload))
	p.sendIP(src.Addr(), dst.Addr(), protoUDP, guestTTL, l4[:], payload, 6)
}

func putUDP(h []byte, src, dst netip.AddrPort, payload int) {
	binary.BigEndian.PutUint16(h[0:], src.Port())
	binary.BigEndian.PutUint16(h[2:], dst.Port())
	binary.BigEndian.PutUint16(h[4:], uint16(udpLen+payload))
	binary.BigEndian.PutUint16(h[6:], 0)
}

// sendTrain sends a train of size bytes as one frame, which the guest's kernel
// cuts (VIRTIO_NET_HDR_GSO_UDP_L4, Linux 6.2). It returns false if that cannot
// be; nothing has been sent then.
func (p *Port) sendTrain(src, dst netip.AddrPort, segment, size int, pieces [][]byte) bool {
	v6 := dst.Addr().Is6()
	ipLen, etherType, gso := ip4Len, uint16(etherIPv4), uint8(unix.VIRTIO_NET_HDR_GSO_UDP_L4)
	if v6 {
		ipLen, etherType = ip6Len, etherIPv6
	}
	if p.link.noTrains.Load() || size > dgram.MaxBytes || len(pieces) > dgram.Len || segment+udpLen+ipLen > p.cfg.MTU {
		return false
	}
	var buf [vnetHdrLen + ethLen + ip6Len + udpLen]byte
	head := buf[:vnetHdrLen+ethLen+ipLen+udpLen]
	vnet := vnetHdr{
		flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, gsoType: gso, gsoSize: uint16(segment),
		hdrLen: uint16(len(head) - vnetHdrLen), csumStart: uint16(ethLen + ipLen), csumOffset: 6,
	}
	vnet.put(head)
	h := p.ethernet(head, p.net.gwMAC, etherType)
	if v6 {
		putIPv6(h, src.Addr(), dst.Addr(), protoUDP, guestTTL, udpLen+size)
	} else {
		putIPv4(h, src.Addr(), dst.Addr(), protoUDP, guestTTL, udpLen+size, uint16(rand.Uint32()), 0)
	}
	l4 := h[ipLen:]
	putUDP(l4, src, dst, size)
	binary.BigEndian.PutUint16(l4[6:], sum(pseudoSum(src.Addr(), dst.Addr(), protoUDP, udpLen+size), nil))

	var arr [dgram.Len + 2]unix.Iovec
	arr[0].Base, arr[1].Base = &head[0], &head[vnetHdrLen] // see writePieces
	arr[1].SetLen(len(head) - vnetHdrLen)
	iovs := 2
	for _, b := range pieces {
		if len(b) > 0 {
			arr[iovs].Base = &b[0]
			arr[iovs].SetLen(len(b))
			iovs++
		}
	}
	if err := p.link.write(arr[:iovs]); errors.Is(err, unix.EINVAL) {
		p.link.noTrains.Store(true) // an older kernel
		return false
	} else if err != nil {
		n, _ := dgram.Count(segment, pieces)
		p.count.dropN(DropLinkWrite, n)
		return true
	}
	p.count.txFrames.Add(1)
	p.count.txBytes.Add(uint64(len(head) - vnetHdrLen + size))
	return true
}
