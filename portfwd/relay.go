package portfwd

import (
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// pair is a connection that the direct driver carries: the client's socket and
// the guest's. It ends when both directions have ended. An end of stream is
// passed on as such, a reset as a reset: what either end sees is what it would
// see without us between.
type pair struct {
	pipes *pipePool
	loop  *loop // nil until it has one
	id    pairID
	moved [2]*atomic.Uint64 // count the bytes from the client and from the guest
	ended func()            // is called once

	mu      sync.Mutex // guards what follows, and fd from being closed in use
	closed  bool
	watched bool   // epoll knows fd
	fd      [2]int // the client's, the guest's
	half    [2]half
}

// half is one direction: half[i] leads from fd[i] to the other one. Bytes go from
// the socket to a pipe and from the pipe to the socket inside the kernel. The pipe
// is taken once there is something to read and given back when it is empty, so
// an idle connection costs two descriptors and no memory of the kernel's pipes.
type half struct {
	pipe     *pipe  // nil: nothing is on its way
	mem      *chunk // instead of a pipe, out of descriptors
	held     int    // bytes in pipe or mem
	readable bool   // fd[i] may have something
	blocked  bool   // the other socket has no room
	armed    bool   // and epoll has been asked to say when it has
	reset    bool   // fd[i] has failed; it may still hold bytes to read
	eof      bool   // fd[i] has ended, and the other one has been told
}

// pumpRounds bounds what a direction moves, in pipes full, until others have
// their turn.
const pumpRounds = 4

// event handles what epoll says of fd[i]; again says that there is more to move.
func (p *pair) event(i int, events uint32) (again bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	const gone = unix.EPOLLERR | unix.EPOLLHUP
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|gone) != 0 {
		p.half[i].readable = true
	}
	if events&(unix.EPOLLOUT|gone) != 0 {
		p.half[1-i].blocked = false
	}
	if events&unix.EPOLLERR != 0 {
		p.half[i].reset = true
	}
	return p.move()
}

// resume goes on after pumpRounds.
func (p *pair) resume() (again bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.closed && p.move()
}

// kill resets both ends.
func (p *pair) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.end(true)
	}
}

// move moves what can be moved both ways. p.mu is held.
func (p *pair) move() (again bool) {
	for i := range p.half {
		more, err := p.pump(i)
		if err != nil {
			p.end(true)
			return false
		}
		again = again || more
	}
	if p.half[0].eof && p.half[1].eof {
		p.end(false)
		return false
	}
	return again
}

// pump moves bytes from fd[i] to the other one until either has to be waited for.
func (p *pair) pump(i int) (more bool, err error) {
	h, src, dst := &p.half[i], p.fd[i], p.fd[1-i]
	for range pumpRounds {
		if h.held == 0 {
			if h.eof {
				return false, h.stuck()
			}
			if !h.readable {
				return false, nil
			}
			n, err := h.fill(p.pipes, src)
			switch {
			case err == unix.EAGAIN:
				h.readable = false
				h.release(p.pipes)
				return false, nil
			case err != nil:
				return false, err
			case n == 0:
				h.release(p.pipes)
				h.eof = true
				return false, unix.Shutdown(dst, unix.SHUT_WR)
			}
			h.held = n
		}
		if h.blocked {
			return false, h.stuck()
		}
		n, err := h.drain(dst)
		if err == unix.EAGAIN {
			h.blocked = true
			if h.armed {
				return false, h.stuck()
			}
			h.armed = true // most connections never wait for room
			if p.watched {
				err = p.loop.watch(unix.EPOLL_CTL_MOD, p, 1-i)
			} else {
				err = nil // add has yet to do it
			}
			return false, errors.Join(err, h.stuck())
		}
		if err != nil {
			return false, err
		}
		h.held -= n
		p.moved[i].Add(uint64(n))
	}
	return true, nil
}

// stuck is asked when nothing is read from a socket, so that its reset would go
// unnoticed: because it has ended, or because the other end does not read, which
// need not get the bytes that the reset has overtaken.
func (h *half) stuck() error {
	if h.reset {
		return unix.ECONNRESET
	}
	return nil
}

// end closes both ends, with a RST if they were not both told of the other's end.
// p.mu is held.
func (p *pair) end(reset bool) {
	p.closed = true
	for i := range p.half {
		p.half[i].release(p.pipes)
	}
	if p.loop != nil {
		p.loop.remove(p)
	}
	for _, fd := range p.fd {
		if reset {
			resetFD(fd)
		} else {
			unix.Close(fd)
		}
	}
	p.ended()
}

// fill reads what there is, into the pipe or memory of h.
func (h *half) fill(pipes *pipePool, src int) (int, error) {
	if h.pipe == nil && h.mem == nil {
		if h.pipe = pipes.get(); h.pipe == nil {
			h.mem = chunks.Get().(*chunk)
		}
	}
	if h.pipe != nil {
		return splice(src, h.pipe.w, h.pipe.size)
	}
	n, err := again(func() (int, error) { return unix.Read(src, h.mem.buf[:]) })
	h.mem.from, h.mem.to = 0, n
	return n, err
}

// drain writes what h holds.
func (h *half) drain(dst int) (int, error) {
	if h.pipe != nil {
		return splice(h.pipe.r, dst, h.held)
	}
	n, err := again(func() (int, error) {
		return unix.SendmsgN(dst, h.mem.buf[h.mem.from:h.mem.to], nil, nil, unix.MSG_NOSIGNAL)
	})
	h.mem.from += n
	return n, err
}

// release gives the pipe or the memory back.
func (h *half) release(pipes *pipePool) {
	switch {
	case h.pipe == nil:
	case h.held > 0:
		pipes.drop(h.pipe)
	default:
		pipes.put(h.pipe)
	}
	if h.mem != nil {
		chunks.Put(h.mem)
	}
	h.pipe, h.mem, h.held = nil, nil, 0
}

func splice(from, to, n int) (int, error) {
	return again(func() (int, error) {
		got, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		return int(got), err
	})
}

// again repeats a system call that a signal interrupted.
func again(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// resetFD closes a connection with a RST, which is what a client of a closed port
// gets.
func resetFD(fd int) {
	// Fails only on a connection that is gone already.
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(fd)
}
