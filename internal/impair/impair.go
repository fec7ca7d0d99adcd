// Package impair makes a link bad, as netem does, for tests on kernels without it:
// a Way carries frames in one direction and loses, doubles, reorders and delays
// some of them. What happens to the n-th frame follows from the seed alone; when it
// arrives is up to the clock.
package impair

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Config says how bad a link is. The zero value is a perfect one.
type Config struct {
	// Loss, Duplicate and Reorder are probabilities for each frame. A reordered
	// frame comes up to 5 ms after its time.
	Loss, Duplicate, Reorder float64
	// Delay of every frame, and Jitter, the most that is added to it.
	Delay, Jitter time.Duration
	// Queue is the number of frames on their way (4096). More are dropped, as a
	// router does.
	Queue int
	Seed  uint64
}

const (
	defaultQueue = 4096
	reorderMax   = 5 * time.Millisecond
)

// Parse reads what String writes: "loss=0.01,dup=0.01,reorder=0.02,delay=2ms,jitter=1ms,seed=7".
func Parse(s string) (c Config, err error) {
	for _, f := range strings.Split(s, ",") {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "loss":
			c.Loss, err = strconv.ParseFloat(value, 64)
		case "dup":
			c.Duplicate, err = strconv.ParseFloat(value, 64)
		case "reorder":
			c.Reorder, err = strconv.ParseFloat(value, 64)
		case "delay":
			c.Delay, err = time.ParseDuration(value)
		case "jitter":
			c.Jitter, err = time.ParseDuration(value)
		case "queue":
			c.Queue, err = strconv.Atoi(value)
		case "seed":
			c.Seed, err = strconv.ParseUint(value, 10, 64)
		default:
			return c, fmt.Errorf("impairment %q: unknown key %q", s, key)
		}
		if err != nil {
			return c, fmt.Errorf("impairment %q: %s: %w", s, key, err)
		}
	}
	return c, nil
}

// String is short, and enough to make the same link again.
func (c Config) String() string {
	var parts []string
	add := func(key string, value any, set bool) {
		if set {
			parts = append(parts, fmt.Sprint(key, "=", value))
		}
	}
	add("loss", c.Loss, c.Loss != 0)
	add("dup", c.Duplicate, c.Duplicate != 0)
	add("reorder", c.Reorder, c.Reorder != 0)
	add("delay", c.Delay, c.Delay != 0)
	add("jitter", c.Jitter, c.Jitter != 0)
	add("queue", c.Queue, c.Queue != 0)
	add("seed", c.Seed, true)
	return strings.Join(parts, ",")
}

// Stats count frames. In + Duplicated = Out + Lost + Overflow + those on their way.
type Stats struct {
	In, Out, Lost, Duplicated, Reordered, Overflow uint64
}

// Way carries frames in one direction.
type Way struct {
	cfg  Config
	send func([]byte)

	mu     sync.Mutex
	rng    *rand.Rand
	queue  frames
	order  uint64
	stats  Stats
	closed bool
	wake   chan struct{}
	done   chan struct{}
}

// NewWay starts one. Frames leave by send, which is called on one goroutine.
func NewWay(cfg Config, send func([]byte)) *Way {
	if cfg.Queue <= 0 {
		cfg.Queue = defaultQueue
	}
	w := &Way{cfg: cfg, send: send, rng: rand.New(rand.NewPCG(cfg.Seed, 1)), wake: make(chan struct{}, 1), done: make(chan struct{})}
	go w.run()
	return w
}

// Put takes a copy of a frame.
func (w *Way) Put(b []byte) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats.In++
	// Always as many random numbers, so that a frame's fate does not depend on
	// the options that are off.
	lost, twice, late := w.rng.Float64(), w.rng.Float64(), w.rng.Float64()
	jitter, extra := w.rng.Float64(), w.rng.Float64()
	if lost < w.cfg.Loss {
		w.stats.Lost++
		return
	}
	due := now.Add(w.cfg.Delay + time.Duration(jitter*float64(w.cfg.Jitter)))
	if late < w.cfg.Reorder {
		w.stats.Reordered++
		due = due.Add(time.Duration(extra * float64(reorderMax)))
	}
	b = append([]byte(nil), b...)
	w.push(due, b)
	if twice < w.cfg.Duplicate {
		w.stats.Duplicated++
		w.push(due, b)
	}
}

func (w *Way) push(due time.Time, b []byte) {
	if w.closed || len(w.queue) >= w.cfg.Queue {
		w.stats.Overflow++
		return
	}
	w.order++
	heap.Push(&w.queue, &frame{due, w.order, b})
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run sends each frame when it is due.
func (w *Way) run() {
	defer close(w.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		f, wait, open := w.next()
		if !open {
			return
		}
		if f != nil {
			w.send(f.b)
			continue
		}
		timer.Reset(wait)
		select {
		case <-w.wake:
		case <-timer.C:
		}
	}
}

// next returns the frame that is due, or how long until there may be one.
func (w *Way) next() (f *frame, wait time.Duration, open bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil, 0, false
	}
	if len(w.queue) == 0 {
		return nil, time.Hour, true
	}
	if wait := time.Until(w.queue[0].due); wait > 0 {
		return nil, wait, true
	}
	w.stats.Out++
	return heap.Pop(&w.queue).(*frame), 0, true
}

// Stats returns the counters.
func (w *Way) Stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats
}

// Close drops what is on its way, and waits until send is not called any more.
func (w *Way) Close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
	<-w.done
}

// frame is one on its way; order keeps those due at the same time in sequence.
type frame struct {
	due   time.Time
	order uint64
	b     []byte
}

type frames []*frame

func (q frames) Len() int      { return len(q) }
func (q frames) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q frames) Less(i, j int) bool {
	if !q[i].due.Equal(q[j].due) {
		return q[i].due.Before(q[j].due)
	}
	return q[i].order < q[j].order
}
func (q *frames) Push(x any) { *q = append(*q, x.(*frame)) }
func (q *frames) Pop() any {
	old := *q
	f := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return f
}
