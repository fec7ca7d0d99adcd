package portfwd

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"unsafe"

	"github.com/rootless-sbx/sbx/internal/dgram"
	"golang.org/x/sys/unix"
)

// localAddr is the host's address that a client talked to; comparable. The
// interface matters for link-local addresses only.
type localAddr struct {
	ip      netip.Addr
	ifindex uint32
}

func (l localAddr) addr() netip.Addr { return l.ip }

// keyOf is the flow of what an inbox has received.
func keyOf(t *dgram.Train) flowKey {
	ip := t.From.Addr()
	if t.Zone != 0 {
		ip = ip.WithZone(strconv.FormatUint(uint64(t.Zone), 10))
	}
	return flowKey{client: netip.AddrPortFrom(ip, t.From.Port()), local: parseLocal(t.PktInfo)}
}

// parseLocal reads the data of IP_PKTINFO or IPV6_PKTINFO.
func parseLocal(b []byte) localAddr {
	switch {
	case len(b) >= unix.SizeofInet6Pktinfo:
		l := localAddr{ip: netip.AddrFrom16([16]byte(b[:16]))}
		if l.ip.IsMulticast() {
			return localAddr{} // no source for replies: let the kernel choose
		}
		if l.ip.IsLinkLocalUnicast() {
			l.ifindex = binary.NativeEndian.Uint32(b[16:20])
		}
		return l
	case len(b) >= unix.SizeofInet4Pktinfo:
		// ifindex, spec_dst (ours even for a broadcast), addr (in the header)
		return localAddr{ip: netip.AddrFrom4([4]byte(b[4:8]))}
	}
	return localAddr{}
}

// control is the control message that makes a datagram leave from l.
func (l localAddr) control() []byte {
	switch {
	case l.ip.Is4():
		b := cmsg(unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
		ip := l.ip.As4()
		copy(b[unix.CmsgLen(0)+4:], ip[:])
		return b
	case l.ip.Is6():
		b := cmsg(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
		ip := l.ip.As16()
		copy(b[unix.CmsgLen(0):], ip[:])
		binary.NativeEndian.PutUint32(b[unix.CmsgLen(0)+16:], l.ifindex)
		return b
	}
	return nil
}

func cmsg(level, typ int32, size int) []byte {
	b := make([]byte, unix.CmsgSpace(size))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(size))
	return b
}

// zoneID is the interface index that keyOf put into a zone.
func zoneID(a netip.Addr) uint32 {
	if a.Zone() == "" {
		return 0
	}
	n, err := strconv.ParseUint(a.Zone(), 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}
