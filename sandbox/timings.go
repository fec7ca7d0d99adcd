package sandbox

import (
	"slices"
	"sync"
	"time"

	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

// Stage is a part of what it takes to start and end a sandbox.
type Stage struct {
	Process string // sbx (the caller's process), monitor or init
	Name    string // what has been done
	// At is when it was done, on CLOCK_MONOTONIC.
	At time.Duration
}

// Timings returns the stages that a sandbox has been through, in the order of
// their ends. Processes work at the same time; what a stage took is the time since
// the one before of the same process.
func (s *Sandbox) Timings() []Stage { return s.marks.stages() }

// timings collects the marks of all processes.
type timings struct {
	mu   sync.Mutex // guards what follows
	own  *proto.Marks
	more []proto.Mark
}

func newTimings() *timings { return &timings{own: &proto.Marks{Process: "sbx"}} }

// add ends a stage of this process; more are of others.
func (t *timings) add(stage string, more ...proto.Mark) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.own.Add(stage)
	t.more = append(t.more, more...)
}

func (t *timings) stages() (list []Stage) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range slices.Concat(t.own.List, t.more) {
		list = append(list, Stage{m.Process, m.Stage, m.At})
	}
	slices.SortStableFunc(list, func(a, b Stage) int { return int(a.At - b.At) })
	return list
}
