package dgram

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// Len is how many datagrams an Inbox takes at a time.
	Len = 32
	// controlLen holds UDP_GRO or UDP_SEGMENT and one IPV6_PKTINFO.
	controlLen  = 128
	maxDatagram = 64 << 10
	// maxInboxes of a process are in use at once, 64 MiB if all are full: who wants
	// another one waits for its turn. Hundreds of sockets may have something to be
	// read at the same moment.
	maxInboxes = 32
)

// mmsghdr is the kernel's struct of that name.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// Inbox receives many datagrams at a time. It is 2 MiB large, of which only
// what datagrams have filled takes memory; hold it only while there is something
// to read.
type Inbox struct {
	n, next int
	msgs    [Len]mmsghdr
	iov     [Len]unix.Iovec
	from    [Len]unix.RawSockaddrInet6
	control [Len][controlLen]byte
	pieces  [Len][]byte
	data    [Len][maxDatagram]byte
}

var inboxes = sync.Pool{New: func() any {
	b := new(Inbox)
	for i := range b.msgs {
		b.iov[i].Base = &b.data[i][0]
		b.iov[i].SetLen(maxDatagram)
		h := &b.msgs[i].hdr
		h.Name, h.Iov, h.Control = (*byte)(unsafe.Pointer(&b.from[i])), &b.iov[i], &b.control[i][0]
		h.SetIovlen(1)
	}
	b.n = Len
	return b
}}

var inUse = make(chan struct{}, maxInboxes)

// GetInbox takes an inbox from the pool. It may wait for others to Put theirs,
// first come, first served.
func GetInbox() *Inbox {
	inUse <- struct{}{}
	return inboxes.Get().(*Inbox)
}

// Put gives the inbox back, with everything that Next returned.
func (b *Inbox) Put() {
	inboxes.Put(b)
	<-inUse
}

// Join asks the kernel to hand over as one what it has received as one.
func Join(fd int) {
	// Best effort: without it datagrams come one by one.
	_ = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1)
}

// Receive reads what waits, at most Len datagrams or trains, without blocking.
func (b *Inbox) Receive(fd int) unix.Errno {
	for i := range b.n {
		h := &b.msgs[i].hdr
		h.Namelen, h.Flags = uint32(unsafe.Sizeof(b.from[i])), 0
		h.SetControllen(controlLen)
	}
	b.n, b.next = 0, 0
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[0])), Len, unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return errno
	}
	b.n = int(n)
	return 0
}

// Full tells that more may wait.
func (b *Inbox) Full() bool { return b.n == Len }

// Train is what one sender sent, one after the other.
type Train struct {
	From netip.AddrPort
	// Zone is the interface index of a link-local sender.
	Zone uint32
	// PktInfo is the data of IP_PKTINFO or IPV6_PKTINFO, if the socket asks.
	PktInfo []byte
	// Segment is zero for a single datagram.
	Segment int
	// Data is valid until the next Receive.
	Data [][]byte
	// Count is the number of datagrams, Bytes that of their bytes.
	Count, Bytes int
	// Truncated tells of a datagram that did not fit; there is no Data.
	Truncated bool
}

// Next returns the next train of what was received.
func (b *Inbox) Next() (t Train, ok bool) {
	if b.next >= b.n {
		return t, false
	}
	first := b.next
	b.next++
	m := &b.msgs[first]
	rsa := &b.from[first]
	t.From = Sockaddr(rsa)
	if rsa.Family == unix.AF_INET6 {
		t.Zone = rsa.Scope_id
	}
	if m.hdr.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		t.Truncated = true
		return t, true
	}
	var segment int
	segment, t.PktInfo = parseControl(b.control[first][:m.hdr.Controllen])
	size := int(m.len)
	b.pieces[first] = b.data[first][:size]
	if segment == 0 {
		segment = size
	}
	t.Bytes, t.Count = size, 1
	if size > segment {
		t.Count = (size + segment - 1) / segment
	}
	// Join what follows as long as nothing but the last one is shorter.
	for size > 0 && size%segment == 0 && b.next < b.n {
		i := b.next
		m := &b.msgs[i]
		n := int(m.len)
		if n == 0 || t.Bytes+n > MaxBytes || m.hdr.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 ||
			b.from[i] != *rsa {
			break
		}
		seg, info := parseControl(b.control[i][:m.hdr.Controllen])
		count := 1
		switch {
		case seg == 0 && n > segment, seg != 0 && seg != segment:
			count = MaxSegments
		case seg != 0:
			count = (n + seg - 1) / seg
		}
		if t.Count+count > MaxSegments || !bytes.Equal(info, t.PktInfo) {
			break
		}
		b.pieces[i] = b.data[i][:n]
		size = n
		t.Bytes += n
		t.Count += count
		b.next++
	}
	t.Data = b.pieces[first:b.next]
	if t.Count > 1 {
		t.Segment = segment
	}
	return t, true
}

// parseControl finds the size of joined datagrams and the data of PKTINFO.
func parseControl(b []byte) (segment int, info []byte) {
	for len(b) >= unix.CmsgLen(0) {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		n := int(h.Len)
		if n < unix.CmsgLen(0) || n > len(b) {
			return segment, info
		}
		data := b[unix.CmsgLen(0):n]
		switch {
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			segment = int(binary.NativeEndian.Uint32(data))
		case h.Level == unix.SOL_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo,
			h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			info = data
		}
		b = b[min(len(b), unix.CmsgSpace(n-unix.CmsgLen(0))):]
	}
	return segment, info
}
