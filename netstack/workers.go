package netstack

import (
	"sync"
	"sync/atomic"
)

// workers are the goroutines of one port that work when something happens to a
// connection: an idle connection has none. Some are kept, as a new one begins with
// a small stack, and to let it grow costs more than the work.
type workers struct {
	turns  *turns
	mu     sync.Mutex
	parked []*worker // the last one parked is the first one to work
	closed bool
	wg     sync.WaitGroup
}

// maxParked is how many goroutines wait for work.
const maxParked = 64

type worker struct {
	next chan job
	// scratch takes what a read gives if it is not much.
	scratch []byte
	src     bytesPayload
	account account
}

// job is what a worker does.
type job interface {
	work(w *worker)
}

// start has j done. False: the port is closed.
func (p *workers) start(j job) bool {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return false
	}
	if n := len(p.parked); n > 0 {
		w := p.parked[n-1]
		p.parked = p.parked[:n-1]
		p.mu.Unlock()
		w.next <- j // has room
		return true
	}
	p.wg.Add(1)
	p.mu.Unlock()
	go p.run(j)
	return true
}

func (p *workers) run(j job) {
	defer p.wg.Done()
	w := &worker{next: make(chan job, 1), account: account{turns: p.turns, again: make(chan struct{}, 1)}}
	for ok := true; ok; j, ok = <-w.next {
		w.account.rest()
		j.work(w)
		if !p.park(w) {
			return
		}
	}
}

func (p *workers) park(w *worker) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.parked) >= maxParked {
		return false
	}
	p.parked = append(p.parked, w)
	return true
}

// close waits until no worker is left.
func (p *workers) close() {
	p.mu.Lock()
	p.closed = true
	for _, w := range p.parked {
		close(w.next)
	}
	p.parked = nil
	p.mu.Unlock()
	p.wg.Wait()
}

// task is work that is to be done whenever something happened. It is done by one
// worker at a time, and once more if something happened meanwhile.
type task struct {
	state atomic.Uint32
	flow  *tcpFlow
	do    func(*tcpFlow, *worker)
}

const (
	taskIdle uint32 = iota
	taskRunning
	taskAgain
)

// wake says that something happened. It does not block.
func (t *task) wake() {
	for {
		switch t.state.Load() {
		case taskIdle:
			if t.state.CompareAndSwap(taskIdle, taskRunning) {
				t.flow.port.workers.start(t) // or the port is closed, and the flow was reset
				return
			}
		case taskRunning:
			if t.state.CompareAndSwap(taskRunning, taskAgain) {
				return
			}
		default:
			return
		}
	}
}

func (t *task) work(w *worker) {
	for {
		t.do(t.flow, w)
		if t.state.CompareAndSwap(taskRunning, taskIdle) {
			return
		}
		t.state.Store(taskRunning)
	}
}
