// Package dgram reads and writes datagram sockets with few system calls.
//
// A train is consecutive datagrams of one flow, all equally long but for the
// last one, which may be shorter. It is written as a segment size and pieces of
// data that are cut every so many bytes; a segment of zero means that the data is
// one datagram. The kernel takes a train in one call (UDP_SEGMENT, Linux 4.18),
// and hands over as one what its sender or its network card has joined (UDP_GRO,
// Linux 5.0). Where it does not, datagrams go one by one.
package dgram

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// MaxSegments is the most datagrams of a train that every kernel takes.
	MaxSegments = 64
	// MaxBytes is the most payload of a train: one datagram's over IPv6 with
	// 40 bytes of header.
	MaxBytes = 65535 - 40 - 8
)

// Cut calls fn for each datagram of a train, whose bytes are a and then b, until
// it returns false.
func Cut(segment int, pieces [][]byte, fn func(a, b []byte) bool) {
	var cur []byte
	for {
		for len(cur) == 0 && len(pieces) > 0 {
			cur, pieces = pieces[0], pieces[1:]
		}
		if len(cur) == 0 {
			return
		}
		n := min(segment, len(cur))
		if segment <= 0 {
			n = len(cur)
		}
		a := cur[:n]
		cur = cur[n:]
		var b []byte
		for n < segment || segment <= 0 {
			for len(cur) == 0 && len(pieces) > 0 {
				cur, pieces = pieces[0], pieces[1:]
			}
			if len(cur) == 0 {
				break
			}
			m := len(cur)
			if segment > 0 {
				m = min(m, segment-n)
			}
			if b == nil {
				b = cur[:m]
			} else { // of many small pieces
				b = append(b[:len(b):len(b)], cur[:m]...)
			}
			cur = cur[m:]
			n += m
		}
		if !fn(a, b) {
			return
		}
	}
}

// Count returns the number of datagrams and of bytes in a train.
func Count(segment int, pieces [][]byte) (datagrams, bytes int) {
	for _, b := range pieces {
		bytes += len(b)
	}
	if segment <= 0 || bytes <= segment {
		return 1, bytes
	}
	return (bytes + segment - 1) / segment, bytes
}

// Send sends a train or a datagram without waiting. to is the zero AddrPort for
// a connected socket; zone is its interface index if it is link-local. control
// holds further control messages.
func Send(fd int, to netip.AddrPort, zone uint32, control []byte, segment int, pieces [][]byte) unix.Errno {
	var rsa unix.RawSockaddrInet6 // the larger one
	var arr [Len + 2]unix.Iovec
	var ctl [controlLen]byte
	iov, size := arr[:0], 0
	for _, b := range pieces {
		if len(b) == 0 {
			continue
		}
		v := unix.Iovec{Base: &b[0]}
		v.SetLen(len(b))
		iov = append(iov, v)
		size += len(b)
	}
	var msg unix.Msghdr
	if to.IsValid() {
		msg.Name, msg.Namelen = (*byte)(unsafe.Pointer(&rsa)), PutSockaddr(&rsa, to, zone)
	}
	if len(iov) > 0 {
		msg.Iov = &iov[0]
		msg.SetIovlen(len(iov))
	}
	n := copy(ctl[:], control)
	if segment > 0 && size > segment {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&ctl[n]))
		h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		h.SetLen(unix.CmsgLen(2))
		binary.NativeEndian.PutUint16(ctl[n+unix.CmsgLen(0):], uint16(segment))
		n += unix.CmsgSpace(2)
	}
	if n > 0 {
		msg.Control = &ctl[0]
		msg.SetControllen(n)
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return errno
}

// Refuses tells whether an error of Send is about the train and not about its
// datagrams: one by one they may go.
func Refuses(errno unix.Errno) bool {
	switch errno {
	case unix.EINVAL, unix.EMSGSIZE, unix.EIO, unix.EOPNOTSUPP:
		return true
	}
	return false
}

// PutSockaddr writes an address in the form of its family and returns its
// length.
func PutSockaddr(rsa *unix.RawSockaddrInet6, a netip.AddrPort, zone uint32) uint32 {
	if a.Addr().Is4() {
		r4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(rsa))
		r4.Family, r4.Addr = unix.AF_INET, a.Addr().As4()
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&r4.Port))[:], a.Port())
		return uint32(unsafe.Sizeof(*r4))
	}
	rsa.Family, rsa.Addr, rsa.Scope_id = unix.AF_INET6, a.Addr().As16(), zone
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&rsa.Port))[:], a.Port())
	return uint32(unsafe.Sizeof(*rsa))
}

// Sockaddr reads an address.
func Sockaddr(rsa *unix.RawSockaddrInet6) netip.AddrPort {
	switch rsa.Family {
	case unix.AF_INET:
		r4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(rsa))
		return netip.AddrPortFrom(netip.AddrFrom4(r4.Addr), binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&r4.Port))[:]))
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(rsa.Addr).Unmap(), binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&rsa.Port))[:]))
	}
	return netip.AddrPort{}
}
