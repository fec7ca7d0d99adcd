package netd

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/internal/wire"
)

// fuzzed are the requests by the first letter of a line; any other is unknown.
var fuzzed = map[byte]string{
	'h': msgHello, 's': msgStats, 'm': msgMembers, 'q': msgLeave, 'l': msgLease, 'r': msgRename, 'a': msgAttach, 'A': msgAttach, 'B': msgAttach,
	'u': msgUpdate, 'p': msgAddPort, 'd': msgRmPort, 'w': msgPorts, '?': msgResolve,
}

// FuzzControl sends requests of any kind in any order, one a line, to a network of this
// process, so that the fuzzer sees what they reach. Each must be answered, and another
// client served on. A is attach with a link, B one with sockets too. The network is
// internal: it publishes no port of this machine.
func FuzzControl(f *testing.F) {
	for _, script := range []string{
		`h{"name":"default"}`, `s{}`, `x[[[`, `l{"id":7}`,
		"h{\"name\":\"default\"}\nm{}\nq{}\nw{}\nd{\"id\":-1}\n?{\"query\":\"AAA=\"}\ns{}",
		"h{\"name\":\"default\"}\nl{\"id\":\"x\",\"name\":\"y\",\"addr4\":\"10.0.0.1\",\"mac\":\"AAAA\"}",
		"h{\"name\":\"default\"}\nl{\"id\":\"x\",\"name\":\"y\"}\nr{\"name\":\"z\"}\na{}\n" +
			"A{\"driver\":\"packet\",\"hdrlen\":12,\"mtu\":1500,\"aliases\":[\"b\"],\"host_ports\":[7],\"publish\":[{\"proto\":\"tcp\",\"parentPort\":1,\"childPort\":70000}]}\n" +
			"p{\"proto\":\"udp\",\"parentIP\":\"::1\",\"parentPort\":-1,\"childPort\":0}\nw{}\nu{\"aliases\":[\"c\"],\"networks\":[\"other\"]}\nA{}\ns{}\nm{}",
		"h{\"name\":\"default\"}\nl{\"id\":\"x\"}\nB{\"driver\":\"tap\",\"hdrlen\":12,\"port_driver\":\"direct\"}\nd{\"id\":1}",
	} {
		f.Add([]byte(script))
	}
	// The fuzzer's goroutine for signals is none of the network's leaks.
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGWINCH)
	signal.Stop(c)
	n := newNetwork(f)
	n.Network.Internal = true
	n.Start = func(_ context.Context, files StartFiles) error {
		fd, err := syscall.Dup(int(files.Control.Fd())) // Ensure closes its own
		if err != nil {
			return err
		}
		conn, err := wire.NewConn(os.NewFile(uintptr(fd), "control"))
		if err != nil {
			return err
		}
		left := make(chan error)
		go func() { defer conn.Close(); left <- serve(context.Background(), conn, MainConfig{}) }()
		f.Cleanup(func() {
			if err := <-left; err != nil {
				f.Error(err)
			}
		})
		return nil
	}
	other := n.ensure()
	f.Cleanup(n.owner("other"))
	if _, err := other.Lease(f.Context(), LeaseRequest{ID: "other"}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		if strings.Contains(string(script), "state_dir") {
			return // a directory of this machine
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		here := *n
		here.t = t
		c := here.raw()
		for i, line := range bytes.Split(script, []byte("\n")) {
			if i == 16 || len(line) == 0 || !json.Valid(line[1:]) {
				break // FuzzParse of package wire is about the latter
			}
			var files []wire.File
			if line[0] == 'A' || line[0] == 'B' {
				a, b, err := wire.Pair()
				if err != nil {
					t.Fatal(err)
				}
				defer a.Close()
				defer b.Close()
				if files = append(files, wire.File{Name: fileLink, File: a}); line[0] == 'B' {
					files = append(files, wire.File{Name: fileSockets, File: b})
				}
			}
			typ, ok := fuzzed[line[0]]
			if !ok {
				typ = string(line[0])
			}
			if err := c.call(ctx, typ, json.RawMessage(line[1:]), nil, files...); err != nil && ctx.Err() != nil {
				t.Fatalf("no answer to %s: %v", typ, err)
			}
		}
		if _, err := other.Stats(ctx); err != nil {
			t.Fatalf("another client: %v", err)
		}
	})
}
