package sandbox_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/sandbox"
)

// TestStatsNetwork: the bytes are those that the sandbox's own device counts, and, of
// published ports that pass it by, those that the client sent and got; also after the
// network's process has been killed.
func TestStatsNetwork(t *testing.T) {
	w := newWorld(t)
	for _, driver := range []string{"direct", "stack"} {
		cfg := w.config("sh", "-c", "nc -ll -p 80 -e cat & echo ready; wait")
		cfg.Networks, cfg.PortDriver, cfg.Publish = sandbox.On(sandbox.NetworkDefault), driver, ports(t, "127.0.0.1::80")
		s, _ := w.startReady(cfg)
		var past uint64 // bytes each way that the device does not see
		for round := range 2 {
			sent := strings.Repeat("x", 70_000)
			for end := time.Now().Add(10 * time.Second); ; {
				n, err := echoes(fmt.Sprintf("127.0.0.1:%d", s.Ports()[0].Spec.ParentPort), sent)
				if driver == "direct" {
					past += n
				}
				if err == nil {
					break
				}
				if time.Now().After(end) {
					t.Fatal(err)
				}
			}
			if round == 1 {
				break // what the killed one has counted since is lost
			}
			checkNetwork(t, s, past)
			kill(find(os.Getpid(), "sbx-netd")...)
		}
		if got := traffic(t, s); got.In < past {
			t.Errorf("%s: %d bytes after the network's process was killed, want at least %d", driver, got.In, past)
		}
		if err := s.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// checkNetwork compares with the device. Both are read until nothing comes in between.
func checkNetwork(t *testing.T, s *sandbox.Sandbox, past uint64) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		before := traffic(t, s)
		var out bytes.Buffer
		x, err := s.Exec(t.Context(), sandbox.ExecConfig{
			Args:    []string{"sh", "-c", "cd /sys/class/net/eth0/statistics && echo $(cat rx_bytes tx_bytes)"},
			Streams: sandbox.Streams{Stdout: &out},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := x.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		var device sandbox.Transfer
		if _, err := fmt.Sscan(out.String(), &device.In, &device.Out); err != nil {
			t.Fatalf("%q: %v", out.String(), err)
		}
		device.In, device.Out = device.In+past, device.Out+past
		after := traffic(t, s)
		if before == after && after == device {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("counted %+v, then %+v; the device says %+v", before, after, device)
		}
	}
}

func traffic(t *testing.T, s *sandbox.Sandbox) sandbox.Transfer {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		st, err := s.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st.Network != nil {
			return *st.Network
		}
		if time.Now().After(end) {
			t.Fatal("nobody counts the network's bytes")
		}
	}
}

// echoes sends text and reads it back; n is how much of it came.
func echoes(addr, text string) (n uint64, err error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	go io.WriteString(c, text)
	got, err := io.ReadFull(c, make([]byte, len(text)))
	return uint64(got), err
}

// TestStatsProcesses: without a cgroup it is the processes that are measured.
func TestStatsProcesses(t *testing.T) {
	w := newWorld(t)
	s, _ := w.startReady(w.config("sh", "-c", "sleep 1000 & sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'; echo ready; wait"))
	st, err := s.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !st.Estimated || st.PIDs != 2 || st.Memory == 0 || st.MemoryLimit <= st.Memory || st.Block != nil || *st.Network != (sandbox.Transfer{}) {
		t.Errorf("%+v", st)
	}
	if st.CPU == 0 { // of a process that has ended
		t.Errorf("no processor time: %+v", st)
	}
	if list := sandbox.Measure(t.Context(), []*sandbox.Sandbox{s, s}); len(list) != 2 || list[0].Err != nil || list[1].PIDs != 2 {
		t.Errorf("%+v", list)
	}
	if err := s.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := s.Stats(t.Context()); !errors.Is(err, sandbox.ErrNotRunning) && !errors.Is(err, sandbox.ErrNoSandbox) {
		t.Errorf("after its end: %v", err)
	}
}
