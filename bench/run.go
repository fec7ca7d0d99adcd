package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// paths are all paths of the run, by name without build; several builds of sbx make
// several paths of one name.
func (w *world) paths() map[string][]path {
	m := map[string][]path{}
	add := func(ps []path) {
		for _, p := range ps {
			base, _, _ := strings.Cut(p.name, ":")
			if w.opt.wants(p.name) {
				m[base] = append(m[base], p)
			}
		}
	}
	add(limitPaths())
	for _, b := range w.opt.sbx {
		add(sbxPaths(b, len(w.opt.sbx) == 1))
	}
	add(peerPaths())
	add(startPaths(w.opt.sbx))
	return m
}

// chosen are the scenarios of this run.
func (o options) chosen() []scenario {
	return slices.DeleteFunc(allScenarios(), func(s scenario) bool {
		return !o.only.MatchString(s.name) || o.quick && !s.quick
	})
}

// measure runs the scenarios and writes the results.
func (w *world) measure() error {
	if w.opt.list {
		return w.printList()
	}
	res := w.newResults()
	chosen := w.opt.chosen()
	if len(chosen) == 0 {
		return fmt.Errorf("no scenario matches %v", w.opt.only)
	}
	for len(chosen) > 0 {
		// All scenarios with the same set-up share their sandboxes.
		set := chosen[0].set
		group := slices.DeleteFunc(slices.Clone(chosen), func(s scenario) bool { return s.set != set })
		chosen = slices.DeleteFunc(chosen, func(s scenario) bool { return s.set == set })
		if err := w.runGroup(set, group, res); err != nil {
			return err
		}
		if w.opt.json != "" {
			if err := res.write(w.opt.json); err != nil {
				return err
			}
		}
	}
	if w.opt.report != "" {
		if err := writeReport(w.opt.report, res); err != nil {
			return err
		}
	}
	return printResults(os.Stdout, res)
}

// runGroup starts one sandbox for each path and measures in rounds.
func (w *world) runGroup(set setup, group []scenario, res *results) error {
	if set.cc != "" {
		if err := sysctl("net/ipv4/tcp_congestion_control", set.cc); err != nil {
			return err
		}
	} else if err := sysctl("net/ipv4/tcp_congestion_control", w.installedCC); err != nil {
		return err
	}
	if err := w.startServers(); err != nil {
		return err
	}
	all := w.paths()
	boxes := map[string]*sandbox{}
	defer func() {
		for _, s := range boxes {
			s.close()
		}
	}()
	box := func(p path) (*sandbox, error) {
		s := boxes[p.name]
		if s != nil && s.broken == nil {
			return s, nil
		}
		if s != nil {
			s.close()
			delete(boxes, p.name)
		}
		s, err := w.startSandbox(p, set)
		if err != nil {
			return nil, fmt.Errorf("start: %w", err)
		}
		boxes[p.name] = s
		return s, nil
	}

	turn := rand.IntN(64)
	for round := range w.opt.rounds {
		res.OtherLoad = append(res.OtherLoad, otherLoad())
		for _, sc := range group {
			for _, p := range rotated(pathsFor(sc, all), turn+round) {
				if why, ok := p.lacks[sc.lacks]; ok && sc.lacks != "" {
					res.add(w.opt, sc, p.name, nil, errors.New(why))
					continue
				}
				// A path that does not start is not tried in every round.
				if c := res.cell(sc.name, p.name, sc.metric); c != nil && c.Error != "" && len(c.Values) == 0 && round > 1 {
					continue
				}
				if sc.fresh && boxes[p.name] != nil {
					boxes[p.name].broken = errFresh
				}
				s, err := box(p)
				var m metrics
				if err == nil {
					m, err = w.one(sc, s)
				}
				res.add(w.opt, sc, p.name, m, err)
				w.progress(round, sc, p, m, err)
			}
		}
	}
	return nil
}

