package portfwd

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// relay carries a connection both ways until both directions have ended, and
// closes both ends. An end of stream is passed on as such, a reset as a reset:
// what either end sees is what it would see without us between. When ctx ends,
// both are reset. It returns the bytes from a to b and from b to a.
func relay(ctx context.Context, pipes *pipePool, a, b *net.TCPConn) (ab, ba int64) {
	r := &relayer{pipes: pipes, conn: [2]*net.TCPConn{a, b}}
	defer a.Close()
	defer b.Close()
	for i, c := range r.conn {
		rc, err := c.SyscallConn()
		if err != nil {
			r.reset() // closed already
			return 0, 0
		}
		r.raw[i] = rc
	}
	stop := context.AfterFunc(ctx, r.reset)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { ba = r.half(1) })
	ab = r.half(0)
	wg.Wait()
	return ab, ba
}

type relayer struct {
	pipes *pipePool
	conn  [2]*net.TCPConn
	raw   [2]syscall.RawConn
	ended atomic.Int32 // directions that reached their end of stream
}

func (r *relayer) reset() {
	reset(r.conn[0])
	reset(r.conn[1])
}

// half carries the direction from conn[i] to the other one.
func (r *relayer) half(i int) int64 {
	dst := r.conn[1-i]
	n, err := r.copy(r.raw[1-i], r.raw[i])
	if err != nil {
		r.reset()
		return n
	}
	// Counted before the FIN is sent: see below.
	last := r.ended.Add(1) == 2
	if dst.CloseWrite() != nil {
		r.reset()
		return n
	}
	if last {
		dst.SetReadDeadline(time.Unix(1, 0)) // ends the wait below, if any
		return n
	}
	// Nobody reads from conn[i] any more, and the other direction may have nothing
	// to write to it: without this, its reset would go unnoticed for ever. Once
	// the other direction has ended too, a closed state is the regular one.
	if r.waitReset(r.raw[i]) && r.ended.Load() < 2 {
		r.reset()
	}
	return n
}

// waitReset waits until a connection is gone; false if the wait was ended.
func (r *relayer) waitReset(rc syscall.RawConn) bool {
	const stateClose = 7 // TCP_CLOSE
	return rc.Read(func(fd uintptr) bool {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		return err != nil || info.State == stateClose
	}) == nil
}

// copy moves bytes inside the kernel: socket to pipe, pipe to socket. The pipe
// is taken once there is something to read and given back when it is empty, so
// an idle connection costs two descriptors, not six as with io.Copy, whose pipes
// also eat up the user's pipe-user-pages-soft.
func (r *relayer) copy(dst, src syscall.RawConn) (total int64, err error) {
	for {
		var (
			p    *pipe
			n    int
			serr error
		)
		err := src.Read(func(fd uintptr) bool {
			if p = r.pipes.get(); p == nil {
				serr = waitReadable(int(fd))
				return serr != unix.EAGAIN
			}
			if n, serr = splice(int(fd), p.w, maxSplice); serr == unix.EAGAIN {
				r.pipes.put(p)
				p = nil
				return false
			}
			return true
		})
		if err == nil {
			err = serr
		}
		if p == nil {
			if err != nil {
				return total, err
			}
			// Out of descriptors: this chunk goes through user memory.
			n, err = copyChunk(dst, src)
			total += int64(n)
			if n == 0 || err != nil {
				return total, err
			}
			continue
		}
		if n == 0 || err != nil {
			r.pipes.put(p)
			return total, err
		}
		for left := n; left > 0; {
			err = dst.Write(func(fd uintptr) bool {
				n, serr = splice(p.r, int(fd), left)
				return serr != unix.EAGAIN
			})
			if err == nil {
				err = serr
			}
			if err != nil {
				p.close() // with the bytes that are in it
				return total, err
			}
			left -= n
			total += int64(n)
		}
		r.pipes.put(p)
	}
}

const maxSplice = 1 << 20

func splice(from, to, n int) (int, error) {
	for {
		got, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if err != unix.EINTR {
			return max(int(got), 0), err
		}
	}
}

// waitReadable returns EAGAIN if a read would block.
func waitReadable(fd int) error {
	var b [1]byte
	_, _, err := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return err
}

var chunks = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

func copyChunk(dst, src syscall.RawConn) (int, error) {
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	n, err := rawIO(src.Read, func(fd int) (int, error) { return unix.Read(fd, *buf) })
	for done := 0; done < n && err == nil; {
		var w int
		w, err = rawIO(dst.Write, func(fd int) (int, error) {
			return unix.SendmsgN(fd, (*buf)[done:n], nil, nil, unix.MSG_NOSIGNAL)
		})
		done += w
	}
	return n, err
}

// rawIO does one non-blocking system call when the descriptor is ready for it.
func rawIO(wait func(func(uintptr) bool) error, call func(fd int) (int, error)) (n int, err error) {
	werr := wait(func(fd uintptr) bool {
		for {
			if n, err = call(int(fd)); err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	if werr != nil {
		return 0, werr
	}
	return max(n, 0), err
}

// pipePool keeps empty pipes for reuse, up to its size.
type pipePool struct{ free chan *pipe }

type pipe struct{ r, w int }

func newPipePool(size int) *pipePool { return &pipePool{free: make(chan *pipe, size)} }

// get returns nil if no pipe can be made.
func (pp *pipePool) get() *pipe {
	select {
	case p := <-pp.free:
		return p
	default:
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return nil
	}
	// Over the user's pipe-user-pages-soft the pipe stays small and works.
	unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, maxSplice)
	return &pipe{r: fds[0], w: fds[1]}
}

func (pp *pipePool) put(p *pipe) {
	select {
	case pp.free <- p:
	default:
		p.close()
	}
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// close is called when no relay runs any more.
func (pp *pipePool) close() {
	for {
		select {
		case p := <-pp.free:
			p.close()
		default:
			return
		}
	}
}
