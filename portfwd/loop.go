package portfwd

import (
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// loop carries pairs: one goroutine and one epoll descriptor for all of them. The
// runtime polls that descriptor, so the loop holds no thread while nothing moves,
// and a wake-up of many connections costs one switch of goroutines.
type loop struct {
	fd   int
	file *os.File // owns fd
	done chan struct{}

	mu    sync.Mutex // guards what follows
	slots []slot
	free  []int32
}

// loops are the loops of a Manager, made when they are first needed.
type loops struct {
	mu   sync.Mutex // guards what follows
	all  []*loop
	next int
}

// One loop moves about what one core can; half of the cores are the clients' and
// the guest's.
func maxLoops() int { return max(1, min(4, runtime.GOMAXPROCS(0)/2)) }

// carry gives a pair to a loop. On an error both ends have been reset.
func (m *manager) carry(p *pair) error {
	ls := &m.loops
	ls.mu.Lock()
	if len(ls.all) <= ls.next {
		l, err := newLoop()
		if err != nil {
			ls.mu.Unlock()
			p.kill()
			return err
		}
		ls.all = append(ls.all, l)
	}
	l := ls.all[ls.next]
	ls.next = (ls.next + 1) % maxLoops()
	ls.mu.Unlock()
	return l.add(p)
}

// close is called when there are no pairs any more.
func (ls *loops) close() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, l := range ls.all {
		l.close()
	}
	ls.all = nil
}

type slot struct {
	gen  int32 // counts the pairs that the slot has had
	pair *pair
}

// pairID is what epoll remembers of a pair. An event that was fetched before its
// pair ended must not reach the next one in the slot.
type pairID struct{ slot, gen int32 }

const loopEvents = 64

func newLoop() (*loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	// Only then does the runtime poll it.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	l := &loop{fd: fd, file: os.NewFile(uintptr(fd), "epoll"), done: make(chan struct{})}
	rc, err := l.file.SyscallConn()
	if err != nil {
		l.file.Close()
		return nil, err
	}
	go func() {
		defer close(l.done)
		l.run(rc)
	}()
	return l, nil
}

// close is called when no pair is left.
func (l *loop) close() {
	l.file.Close()
	<-l.done
}

func (l *loop) run(rc syscall.RawConn) {
	var events [loopEvents]unix.EpollEvent
	var busy, next []*pair // those that had to let others have their turn
	rc.Read(func(uintptr) bool {
		for {
			n, err := unix.EpollWait(l.fd, events[:], 0)
			if err != nil && err != unix.EINTR {
				return true // closed
			}
			for _, ev := range events[:max(n, 0)] {
				id := pairID{ev.Fd >> 1, ev.Pad}
				if p := l.find(id); p != nil && p.event(int(ev.Fd&1), ev.Events) {
					next = append(next, p)
				}
			}
			for _, p := range busy {
				if p.resume() {
					next = append(next, p)
				}
			}
			clear(busy)
			busy, next = next, busy[:0]
			if n == 0 && len(busy) == 0 {
				return false // wait for an event
			}
		}
	})
}

// add begins to carry a pair whose two sockets are connected and non-blocking.
func (l *loop) add(p *pair) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil // killed in between
	}
	p.loop = l
	l.mu.Lock()
	if n := len(l.free); n > 0 {
		p.id.slot = l.free[n-1]
		l.free = l.free[:n-1]
	} else {
		p.id.slot = int32(len(l.slots))
		l.slots = append(l.slots, slot{})
	}
	s := &l.slots[p.id.slot]
	s.gen++
	s.pair, p.id.gen = p, s.gen
	l.mu.Unlock()
	// A client that speaks first has done so, mostly.
	p.half[0].readable = true
	if p.move(); p.closed {
		return nil
	}
	for i := range p.fd {
		if err := l.watch(unix.EPOLL_CTL_ADD, p, i); err != nil {
			p.end(true)
			return err
		}
	}
	p.watched = true
	return nil
}

// watch tells epoll about fd[i] of a pair. It reports what is ready by now, too.
func (l *loop) watch(op int, p *pair, i int) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET, Fd: p.id.slot<<1 | int32(i), Pad: p.id.gen}
	if p.half[1-i].armed {
		ev.Events |= unix.EPOLLOUT
	}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(l.fd, op, p.fd[i], &ev))
}

func (l *loop) find(id pairID) *pair {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.slots[id.slot]; s.gen == id.gen {
		return s.pair
	}
	return nil
}

// remove forgets a pair. epoll forgets its sockets when they are closed.
func (l *loop) remove(p *pair) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slots[p.id.slot].pair = nil
	l.free = append(l.free, p.id.slot)
}
