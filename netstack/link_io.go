package netstack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
)

// headLen is how much of a frame lands in the reader's own buffer, behind
// which a whole page of view follows. It holds every header of a datagram that
// this package looks into: 14 + 40 + options of a hostile but sane size.
const headLen = 320

// link is the near end of a link: an open descriptor.
type link struct {
	file   *os.File
	raw    syscall.RawConn
	hdrLen int
	// aux tells that the kernel takes tags of VLANs out of frames, and says so
	// beside them: the link is a packet socket.
	aux bool
	// noTrains tells that the kernel does not cut what is written to the link
	// into datagrams.
	noTrains atomic.Bool

	// mu lets any number of writers in and keeps close out while they write.
	// A write to a TAP or a packet socket is one frame and needs no order.
	mu sync.RWMutex
	fd int // -1 when closed
}

// newLink takes a duplicate of f, so that its close has no other owner.
func newLink(f *os.File, hdrLen int) (*link, error) {
	if hdrLen != vnetHdrLen && hdrLen != vnetHdrLenOld {
		return nil, fmt.Errorf("virtio header of %d bytes: must be %d or %d", hdrLen, vnetHdrLenOld, vnetHdrLen)
	}
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("link descriptor: %w", err)
	}
	fd := -1
	if cerr := rc.Control(func(old uintptr) {
		if fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			// With it, the runtime's poller takes the descriptor.
			err = unix.SetNonblock(fd, true)
		}
	}); cerr != nil {
		return nil, fmt.Errorf("link descriptor: %w", cerr)
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("duplicate link descriptor: %w", err)
	}
	l := &link{file: os.NewFile(uintptr(fd), "link"), hdrLen: hdrLen, fd: fd}
	if l.raw, err = l.file.SyscallConn(); err != nil {
		l.file.Close()
		return nil, fmt.Errorf("link descriptor: %w", err)
	}
	// A TAP is no socket, and has no domain.
	if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && domain == unix.AF_PACKET {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
			l.file.Close()
			return nil, os.NewSyscallError("setsockopt(PACKET_AUXDATA)", err)
		}
		l.aux = true
	}
	return l, nil
}

// close wakes the reader and closes the descriptor when no writer uses it.
func (l *link) close() error {
	l.mu.Lock()
	open := l.fd >= 0
	l.fd = -1
	l.mu.Unlock()
	if !open {
		return nil
	}
	// Without the lock: it waits for the reader, which may be about to write.
	return l.file.Close()
}

// write sends one frame, given as pieces of which the first is the whole
// virtio-net header. It never blocks.
func (l *link) write(iov []unix.Iovec) error {
	// A shorter header lacks num_buffers, the last field, which we never set.
	iov[0].SetLen(l.hdrLen)
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.fd < 0 {
		return os.ErrClosed
	}
	_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(l.fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
	if errno != 0 {
		return errno
	}
	return nil
}

// iovecOf is one piece of a frame. It leaves b where it is, on the caller's stack.
func iovecOf(b []byte) unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	return v
}

// linkReader reads the frames of one link.
type linkReader struct {
	link *link
	raw  [vnetHdrLen]byte
	head [headLen]byte
	// view takes what does not fit into head. It is as large as gVisor pools
	// views, and is handed on with its contents when they are large.
	view   *buffer.View
	parked atomic.Pointer[buffer.View]
	cur    frame
	iov    [3]unix.Iovec
	// Of a packet socket.
	msg     unix.Msghdr
	control [auxSpace]byte
	account account
	// emptied counts how often there was nothing left to read.
	emptied uint64
}

// viewLen is the largest size of view that gVisor pools.
const viewLen = 64 << 10

// run calls fn for each frame, and idle when there is none left for now, until
// the link is closed (nil) or fails, or stop says so.
func (r *linkReader) run(stop func() bool, fn func(*frame), idle func()) error {
	defer func() {
		r.rest()
		r.reap()
	}()
	var failed error
	yielded := false
	err := r.link.raw.Read(func(fd uintptr) bool {
		for !stop() {
			f, errno := r.read(int(fd))
			switch errno {
			case 0:
				yielded = false
				if f != nil {
					fn(f)
				}
				if r.account.over() {
					idle()
					r.account.wait()
				}
			case unix.EAGAIN:
				r.emptied++
				idle()
				if yielded {
					yielded = false
					r.rest()
					return false
				}
				// Once more, after everybody else: what was read is then done, and
				// what it caused has often arrived. To sleep and to be woken costs
				// more than to ask.
				yielded = true
				runtime.Gosched()
				unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
			case unix.EINTR:
			case unix.ENOBUFS, unix.ENETDOWN:
				// The guest took its interface down; frames come again when it
				// is up.
				r.rest()
				return false
			default:
				failed = errno
				return true
			}
		}
		return true
	})
	if stop() {
		return nil // closed, and the read says so
	}
	return errors.Join(failed, err)
}

