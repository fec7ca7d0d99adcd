package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/rootless-sbx/sbx/bench/load"
)

// portScenarios are TCP through a published port: the client is on the host.
func portScenarios() []scenario {
	var all []scenario
	add := func(group, cc string, down bool, streams int, quick bool) {
		way, word := "in", "into the sandbox"
		if down {
			way, word = "out", "out of the sandbox"
		}
		all = append(all, scenario{
			name:  fmt.Sprintf("%s/%s/%d", group, way, streams),
			title: fmt.Sprintf("Published port, TCP %s, %s, %s", word, streamsName(streams), ccName(cc)),
			set:   setup{jumbo, cc}, metric: "rate", paths: portPaths, quick: quick,
			run: func(w *world, s *sandbox) (metrics, error) { return w.bulk(s, w.server, s.in, streams, down) },
		})
	}
	for _, streams := range []int{1, 4} {
		for _, down := range []bool{false, true} {
			add("port", reno, down, streams, streams == 1)
		}
	}
	for _, down := range []bool{false, true} {
		add("port-installed", "", down, 1, false)
	}
	return all
}

// eastScenarios are TCP from one sandbox to another; their limit is a veth pair.
func eastScenarios() []scenario {
	var all []scenario
	for _, streams := range []int{1, 4} {
		all = append(all, scenario{
			name:  fmt.Sprintf("east/%d", streams),
			title: fmt.Sprintf("Sandbox to sandbox, TCP, %s", streamsName(streams)),
			set:   setup{jumbo, reno}, metric: "rate", paths: []string{"veth", "sbx-tap", "sbx-packet"}, lacks: "east", quick: streams == 1,
			run: func(w *world, s *sandbox) (metrics, error) {
				addr := s.out4
				if s.path.sbx {
					var err error
					if addr, err = w.neighbour(s); err != nil {
						return nil, err
					}
				}
				return w.bulk(s, s.agent, addr, streams, false)
			},
		})
	}
	return all
}

// neighbour gives the server of another sandbox on the network of s.
func (w *world) neighbour(s *sandbox) (string, error) {
	if err := w.neighbours(s, 1); err != nil {
		return "", err
	}
	rep, err := s.others[0].agent.Call(load.Request{Op: "exec", Args: []string{"/bin/busybox", "ip", "-4", "addr", "show", "dev", "eth0"}}, 5*time.Second)
	if err != nil {
		return "", err
	}
	for f := range strings.FieldsSeq(rep.Output) {
		if p, err := netip.ParsePrefix(f); err == nil {
			return net.JoinHostPort(p.Addr().String(), serverPort), nil
		}
	}
	return "", errors.New("the second sandbox has no address")
}

// neighbours sees to n other sandboxes on the network of s.
func (w *world) neighbours(s *sandbox, n int) error {
	p := s.path
	p.procs = nil // the network process is there already
	p.start = func(w *world, p path, set setup) (*sandbox, error) { return w.runSbx(p, set, s.dir) }
	for len(s.others) < n {
		other, err := w.startSandbox(p, s.set)
		if err != nil {
			return fmt.Errorf("start another sandbox: %w", err)
		}
		s.others = append(s.others, other)
		s.stops = append(s.stops, other.close)
	}
	return nil
}
