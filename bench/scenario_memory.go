package main

import (
	"fmt"
	"time"

	"github.com/rootless-sbx/sbx/bench/load"
)

var memoryPaths = []string{"sbx-tap", "sbx-packet", "pasta", "slirp4netns", "gvisor-tap-vsock"}

// memoryScenarios are the resident memory of the network process. Each starts a
// fresh one: what was used once may not be given back.
func memoryScenarios() []scenario {
	set := setup{jumbo, reno}
	all := []scenario{{
		name: "memory/load", title: "Memory of the network process: idle, and after 4 streams up and down",
		set: set, metric: "mem idle", paths: memoryPaths, fresh: true, rounds: 3, quick: true,
		run: func(w *world, s *sandbox) (metrics, error) {
			time.Sleep(200 * time.Millisecond)
			m := metrics{"mem idle": residentOf(s.procs)}
			for _, down := range []bool{false, true} {
				req := load.Request{Op: "bulk", Addr: s.out4, Streams: 4, Down: down, Warm: w.warm(), For: w.opt.seconds / 2}
				if _, err := s.agent.Call(req, w.opt.seconds+15*time.Second); err != nil {
					return nil, err
				}
			}
			m["mem load"] = residentOf(s.procs)
			return m, nil
		},
	}}
	for _, busy := range []bool{false, true} {
		for _, n := range []int{1000, 10000} {
			kind := map[bool]string{false: "idle", true: "busy"}[busy]
			all = append(all, scenario{
				name:  fmt.Sprintf("memory/%s/%d", kind, n),
				title: fmt.Sprintf("Memory of the network process for each of %d %s TCP flows", n, kind),
				set:   set, metric: "mem flow", paths: memoryPaths, fresh: true, rounds: 2,
				run: func(w *world, s *sandbox) (metrics, error) { return w.flowMemory(s, n, busy) },
			})
		}
	}
	return all
}

// flowMemory opens n flows and gives what one of them takes. A path that carries
// fewer gives the figure of those, and how many they were.
func (w *world) flowMemory(s *sandbox, n int, busy bool) (metrics, error) {
	const enough = 500
	time.Sleep(200 * time.Millisecond)
	idle := residentOf(s.procs)
	req := load.Request{Op: "flows", Addr: s.out4, Count: n, Busy: busy, Size: 4096}
	rep, err := s.agent.Call(req, 30*time.Second)
	if err != nil && rep.Got < enough {
		return nil, err
	}
	time.Sleep(w.opt.seconds)
	full := residentOf(s.procs)
	if _, err := s.agent.Call(load.Request{Op: "noflows"}, 20*time.Second); err != nil {
		return nil, err
	}
	return metrics{"mem flow": (full - idle) / float64(rep.Got), "mem all": full, "flows": float64(rep.Got)}, nil
}