// errFresh makes room for a new sandbox.
var errFresh = errors.New("a fresh one is needed")

// otherLoad is the part of the machine that is busy while we do nothing: above a
// few percent the figures are not to be trusted.
func otherLoad() float64 {
	const pause = 200 * time.Millisecond
	before, begin := machineCPU(), time.Now()
	time.Sleep(pause)
	return (machineCPU() - before) / time.Since(begin).Seconds() / float64(runtime.NumCPU())
}

// one takes one measure on one path.
func (w *world) one(sc scenario, s *sandbox) (metrics, error) {
	if s.path.wmem != "" {
		old, err := os.ReadFile("/proc/sys/net/ipv4/tcp_wmem")
		if err != nil {
			return nil, err
		}
		if err := sysctl("net/ipv4/tcp_wmem", s.path.wmem); err != nil {
			return nil, err
		}
		defer sysctl("net/ipv4/tcp_wmem", strings.TrimSpace(string(old)))
	}
	m, err := sc.run(w, s)
	if err != nil {
		s.broken = err // a fresh one for the next measure
	}
	return m, err
}

// pathsFor are the paths of a scenario, in its order.
func pathsFor(sc scenario, all map[string][]path) []path {
	var ps []path
	for _, name := range sc.paths {
		ps = append(ps, all[name]...)
	}
	return ps
}

// rotated starts each round with another path, so that none is always the first.
func rotated[T any](v []T, by int) []T {
	if len(v) == 0 {
		return v
	}
	by %= len(v)
	return append(slices.Clone(v[by:]), v[:by]...)
}

func (w *world) progress(round int, sc scenario, p path, m metrics, err error) {
	what := ""
	if err != nil {
		what = oneLine(err.Error())
	} else {
		what = format(sc.metric, m[sc.metric])
	}
	fmt.Fprintf(os.Stderr, "%d/%d  %-28s %-22s %s\n", round+1, w.opt.rounds, sc.name, p.name, what)
}

func (w *world) printList() error {
	for _, s := range w.opt.chosen() {
		fmt.Printf("%-32s %s\n", s.name, s.title)
	}
	fmt.Println()
	for _, ps := range w.paths() {
		for _, p := range ps {
			fmt.Printf("%-32s %s\n", p.name, p.what)
		}
	}
	return nil
}

func (w *world) newResults() *results {
	r := &results{Date: time.Now().UTC().Truncate(time.Second), Commands: []string{w.opt.command}, CPUs: runtime.NumCPU(),
		CPU: cpuModel(), Settings: w.settings(), Versions: map[string]string{}, Missing: map[string]string{}, Paths: map[string]string{}}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		r.Kernel = string(bytes.TrimRight(u.Release[:], "\x00"))
	}
	for _, ps := range w.paths() {
		for _, p := range ps {
			r.Paths[p.name] = p.what
		}
	}
	for _, b := range w.opt.sbx {
		out, err := w.command("/nonexistent", b.file, "--version").Output()
		if err != nil {
			r.Missing["sbx "+b.name] = err.Error()
		}
		r.Versions["sbx "+b.name] = strings.TrimSpace(strings.TrimPrefix(string(out), "sbx version "))
	}
	versions, err := os.ReadFile(w.peers + "/versions")
	if err != nil {
		r.Missing["peers"] = "run scripts/peers.sh: " + err.Error()
	}
	lines := bufio.NewScanner(bytes.NewReader(versions))
	for lines.Scan() {
		if name, v, ok := strings.Cut(lines.Text(), " "); ok {
			r.Versions[name] = v
		}
	}
	for _, name := range []string{"pasta", "pasta-stable", "slirp4netns", "rootlesskit", "podman", "crun", "bwrap"} {
		if _, err := w.peer(name); err != nil {
			r.Missing[name] = err.Error()
		}
	}
	return r
}

func cpuModel() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return runtime.GOARCH
}
