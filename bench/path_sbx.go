package main

import (
	"net"
	"regexp"
	"strconv"
	"time"

	"github.com/rootless-sbx/sbx/bench/load"
)

var netdName = regexp.MustCompile(`^sbx-netd`)

// sbxPaths are the product's, for one build of it.
func sbxPaths(b build, only bool) []path {
	suffix := ":" + b.name
	if only {
		suffix = ""
	}
	one := func(name, what string, args ...string) path {
		return path{name: name + suffix, what: what, sbx: true, procs: netdName, start: startSbx, binary: b.file, args: args}
	}
	return []path{
		one("sbx-tap", "sbx, tap link; published ports direct", "--link-driver", "tap", "--port-driver", "direct"),
		one("sbx-packet", "sbx, packet link; published ports direct", "--link-driver", "packet", "--port-driver", "direct"),
		one("sbx-stack", "sbx, tap link; published ports through the stack", "--link-driver", "tap", "--port-driver", "stack"),
	}
}

func startSbx(w *world, p path, set setup) (*sandbox, error) {
	dir, err := w.runtimeDir()
	if err != nil {
		return nil, err
	}
	return w.runSbx(p, set, dir)
}

// runSbx starts a sandbox on the network of dir.
func (w *world) runSbx(p path, set setup, dir string) (*sandbox, error) {
	port := w.port()
	// A client of the host's own address keeps it through the stack.
	in := net.JoinHostPort("127.0.0.1", port)
	for _, a := range p.args {
		if a == "stack" {
			in = net.JoinHostPort(hostIP4, port)
		}
	}
	args := []string{p.binary, "run", "--rm", "-i", "--rootfs", w.root, "--mtu", strconv.Itoa(set.mtu),
		"-p", in + ":" + serverPort + "/tcp", "-p", in + ":" + serverPort + "/udp"}
	args = append(append(args, p.args...), "/bench", roleAgent)
	agent, err := load.Start(w.command(dir, args...), 10*time.Second)
	if err != nil {
		return nil, err
	}
	s := &sandbox{agent: agent, in: in, dir: dir}
	outTo(s)
	s.dns = gatewayOf(agent)
	return s, nil
}
