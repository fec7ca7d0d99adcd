package portfwd

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// localAddr is the host's address that a client talked to; comparable. The
// interface matters for link-local addresses only.
type localAddr struct {
	ip      netip.Addr
	ifindex uint32
}

func (l localAddr) addr() netip.Addr { return l.ip }

var errTruncated = errors.New("datagram or its address over the size limit")

// recvFrom reads one datagram with its two addresses.
func recvFrom(fd int, buf []byte) (n int, key flowKey, err error) {
	var oob [128]byte
	n, oobn, flags, from, err := unix.Recvmsg(fd, buf, oob[:], unix.MSG_DONTWAIT)
	if err != nil {
		return 0, key, err
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return 0, key, errTruncated
	}
	switch a := from.(type) {
	case *unix.SockaddrInet4:
		key.client = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(a.Addr)
		if a.ZoneId != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(a.ZoneId), 10))
		}
		key.client = netip.AddrPortFrom(ip, uint16(a.Port))
	}
	key.local, err = parseLocal(oob[:oobn])
	return n, key, err
}

// parseLocal finds the local address among control messages.
func parseLocal(oob []byte) (localAddr, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return localAddr{}, err
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			// ifindex, spec_dst (ours even for a broadcast), addr (in the header)
			return localAddr{ip: netip.AddrFrom4([4]byte(m.Data[4:8]))}, nil
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			l := localAddr{ip: netip.AddrFrom16([16]byte(m.Data[:16]))}
			if l.ip.IsMulticast() {
				return localAddr{}, nil // no source for replies: let the kernel choose
			}
			if l.ip.IsLinkLocalUnicast() {
				l.ifindex = binary.NativeEndian.Uint32(m.Data[16:20])
			}
			return l, nil
		}
	}
	return localAddr{}, nil
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

// zoneID is the interface index that recvFrom put into a zone.
func zoneID(a netip.Addr) uint32 {
	n, err := strconv.ParseUint(a.Zone(), 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}
