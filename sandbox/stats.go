package sandbox

import (
	"context"
	"sync"
	"time"

	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"golang.org/x/sys/unix"
)

// Stats is what a sandbox has used until a moment, and may use.
type Stats struct {
	Time time.Time
	// CPU is since its start.
	CPU time.Duration
	// Memory is without the page cache that the kernel takes back first; MemoryLimit
	// is the machine's memory if there is no other limit. Both are in bytes.
	Memory, MemoryLimit uint64
	// PIDs counts processes and threads.
	PIDs uint64
	// Network is what it has received and sent, published ports included; Block what
	// block devices have read and written for it. nil: nobody counts it.
	Network, Block *Transfer
	// Estimated: what no cgroup counts is what its processes say of themselves. Memory
	// that they share counts several times, and of programs of Exec that have ended
	// nothing is known.
	Estimated bool
}

// Transfer is bytes in both directions.
type Transfer struct{ In, Out uint64 }

// Stats asks what a sandbox that runs has used.
func (s *Sandbox) Stats(ctx context.Context) (*Stats, error) { return s.stats(ctx, processes) }

// Measurement is what is known about one of several sandboxes.
type Measurement struct {
	Sandbox *Sandbox
	*Stats
	Err error
}

// atOnce is how many monitors Measure asks at the same time.
const atOnce = 16

// Measure asks for the Stats of several sandboxes.
func Measure(ctx context.Context, list []*Sandbox) []Measurement {
	table := sync.OnceValues(processes)
	out := make([]Measurement, len(list))
	turn := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i, s := range list {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			st, err := s.stats(ctx, table)
			out[i] = Measurement{s, st, err}
		})
	}
	wg.Wait()
	return out
}

// stats finds in a table of processes what no cgroup counts.
func (s *Sandbox) stats(ctx context.Context, table func() (map[int]Process, error)) (*Stats, error) {
	var got proto.Stats
	if err := s.remoteCall(ctx, proto.MsgStats, nil, &got); err != nil {
		return nil, err
	}
	st := &Stats{Time: time.Now()}
	if n := got.Network; n != nil {
		st.Network = &Transfer{n.In, n.Out}
	} else if s.start.Network.Mode == NetworkNone {
		st.Network = &Transfer{}
	}
	if g := got.Group; g != nil {
		st.CPU, st.PIDs, st.MemoryLimit = g.CPU.Usage, g.Pids.Current, g.Memory.Limit
		st.Memory = g.Memory.Used()
		if g.IO.Counted {
			st.Block = &Transfer{g.IO.ReadBytes, g.IO.WriteBytes}
		}
	}
	if got.Group == nil || got.Group.Memory.Current == 0 || st.PIDs == 0 {
		if err := s.estimate(ctx, st, got.Group == nil, table); err != nil {
			return nil, err
		}
	}
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err == nil {
		if total := si.Totalram * uint64(si.Unit); st.MemoryLimit == 0 || st.MemoryLimit > total {
			st.MemoryLimit = total
		}
	}
	return st, nil
}

// estimate adds what no controller counts.
func (s *Sandbox) estimate(ctx context.Context, st *Stats, cpu bool, table func() (map[int]Process, error)) error {
	is, err := s.look(ctx)
	if err != nil {
		return err
	}
	all, err := table()
	if err != nil {
		return err
	}
	st.Estimated = true
	var used time.Duration
	var memory, pids uint64
	for _, p := range members(is, all) {
		used += p.CPU + p.reaped
		memory += p.Memory
		pids += uint64(p.Threads)
	}
	if cpu {
		st.CPU = used
	}
	if st.Memory == 0 {
		st.Memory = memory
	}
	if st.PIDs == 0 {
		st.PIDs = pids
	}
	return nil
}
