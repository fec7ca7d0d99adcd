package main

import (
	"fmt"
	"math"
	"strings"
)

// A target is one line of what sbx has to reach: its figure beside another's.
type target struct {
	what       string
	of         string // what the figure is a multiple of, or its unit
	least, aim float64
	lower      bool // less is better
	got        func(r *results) float64
}

// Names of sbx's paths in targets; with several builds the first counts.
const (
	tap    = "sbx-tap"
	packet = "sbx-packet"
	stack  = "sbx-stack"
)

// find gives a path's values by its name without build.
func (r *results) find(scenario, name, metric string) []float64 {
	for _, p := range r.pathsOf(scenario) {
		if base, _, _ := strings.Cut(p, ":"); base == name {
			return r.values(scenario, p, metric)
		}
	}
	return nil
}

func against(scenario, metric, a, b string) func(*results) float64 {
	return func(r *results) float64 { return ratio(r.find(scenario, a, metric), r.find(scenario, b, metric)) }
}

// between compares one path in two scenarios, whose rounds were not interleaved.
func between(a, b, metric, path string) func(*results) float64 {
	return func(r *results) float64 { return median(r.find(a, path, metric)) / median(r.find(b, path, metric)) }
}

func figure(scenario, metric, path string, unit float64) func(*results) float64 {
	return func(r *results) float64 { return median(r.find(scenario, path, metric)) / unit }
}

func targets() []target {
	var all []target
	add := func(what, of string, least, aim float64, got func(*results) float64) {
		all = append(all, target{what: what, of: of, least: least, aim: aim, got: got})
	}
	atMost := func(what, of string, least, aim float64, got func(*results) float64) {
		all = append(all, target{what: what, of: of, least: least, aim: aim, lower: true, got: got})
	}
	none := math.NaN()
	for _, way := range []string{"up", "down"} {
		one := "tcp/" + way + "/1/mtu65520/ip4"
		what := "TCP " + way + ", 1 stream"
		add(what, "veth", 0.50, 0.70, against(one, "rate", tap, "veth"))
		add(what, "pasta, as installed", 1, none, against(one, "rate", tap, "pasta"))
		add(what, "pasta, tcp_wmem 32 MiB", 0.9, none, against(one, "rate", tap, "pasta-32M"))
		add(what, "slirp4netns", 2.3, none, against(one, "rate", tap, "slirp4netns"))
		add(what, "gvisor-tap-vsock", 4, none, against(one, "rate", tap, "gvisor-tap-vsock"))
		add(what+", MTU 1500", "sbx, MTU 65520", 0.80, 0.95, between("tcp/"+way+"/1/mtu1500/ip4", one, "rate", tap))
		add("TCP "+way+", 4 streams", "veth", 0.45, 0.70, against("tcp/"+way+"/4/mtu65520/ip4", "rate", tap, "veth"))
		add(what+", IPv6", "sbx, IPv4", 0.95, 1, between("tcp/"+way+"/1/mtu65520/ip6", one, "rate", tap))
		add(what+", packet link", "sbx, tap link", 0.80, 0.95, against(one, "rate", packet, tap))
		atMost("CPU per GiB, TCP "+way, "pasta, tcp_wmem 32 MiB", 1.2, 0.9, against(one, "cpu/GiB", tap, "pasta-32M"))
		add("UDP goodput, "+way, "pasta", 1, 2, against("udp/"+way, "goodput", tap, "pasta"))
	}
	for _, streams := range []int{1, 4} {
		for _, way := range []string{"in", "out"} {
			name, what := fmt.Sprintf("port/%s/%d", way, streams), fmt.Sprintf("published port %s, direct, %s", way, streamsName(streams))
			add(what, "veth", 0.85, none, against(name, "rate", tap, "veth"))
			add(what, "loopback", none, 0.95, against(name, "rate", tap, "loopback"))
			add(what, "rootlesskit builtin", 1, none, against(name, "rate", tap, "rootlesskit-builtin"))
			add(what, "pasta -t", 0.95, none, against(name, "rate", tap, "pasta"))
			if streams == 1 {
				atMost("CPU per GiB, "+what, "rootlesskit builtin", none, 0.5, against(name, "cpu/GiB", tap, "rootlesskit-builtin"))
			}
			add(fmt.Sprintf("published port %s, stack, %s", way, streamsName(streams)), "veth", 0.50, 0.65, against(name, "rate", stack, "veth"))
		}
	}
	add("sandbox to sandbox", "veth", 0.35, 0.60, against("east/1", "rate", tap, "veth"))
	for _, p := range []string{"p50", "p99"} {
		atMost("TCP ping-pong, "+p, "pasta", 1.15, 0.80, against("latency/tcp", p, tap, "pasta"))
	}
	for _, n := range []string{"1", "32"} {
		add("connections per second, "+n+" at once", "pasta", 0.85, 1.2, against("connect/out/"+n, "connections", tap, "pasta"))
	}
	add("DNS questions per second", "/s", 20000, 50000, figure("dns", "questions", tap, 1))
	atMost("network process, idle", "MiB", 20, 15, figure("memory/load", "mem idle", tap, 1<<20))
	atMost("1,000 idle TCP flows", "MiB", 30, 12, figure("memory/idle/1000", "mem flow", tap, (1<<20)/1000.0))
	atMost("sbx run to exit of true", "podman with pasta", 0.5, none, against("start", "time", "sbx-start", "podman-pasta"))
	atMost("sbx run to exit of true", "crun", 4.5, 2.2, against("start", "time", "sbx-start", "crun"))
	return all
}

// verdict says whether a figure meets the target, or by how much it falls short.
func (t target) verdict(got float64) string {
	reaches := func(want float64) bool { return t.lower && got <= want || !t.lower && got >= want }
	short := func(want float64) string {
		if t.lower {
			return fmt.Sprintf("%.0f %% over", (got/want-1)*100)
		}
		return fmt.Sprintf("%.0f %% short", (1-got/want)*100)
	}
	switch {
	case math.IsNaN(got):
		return "not measured"
	case !math.IsNaN(t.aim) && reaches(t.aim):
		return "aim met"
	case math.IsNaN(t.least):
		return "aim: " + short(t.aim)
	case !reaches(t.least):
		return "**" + short(t.least) + "**"
	case math.IsNaN(t.aim):
		return "met"
	default:
		return "met; aim: " + short(t.aim)
	}
}

// number writes a figure of a target, or a dash where there is none.
func (t target) number(v float64) string {
	switch {
	case math.IsNaN(v):
		return "-"
	case t.of == "/s":
		return fmt.Sprintf("%.0f /s", v)
	case t.of == "MiB":
		return fmt.Sprintf("%.1f MiB", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
