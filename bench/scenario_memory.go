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
		set: set, metric: "mem idle", paths: memoryPaths, fresh: true, quick: true,
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
				set:   set, metric: "mem flow", paths: memoryPaths, fresh: true,
				run: func(w *world, s *sandbox) (metrics, error) { return w.flowMemory(s, n, busy) },
			})
		}
	}
	return all
}

// flowsOfSandbox is how many flows a sandbox is given at most: those of sbx have a
// limit of 4,096, and more are spread over several sandboxes of the one network
// process.
const flowsOfSandbox = 4000

// flowMemory opens n flows and gives what one of them takes. A path that carries
// fewer gives the figure of those, and how many they were.
func (w *world) flowMemory(s *sandbox, n int, busy bool) (metrics, error) {
	const enough = 500
	boxes := []*sandbox{s}
	if s.path.sbx {
		if err := w.neighbours(s, (n-1)/flowsOfSandbox); err != nil {
			return nil, err
		}
		boxes = append(boxes, s.others...)
	}
	time.Sleep(200 * time.Millisecond)
	idle := residentOf(s.procs)
	var got int64
	for i, box := range boxes {
		left := n - int(got)
		req := load.Request{Op: "flows", Addr: s.out4, Count: left / (len(boxes) - i), For: 10 * time.Second}
		rep, err := box.agent.Call(req, 20*time.Second)
		got += rep.Got
		if err != nil && got < enough {
			return nil, err
		}
	}
	// Only now, or the first flows would keep the last from being opened.
	for _, box := range boxes {
		if !busy {
			break
		}
		if _, err := box.agent.Call(load.Request{Op: "flows", Busy: true, Size: 4096}, 5*time.Second); err != nil {
			return nil, err
		}
	}
	time.Sleep(w.opt.seconds)
	full := residentOf(s.procs)
	for _, box := range boxes {
		if _, err := box.agent.Call(load.Request{Op: "noflows"}, 10*time.Second); err != nil {
			// The path has carried what it could; a fresh one is next.
			s.broken = err
		}
	}
	return metrics{"mem flow": (full - idle) / float64(got), "mem all": full, "flows": float64(got)}, nil
}
