package netstack

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// turns share the process between the readers of a network's links, and the workers that
// bring what the host sends. A link that always has another frame, or a socket that has
// more, would keep a processor, and the runtime looks for what else has arrived only
// when none of them has anything to run, or every 10 ms: that was the latency of all
// others. So who has worked for a turn waits until the runtime has looked, and whoever
// has something to do has begun.
type turns struct {
	file *os.File // an eventfd
	raw  syscall.RawConn

	mu      sync.Mutex // guards what follows
	looking bool
	waiting []chan struct{}
}

// turn is how long one works before it lets others go on. What it takes to let
// them is about 2 µs.
const turn = 200 * time.Microsecond

// Work that a frame has others do is charged to its reader, about as much as it takes.
const (
	costQuery = 20 * time.Microsecond // of a DNS query
	costDial  = 10 * time.Microsecond // of a connection attempt
)

func (t *turns) init() error {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	t.file = os.NewFile(uintptr(fd), "turns")
	if t.raw, err = t.file.SyscallConn(); err != nil {
		return errors.Join(err, t.file.Close())
	}
	return nil
}

func (t *turns) close() error { return t.file.Close() }

// wait ends a turn. mine has room for one.
func (t *turns) wait(mine chan struct{}) {
	t.mu.Lock()
	if t.looking {
		t.waiting = append(t.waiting, mine)
		t.mu.Unlock()
		<-mine
		return
	}
	t.looking = true
	t.mu.Unlock()
	wrote := false
	// An event that only the runtime's poller tells: with it come all others. An
	// error says that the network is closed.
	_ = t.raw.Read(func(fd uintptr) bool {
		if wrote {
			return true
		}
		one := uint64(1)
		_, _, errno := unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one))
		wrote = errno == 0
		return !wrote
	})
	runtime.Gosched() // after those
	t.mu.Lock()
	t.looking = false
	for _, w := range t.waiting {
		w <- struct{}{}
	}
	t.waiting = t.waiting[:0]
	t.mu.Unlock()
}

// account is what a reader or a worker has used of its turn. It alone uses it.
type account struct {
	turns  *turns
	again  chan struct{}
	began  time.Time
	frames int
	extra  time.Duration
}

// charge adds what others do for the reader's port.
func (a *account) charge(d time.Duration) { a.extra += d }

// rest is for a link that is empty: what comes next begins a new turn.
func (a *account) rest() { a.frames, a.extra = 0, 0 }

// over counts a frame and tells whether the turn is over.
func (a *account) over() bool {
	if a.frames++; a.frames == 1 {
		a.began = time.Now()
		return false
	}
	if a.frames%4 != 0 && a.extra < turn {
		return false // to ask for the time at each would be a part of it
	}
	return time.Since(a.began)+a.extra >= turn
}

// passed is over for pieces so large that the time is asked for at each.
func (a *account) passed() bool {
	if a.frames++; a.frames == 1 {
		a.began = time.Now()
		return false
	}
	return time.Since(a.began) >= turn
}

// wait lets the others go on. A turn that was exceeded makes the next one shorter.
func (a *account) wait() {
	a.extra = min(max(0, time.Since(a.began)+a.extra-turn), turn/2)
	a.turns.wait(a.again)
	a.frames = 0
}
