package netstack

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Lengths of the virtio-net header: with and without num_buffers.
const (
	vnetHdrLen    = 12
	vnetHdrLenOld = 10
)

// vnetHdr is the virtio-net header that goes before each frame on a link,
// little-endian. num_buffers, its last field, is unused.
type vnetHdr struct {
	flags      uint8
	gsoType    uint8
	hdrLen     uint16
	gsoSize    uint16
	csumStart  uint16
	csumOffset uint16
}

// parseVnetHdr reads b, which has at least ten bytes.
func parseVnetHdr(b []byte) vnetHdr {
	_ = b[vnetHdrLenOld-1]
	return vnetHdr{
		flags:      b[0],
		gsoType:    b[1],
		hdrLen:     binary.LittleEndian.Uint16(b[2:]),
		gsoSize:    binary.LittleEndian.Uint16(b[4:]),
		csumStart:  binary.LittleEndian.Uint16(b[6:]),
		csumOffset: binary.LittleEndian.Uint16(b[8:]),
	}
}

// put writes the header to b, which has vnetHdrLen bytes.
func (h *vnetHdr) put(b []byte) {
	_ = b[vnetHdrLen-1]
	b[0], b[1] = h.flags, h.gsoType
	binary.LittleEndian.PutUint16(b[2:], h.hdrLen)
	binary.LittleEndian.PutUint16(b[4:], h.gsoSize)
	binary.LittleEndian.PutUint16(b[6:], h.csumStart)
	binary.LittleEndian.PutUint16(b[8:], h.csumOffset)
	b[10], b[11] = 0, 0
}

// move says that the headers after Ethernet's addresses are n bytes further on.
func (h *vnetHdr) move(n int) {
	shift := func(v uint16) uint16 { return uint16(min(max(0, int(v)+n), 0xffff)) }
	if h.needsCsum() {
		h.csumStart = shift(h.csumStart)
	}
	if h.hdrLen != 0 {
		h.hdrLen = shift(h.hdrLen)
	}
}

// needsCsum tells that the transport checksum is still partial: the sender's
// kernel vouches for the contents.
func (h *vnetHdr) needsCsum() bool { return h.flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 }

// csumKnownGood tells that the kernel has nothing left to verify.
func (h *vnetHdr) csumKnownGood() bool {
	return h.flags&(unix.VIRTIO_NET_HDR_F_NEEDS_CSUM|unix.VIRTIO_NET_HDR_F_DATA_VALID) != 0
}

// segment is the kind of super-segment without the ECN bit.
func (h *vnetHdr) segment() uint8 { return h.gsoType &^ unix.VIRTIO_NET_HDR_GSO_ECN }

// sane tells whether the header fits a frame of n bytes. A super-segment
// always needs its checksum done, and has a size to be cut to.
func (h *vnetHdr) sane(n int) bool {
	if h.needsCsum() && (h.csumStart < ethLen || int(h.csumStart)+int(h.csumOffset)+2 > n) {
		return false
	}
	switch h.segment() {
	case unix.VIRTIO_NET_HDR_GSO_NONE:
		return true
	case unix.VIRTIO_NET_HDR_GSO_TCPV4, unix.VIRTIO_NET_HDR_GSO_TCPV6, unix.VIRTIO_NET_HDR_GSO_UDP_L4:
		return h.gsoSize != 0 && h.needsCsum()
	}
	return false
}
