package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rootless-sbx/sbx/bench/load"
)

// metrics are the figures of one measure by name. Rates are per second: bits,
// datagrams, connections, questions; times are seconds; sizes bytes.
type metrics map[string]float64

// A scenario is one measure, taken on each of its paths in turn, round by round.
type scenario struct {
	name   string // group/..., for --only
	title  string
	set    setup
	metric string   // the main one
	paths  []string // names without build, in the order of the table
	lacks  string   // key of path.lacks
	quick  bool     // also with --quick
	fresh  bool     // needs a sandbox of its own each time
	run    func(w *world, s *sandbox) (metrics, error)
}

var (
	outPaths  = []string{"veth", "loopback", "sbx-tap", "sbx-packet", "pasta", "pasta-32M", "pasta-stable", "slirp4netns", "gvisor-tap-vsock"}
	out6Paths = []string{"veth", "sbx-tap", "sbx-packet", "pasta", "slirp4netns", "gvisor-tap-vsock"}
	portPaths = []string{"veth", "loopback", "sbx-tap", "sbx-stack", "pasta", "pasta-tap", "slirp4netns", "rootlesskit-builtin", "gvisor-tap-vsock"}
)

const (
	jumbo    = 65520
	ethernet = 1500
	reno     = "reno"
)

// warm is how long a measure runs before it counts.
func (w *world) warm() time.Duration { return max(w.opt.seconds/5, 150*time.Millisecond) }

func allScenarios() []scenario {
	var all []scenario
	for _, list := range [][]scenario{tcpScenarios(), portScenarios(), eastScenarios(), besideScenarios(), udpScenarios(), latencyScenarios(),
		dnsScenarios(), memoryScenarios(), startScenarios()} {
		all = append(all, list...)
	}
	return all
}

func direction(down bool) string {
	if down {
		return "down"
	}
	return "up"
}

func streamsName(n int) string {
	if n == 1 {
		return "1 stream"
	}
	return fmt.Sprintf("%d streams", n)
}

func ccName(cc string) string {
	if cc == "" {
		return "congestion control as installed"
	}
	return cc
}

func tcpScenarios() []scenario {
	var all []scenario
	tcp := func(group string, set setup, ip6, down bool, streams int, quick bool) {
		family, lacks, paths := "ip4", "", outPaths
		if ip6 {
			family, lacks, paths = "ip6", "ip6", out6Paths
		}
		all = append(all, scenario{
			name: fmt.Sprintf("%s/%s/%d/mtu%d/%s", group, direction(down), streams, set.mtu, family),
			title: fmt.Sprintf("TCP %s, %s, MTU %d, IPv%s, %s", direction(down), streamsName(streams), set.mtu,
				strings.TrimPrefix(family, "ip"), ccName(set.cc)),
			set: set, metric: "rate", paths: paths, lacks: lacks, quick: quick,
			run: func(w *world, s *sandbox) (metrics, error) {
				addr := s.out4
				if ip6 {
					addr = s.out6
				}
				return w.bulk(s, s.agent, addr, streams, down)
			},
		})
	}
	for _, mtu := range []int{jumbo, ethernet} {
		for _, streams := range []int{1, 4} {
			for _, down := range []bool{false, true} {
				tcp("tcp", setup{mtu, reno}, false, down, streams, streams == 1)
				tcp("tcp", setup{mtu, reno}, true, down, streams, false)
			}
		}
	}
	for _, down := range []bool{false, true} {
		tcp("tcp-installed", setup{jumbo, ""}, false, down, 1, false)
	}
	return all
}

// bulk moves data between a client agent and addr, and takes the path's CPU time.
func (w *world) bulk(s *sandbox, client *load.Agent, addr string, streams int, down bool) (metrics, error) {
	cpu, machine := cpuOf(s.procs), machineCPU()
	rep, err := client.Call(load.Request{Op: "bulk", Addr: addr, Streams: streams, Down: down, Warm: w.warm(), For: w.opt.seconds}, w.opt.seconds+15*time.Second)
	if err != nil {
		return nil, err
	}
	if rep.Stuck != "" {
		s.broken = errors.New(rep.Stuck)
	}
	m := metrics{"rate": rep.Rate}
	if gib := float64(rep.Total) / (1 << 30); gib > 0 {
		m["machine/GiB"] = (machineCPU() - machine) / gib
		if len(s.procs) > 0 {
			m["cpu/GiB"] = (cpuOf(s.procs) - cpu) / gib
		}
	}
	return m, nil
}
