package cgroup

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs2"
)

// Stats are what the workload has used and may use. What no controller counts is 0.
type Stats struct {
	CPU    CPUStats
	Memory MemoryStats
	Pids   PidsStats
	IO     IOStats
}

// CPUStats are since the start; every kernel counts them.
type CPUStats struct {
	Usage, User, System time.Duration
	// Of Periods, Throttled had used up their quota, for ThrottledTime in all.
	Periods, Throttled uint64
	ThrottledTime      time.Duration
}

// MemoryStats are in bytes.
type MemoryStats struct {
	Current uint64 // with the page cache
	// Inactive is the part of the page cache that the kernel takes back first;
	// docker stats shows Current without it.
	Inactive  uint64
	Peak      uint64 // 0: the kernel does not tell
	Limit     uint64 // 0: none
	Swap      uint64
	SwapLimit uint64 // 0: none
}

// Used is what docker stats shows: without the cache that the kernel takes back first.
func (m *MemoryStats) Used() uint64 { return m.Current - min(m.Current, m.Inactive) }

// PidsStats count threads.
type PidsStats struct {
	Current uint64
	Limit   uint64 // 0: none
}

// IOStats are bytes and operations of block devices since the start.
type IOStats struct {
	Counted                              bool // there is the controller io
	ReadBytes, WriteBytes, Reads, Writes uint64
}

// Stats reads the workload's counters.
func (g *Group) Stats() (Stats, error) {
	// Rootless makes the library drop errors, which is not ours to want.
	m, err := fs2.NewManager(&cgroups.Cgroup{}, g.box())
	if err != nil {
		return Stats{}, err
	}
	opts := &cgroups.StatsOptions{Controllers: cgroups.CPU | cgroups.Pids}
	for file, c := range map[string]cgroups.Controller{"memory.current": cgroups.Memory, "io.stat": cgroups.IO} {
		if _, err := os.Stat(path.Join(g.box(), file)); err == nil {
			opts.Controllers |= c
		} else if !errors.Is(err, os.ErrNotExist) {
			return Stats{}, err
		}
	}
	st, err := m.Stats(opts)
	if err != nil {
		return Stats{}, fmt.Errorf("read the sandbox's statistics: %w", err)
	}
	s := convert(st)
	s.IO.Counted = opts.Controllers&cgroups.IO != 0
	return s, nil
}

func convert(st *cgroups.Stats) Stats {
	var s Stats
	cpu, mem := &st.CpuStats, &st.MemoryStats
	s.CPU = CPUStats{
		Usage: time.Duration(cpu.CpuUsage.TotalUsage), User: time.Duration(cpu.CpuUsage.UsageInUsermode),
		System: time.Duration(cpu.CpuUsage.UsageInKernelmode), Periods: cpu.ThrottlingData.Periods,
		Throttled: cpu.ThrottlingData.ThrottledPeriods, ThrottledTime: time.Duration(cpu.ThrottlingData.ThrottledTime),
	}
	s.Memory = MemoryStats{
		Current: mem.Usage.Usage, Inactive: mem.Stats["inactive_file"], Peak: mem.Usage.MaxUsage, Limit: limit(mem.Usage.Limit),
		Swap: mem.SwapOnlyUsage.Usage, SwapLimit: limit(mem.SwapOnlyUsage.Limit),
	}
	s.Pids = PidsStats{Current: st.PidsStats.Current, Limit: st.PidsStats.Limit}
	sum := func(list []cgroups.BlkioStatEntry, op string) (n uint64) {
		for _, e := range list {
			if e.Op == op {
				n += e.Value
			}
		}
		return n
	}
	io := &st.BlkioStats
	s.IO = IOStats{
		ReadBytes: sum(io.IoServiceBytesRecursive, "Read"), WriteBytes: sum(io.IoServiceBytesRecursive, "Write"),
		Reads: sum(io.IoServicedRecursive, "Read"), Writes: sum(io.IoServicedRecursive, "Write"),
	}
	return s
}

// limit turns the kernel's "max" into 0.
func limit(n uint64) uint64 {
	if n == math.MaxUint64 {
		return 0
	}
	return n
}
