package main

import (
	"fmt"
	"time"

	"github.com/rootless-sbx/sbx/bench/load"
)

// datagram is a payload that fits any link without fragments.
const datagram = 1400

// maxLoss is what counts as good for UDP.
const maxLoss = 0.01

var packetPaths = []string{"veth", "loopback", "sbx-tap", "sbx-packet", "pasta", "slirp4netns", "gvisor-tap-vsock"}

func udpScenarios() []scenario {
	var all []scenario
	for _, down := range []bool{false, true} {
		all = append(all, scenario{
			name:  "udp/" + direction(down),
			title: fmt.Sprintf("UDP %s, %d bytes: the most with at most 1 %% lost", direction(down), datagram),
			set:   setup{jumbo, reno}, metric: "goodput", paths: packetPaths, quick: true,
			run: func(w *world, s *sandbox) (metrics, error) { return w.goodput(s, down) },
		})
	}
	return all
}

// goodput offers as much as possible first, and then looks between nothing and what
// arrived for the highest rate at which at most maxLoss is lost.
func (w *world) goodput(s *sandbox, down bool) (metrics, error) {
	window := max(w.opt.seconds/4, 200*time.Millisecond)
	offer := func(rate float64) (load.Reply, error) {
		return s.agent.Call(load.Request{Op: "udp", Addr: s.out4, Down: down, Size: datagram, Rate: rate, For: window}, window+12*time.Second)
	}
	flood, err := offer(0)
	if err != nil {
		return nil, err
	}
	m := metrics{"flood pps": flood.Rate, "flood loss": lossOf(flood)}
	best := load.Reply{}
	if lossOf(flood) <= maxLoss {
		best = flood
	}
	lo, hi := 0.0, flood.Rate*1.15
	for range 6 {
		if best.Rate >= hi*0.97 {
			break
		}
		rate := (lo + hi) / 2
		if lo == 0 {
			rate = hi * 0.8
		}
		rep, err := offer(rate)
		if err != nil {
			return nil, err
		}
		if lossOf(rep) <= maxLoss {
			lo = rate
			if rep.Rate > best.Rate {
				best = rep
			}
		} else {
			hi = rate
		}
	}
	m["goodput"] = best.Rate * datagram * 8
	m["pps"] = best.Rate
	return m, nil
}

func lossOf(r load.Reply) float64 {
	if r.Sent == 0 {
		return 1
	}
	return max(0, 1-float64(r.Got)/float64(r.Sent))
}

func latencyScenarios() []scenario {
	var all []scenario
	for _, port := range []bool{false, true} {
		name, title, paths := "latency/tcp", "TCP request and response, 64 bytes", packetPaths
		if port {
			name, title, paths = "latency/port", "TCP request and response through a published port, 64 bytes", portPaths
		}
		all = append(all, scenario{name: name, title: title, set: setup{jumbo, reno}, metric: "p50", paths: paths, quick: !port,
			run: func(w *world, s *sandbox) (metrics, error) {
				client, addr := w.ends(s, port)
				cpu := cpuOf(s.procs)
				rep, err := client.Call(load.Request{Op: "pingpong", Addr: addr, Warm: w.warm(), For: w.opt.seconds}, w.opt.seconds+15*time.Second)
				m := metrics{"p50": rep.P50.Seconds(), "p99": rep.P99.Seconds()}
				w.cpuEach(m, s, cpu, rep.Rate)
				return m, err
			}})
		for _, n := range []int{1, 32} {
			name, title := fmt.Sprintf("connect/out/%d", n), fmt.Sprintf("Connections with a byte of answer, %d at once", n)
			if port {
				name, title = fmt.Sprintf("connect/port/%d", n), fmt.Sprintf("Connections through a published port, %d at once", n)
			}
			all = append(all, scenario{name: name, title: title, set: setup{jumbo, reno}, metric: "connections", paths: paths, quick: !port,
				run: func(w *world, s *sandbox) (metrics, error) {
					client, addr := w.ends(s, port)
					cpu := cpuOf(s.procs)
					rep, err := client.Call(load.Request{Op: "connect", Addr: addr, Streams: n, Warm: w.warm(), For: w.opt.seconds}, w.opt.seconds+15*time.Second)
					m := metrics{"connections": rep.Rate, "failed": float64(rep.Failed), "p50": rep.P50.Seconds(), "p99": rep.P99.Seconds()}
					w.cpuEach(m, s, cpu, rep.Rate)
					return m, err
				}})
		}
	}
	return all
}

// cpuEach adds the path's processor time for each of what happened at a rate since
// before, the warm-up included.
func (w *world) cpuEach(m metrics, s *sandbox, before, rate float64) {
	if len(s.procs) > 0 && rate > 0 {
		m["cpu/each"] = (cpuOf(s.procs) - before) / (rate * (w.warm() + w.opt.seconds).Seconds())
	}
}

// ends are the client and the server's address, out of a sandbox or into it.
func (w *world) ends(s *sandbox, port bool) (*load.Agent, string) {
	if port {
		return w.server, s.in
	}
	return s.agent, s.out4
}

func dnsScenarios() []scenario {
	return []scenario{{
		name: "dns", title: "DNS questions for one name", set: setup{jumbo, reno}, metric: "questions", quick: true,
		paths: []string{"loopback", "sbx-tap", "sbx-packet", "pasta", "slirp4netns", "gvisor-tap-vsock"},
		run: func(w *world, s *sandbox) (metrics, error) {
			cpu := cpuOf(s.procs)
			rep, err := s.agent.Call(load.Request{Op: "dns", Addr: s.dns, Streams: 2, Warm: w.warm(), For: w.opt.seconds}, w.opt.seconds+10*time.Second)
			m := metrics{"questions": rep.Rate}
			if len(s.procs) > 0 && rep.Got > 0 {
				m["cpu/question"] = (cpuOf(s.procs) - cpu) / float64(rep.Got)
			}
			return m, err
		},
	}}
}