// rest leaves the view where reap finds it while the reader sleeps.
func (r *linkReader) rest() {
	r.account.rest()
	r.cur, r.iov[2].Base = frame{}, nil // they point into it
	r.parked.Store(r.view)
	r.view = nil
}

// wake takes it back, or gets another one.
func (r *linkReader) wake() {
	if r.view = r.parked.Swap(nil); r.view == nil {
		r.view = buffer.NewViewSize(viewLen)
	}
}

// reap gives the view of a reader that sleeps back to gVisor: a thousand guests are
// not all busy. It may run while the reader does.
func (r *linkReader) reap() {
	if v := r.parked.Swap(nil); v != nil {
		v.Release()
	}
}

// read reads one frame. A runt gives nil.
func (r *linkReader) read(fd int) (*frame, unix.Errno) {
	if r.view == nil {
		r.wake()
	}
	iov := &r.iov
	iov[0].Base = &r.raw[0]
	iov[0].SetLen(r.link.hdrLen)
	iov[1].Base = &r.head[0]
	iov[1].SetLen(headLen)
	iov[2].Base = r.view.BasePtr()
	iov[2].SetLen(viewLen)
	var n uintptr
	var errno unix.Errno
	if r.link.aux {
		n, errno = r.receive(fd)
	} else {
		n, _, errno = unix.RawSyscall(unix.SYS_READV, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
	}
	if errno != 0 {
		return nil, errno
	}
	if n == 0 {
		return nil, unix.EPIPE // the other end is closed: no frame is empty
	}
	size := int(n) - r.link.hdrLen
	if size < ethLen {
		return nil, 0
	}
	f := &r.cur
	*f = frame{vnet: parseVnetHdr(r.raw[:]), raw: r.raw[:], head: r.head[:min(size, headLen)]}
	if size > headLen {
		f.tail = r.view.AsSlice()[:size-headLen]
	}
	if r.link.aux {
		r.auxTag(f)
	}
	f.untag()
	return f, 0
}

// auxSpace is what the kernel says about a frame: struct tpacket_auxdata in a
// control message.
const auxSpace = 16 + 24

// receive reads one frame from a packet socket.
func (r *linkReader) receive(fd int) (uintptr, unix.Errno) {
	r.msg.Iov, r.msg.Control = &r.iov[0], &r.control[0]
	r.msg.SetIovlen(len(r.iov))
	r.msg.SetControllen(len(r.control))
	n, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&r.msg)), 0)
	return n, errno
}

// auxTag notes the tag that the kernel took out of the frame just read.
func (r *linkReader) auxTag(f *frame) {
	const (
		auxLen         = 20
		statusTag      = 0x10 // TP_STATUS_VLAN_VALID
		statusProtocol = 0x40 // TP_STATUS_VLAN_TPID_VALID
	)
	h := (*unix.Cmsghdr)(unsafe.Pointer(&r.control[0]))
	if r.msg.Controllen < unix.SizeofCmsghdr+auxLen || h.Level != unix.SOL_PACKET || h.Type != unix.PACKET_AUXDATA {
		return
	}
	aux := r.control[unix.SizeofCmsghdr:]
	status := binary.NativeEndian.Uint32(aux)
	if status&statusTag == 0 {
		return
	}
	f.tagged, f.tci = true, binary.NativeEndian.Uint16(aux[16:])
	f.qinq = status&statusProtocol != 0 && binary.NativeEndian.Uint16(aux[18:]) != etherVLAN
}

// take returns the datagram p, whose bytes are in the reader's buffers, as a
// gVisor buffer. Large contents move without a copy.
func (r *linkReader) take(p *packet) buffer.Buffer {
	// A view takes 64 KiB whatever is in it, and gVisor counts what is in it: less
	// than half of one is copied, so that a full receive buffer is at most twice
	// as large as its limit.
	const copyMax = viewLen / 2
	if len(p.tail) == 0 {
		return buffer.MakeWithView(buffer.NewViewWithData(p.head))
	}
	if len(p.head)+len(p.tail) <= copyMax || r == nil {
		v := buffer.NewView(len(p.head) + len(p.tail))
		v.Write(p.head)
		v.Write(p.tail)
		return buffer.MakeWithView(v)
	}
	b := buffer.MakeWithView(buffer.NewViewWithData(p.head))
	v := r.view
	r.view = nil
	v.CapLength(len(p.tail))
	b.Append(v)
	return b
}
