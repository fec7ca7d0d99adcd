package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/rootless-sbx/sbx/bench/load"
)

// A path is one way to connect a sandbox with the host, or a limit to compare with.
type path struct {
	name string // unique; with several builds of sbx, "name:build"
	what string // for the reader
	sbx  bool   // of the product
	// procs matches the command names of the path's network process; nil has none.
	procs *regexp.Regexp
	// wmem is the host's third tcp_wmem while this path is measured; empty leaves it.
	wmem string
	// lacks says for a kind of measure why the path has none.
	lacks map[string]string
	start func(w *world, p path, s setup) (*sandbox, error)
	// command is what a path of the start scenario runs, instead of start.
	command func(w *world, p path, dir string) (args []string, runtimeDir string, err error)
	// binary and args are the parameters of start.
	binary string
	args   []string
}

// setup is what the sandboxes of a group have in common.
type setup struct {
	mtu int
	cc  string // congestion control of host and sandbox; empty as installed
}

// sandbox is a started path.
type sandbox struct {
	path  path
	set   setup
	dir   string // XDG_RUNTIME_DIR
	agent *load.Agent
	// out4 and out6 are the host's server as the sandbox dials it, dns its resolver.
	out4, out6, dns string
	// in is the sandbox's server as the host dials it.
	in     string
	procs  []int // the network process
	pid    int   // the agent, for its namespaces
	stops  []func()
	others []*sandbox // on the same network
	broken error      // it does not answer any more
}

func (s *sandbox) close() {
	if s.agent != nil {
		s.agent.Close()
	}
	for i := len(s.stops) - 1; i >= 0; i-- {
		s.stops[i]()
	}
}

// startSandbox starts a path and finds its processes: those that were not there
// before.
func (w *world) startSandbox(p path, set setup) (*sandbox, error) {
	if p.command != nil {
		dir, err := w.runtimeDir()
		return &sandbox{path: p, dir: dir}, err
	}
	before := map[int]bool{}
	for _, pid := range allPids() {
		before[pid] = true
	}
	s, err := p.start(w, p, set)
	if err != nil {
		return nil, err
	}
	s.path, s.set = p, set
	for _, pid := range allPids() {
		if before[pid] {
			continue
		}
		if strings.Contains(commandLine(pid), roleAgent) && commandName(pid) == "bench" {
			s.pid = pid
		} else if p.procs != nil && p.procs.MatchString(commandName(pid)) {
			s.procs = append(s.procs, pid)
		}
	}
	err = nil
	if s.pid == 0 {
		err = errors.New("the load generator is not among the new processes")
	} else if p.procs != nil && len(s.procs) == 0 {
		err = fmt.Errorf("no new process matches %v", p.procs)
	} else if set.cc != "" {
		err = inNetns(s.pid, func() error { return sysctl("net/ipv4/tcp_congestion_control", set.cc) })
	}
	if err == nil {
		err = inNetns(s.pid, func() error { return sysctl("net/ipv4/ip_local_port_range", "10000 65000") })
	}
	if err == nil {
		_, err = s.agent.Call(load.Request{Op: "serve", Addr: ":" + serverPort}, 5*time.Second)
		if p.name == "loopback" {
			err = nil // the host's server is there already
		}
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// peer is a peer's program, or an error that says what to do.
func (w *world) peer(name string) (string, error) {
	p := filepath.Join(w.peers, name)
	if _, err := os.Stat(p); err != nil {
		return "", fmt.Errorf("%s is missing: run scripts/peers.sh", name)
	}
	return p, nil
}

// port gives each sandbox a published port of its own.
func (w *world) port() string {
	w.serial++
	return fmt.Sprint(2000 + w.serial)
}

func outTo(s *sandbox) {
	s.out4 = net.JoinHostPort(hostIP4, serverPort)
	s.out6 = net.JoinHostPort(hostIP6, serverPort)
}

// background starts a helper of a path and gives its pid, and stops it in the end.
func (s *sandbox) background(cmd *exec.Cmd) (*logTail, error) {
	log := new(logTail)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.stops = append(s.stops, func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return log, nil
}
