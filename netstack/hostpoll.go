package netstack

import (
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hostPoller waits for the host's TCP sockets of one port. It is an epoll set of
// its own, which as a whole is in the runtime's poller: an idle socket then needs
// no goroutine, and an event says more than that it is time to try again.
type hostPoller struct {
	file *os.File
	raw  syscall.RawConn

	mu      sync.RWMutex
	fd      int // -1 when closed
	waiting map[int32]hostListener
}

// hostListener is told what happened to its socket. It runs on the goroutine of
// the poller and must not block. An event may be for the socket that had the
// descriptor before.
type hostListener interface {
	hostEvent(events uint32)
}

// What a socket is watched for, once per change: a read that gives less than there
// was room for need not be followed by another one before the next event.
const hostEvents = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLPRI | unix.EPOLLRDHUP | unix.EPOLLET

// hostDrain are the events to which that does not apply: an end or an error may
// follow what was read, and a read stops at urgent data.
const hostDrain = unix.EPOLLPRI | unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR

func (h *hostPoller) init() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	// With it, the runtime's poller takes the descriptor.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return os.NewSyscallError("fcntl", err)
	}
	h.file, h.fd, h.waiting = os.NewFile(uintptr(fd), "epoll"), fd, map[int32]hostListener{}
	if h.raw, err = h.file.SyscallConn(); err != nil {
		h.file.Close()
		return err
	}
	return nil
}

// close ends run. Sockets that are watched stay as they are.
func (h *hostPoller) close() {
	h.mu.Lock()
	h.fd = -1
	h.mu.Unlock()
	_ = h.file.Close() // an epoll set has nothing to lose
}

// run passes on events until close.
func (h *hostPoller) run() error {
	var events [64]unix.EpollEvent
	var failed error
	err := h.raw.Read(func(fd uintptr) bool {
		for {
			n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, fd, uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
			if errno == unix.EINTR {
				continue
			}
			if errno != 0 {
				failed = os.NewSyscallError("epoll_pwait", errno)
				return true
			}
			for i := range events[:n] {
				e := &events[i]
				h.mu.RLock()
				l := h.waiting[e.Fd]
				h.mu.RUnlock()
				if l != nil {
					l.hostEvent(e.Events)
				}
			}
			if int(n) < len(events) {
				return false
			}
		}
	})
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.fd < 0 {
		return nil // closed, and the read says so
	}
	if failed != nil {
		return failed
	}
	return err
}

// watch makes l the listener of a socket. It is told at once what the socket is
// ready for.
func (h *hostPoller) watch(fd int, l hostListener) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fd < 0 {
		return os.ErrClosed
	}
	op := unix.EPOLL_CTL_ADD
	if _, ok := h.waiting[int32(fd)]; ok {
		op = unix.EPOLL_CTL_MOD
	}
	e := unix.EpollEvent{Events: hostEvents, Fd: int32(fd)}
	if _, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(h.fd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&e)), 0, 0); errno != 0 {
		return os.NewSyscallError("epoll_ctl", errno)
	}
	h.waiting[int32(fd)] = l
	return nil
}

// forget is for a socket that is about to be closed, which takes it out of the
// epoll set.
func (h *hostPoller) forget(fd int) {
	h.mu.Lock()
	delete(h.waiting, int32(fd))
	h.mu.Unlock()
}
