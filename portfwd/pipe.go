package portfwd

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// The sizes of the pipes by how many are in use: all pages of a user's pipes
// together are bounded (pipe-user-pages-soft, 64 MiB), so a crowd of stalled
// connections must not leave two pages for each of the others.
const (
	bigPipe, bigPipes       = 1 << 20, 16
	mediumPipe, mediumPipes = 256 << 10, 64
	smallPipe               = 64 << 10 // the kernel's default
)

// pipe is a pipe of the kernel; it is empty whenever it is in the pool.
type pipe struct {
	r, w int
	size int
}

// pipePool keeps empty pipes for reuse, at most pooledPipes.
type pipePool struct {
	free chan *pipe
	used atomic.Int64
}

const pooledPipes = 8

func newPipePool() *pipePool { return &pipePool{free: make(chan *pipe, pooledPipes)} }

// get returns nil if no pipe can be made.
func (pp *pipePool) get() *pipe {
	n := pp.used.Add(1)
	select {
	case p := <-pp.free:
		return p
	default:
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		pp.used.Add(-1)
		return nil
	}
	p := &pipe{r: fds[0], w: fds[1], size: smallPipe}
	want := smallPipe
	switch {
	case n <= bigPipes:
		want = bigPipe
	case n <= mediumPipes:
		want = mediumPipe
	}
	if want != p.size {
		// Over the user's limit the pipe stays as it is, and works.
		if _, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, want); err == nil {
			p.size = want
		}
	}
	return p
}

// put takes an empty pipe back.
func (pp *pipePool) put(p *pipe) {
	pp.used.Add(-1)
	if p.size == bigPipe {
		select {
		case pp.free <- p:
			return
		default:
		}
	}
	p.close()
}

// drop closes a pipe with what is in it.
func (pp *pipePool) drop(p *pipe) {
	pp.used.Add(-1)
	p.close()
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// close is called when no pipe is in use any more.
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

// chunk stands in for a pipe when the process is out of descriptors.
type chunk struct {
	buf      [smallPipe]byte
	from, to int
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}
