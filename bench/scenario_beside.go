package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/rootless-sbx/sbx/bench/load"
)

// besideScenarios are what a sandbox gets while another one on its network, so in the
// same process, transfers as fast as it can.
func besideScenarios() []scenario {
	var all []scenario
	for _, down := range []bool{false, true} {
		add := func(what, title, metric string, req load.Request, figures func(load.Reply) metrics) {
			all = append(all, scenario{
				name:  fmt.Sprintf("beside/%s/%s", direction(down), what),
				title: fmt.Sprintf("%s, beside another sandbox's TCP %s", title, direction(down)),
				set:   setup{jumbo, reno}, metric: metric, paths: []string{"sbx-tap", "sbx-packet"},
				run: func(w *world, s *sandbox) (metrics, error) {
					req := req
					req.Addr = s.out4
					rep, other, err := w.beside(s, req, down)
					m := figures(rep)
					m["other rate"] = other.Rate
					return m, err
				},
			})
		}
		add("latency", "TCP request and response, 64 bytes", "p50", load.Request{Op: "pingpong"}, func(r load.Reply) metrics {
			return metrics{"p50": r.P50.Seconds(), "p99": r.P99.Seconds()}
		})
		add("connect", "Connections with a byte of answer, 32 at once", "connections", load.Request{Op: "connect", Streams: 32}, func(r load.Reply) metrics {
			return metrics{"connections": r.Rate, "failed": float64(r.Failed)}
		})
		add("bulk", "TCP up, 1 stream", "rate", load.Request{Op: "bulk", Streams: 1}, func(r load.Reply) metrics {
			return metrics{"rate": r.Rate}
		})
	}
	return all
}

// beside has s do what req says while a neighbour transfers.
func (w *world) beside(s *sandbox, req load.Request, down bool) (rep, other load.Reply, err error) {
	if err := w.neighbours(s, 1); err != nil {
		return rep, other, err
	}
	req.Warm, req.For = 2*w.warm(), w.opt.seconds
	ended := make(chan error, 1)
	go func() {
		var err error
		other, err = s.others[0].agent.Call(load.Request{Op: "bulk", Addr: s.out4, Streams: 1, Down: down, Warm: req.Warm, For: req.For}, req.For+15*time.Second)
		ended <- err
	}()
	rep, err = s.agent.Call(req, req.For+15*time.Second)
	return rep, other, errors.Join(err, <-ended)
}
