package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

// TestNetworksKilled kills the processes of three networks at once, whose sandboxes are
// on one and on more of them. Who asks in that moment is answered, by every name and
// published port, and the connections between sandboxes go on.
func TestNetworksKilled(t *testing.T) {
	e := harness.New(t, harness.BB)
	networks := []string{"nk-a", "nk-b", "bridge"}
	makeNetwork(t, e, "nk-a")
	makeNetwork(t, e, "nk-b")
	ports := map[string]string{}
	for name, on := range map[string]string{"nk-one": "nk-a", "nk-both": "nk-a nk-b", "nk-two": "nk-b", "nk-all": "bridge nk-a nk-b", "nk-def": "bridge"} {
		args := []string{"-h", name}
		for n := range strings.FieldsSeq(on) {
			args = append(args, "--network", n)
		}
		if name != "nk-def" {
			p := fmt.Sprintf("127.0.0.1:%d", e.FreePort())
			args = append(args, "-p", p+":7", "-p", p+":7/udp")
			ports[name] = p
		}
		detached(t, e, name, append(args, harness.BB, "sh", "-c", "/probe echo 8 & exec /probe who 7")...)
	}
	for name := range ports {
		until(t, e, ":", "exec", name, "/probe", "ask", "tcp", "127.0.0.1:7")
	}
	var talks []*harness.Proc
	for from, to := range map[string]string{"nk-one": "nk-both", "nk-two": "nk-both", "nk-both": "nk-all", "nk-def": "nk-all"} {
		for _, family := range []string{"tcp4", "tcp6"} {
			p := e.Start("exec", from, "/probe", "talk", to+":8", family)
			p.WaitOut("answer 3\n", 20*time.Second)
			talks = append(talks, p)
		}
	}
	for range 2 {
		for _, n := range networks {
			if err := syscall.Kill(usageOfNetwork(t, e, n).pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		killed := time.Now()
		var wg sync.WaitGroup
		// By every name that each of them sees, by TCP and UDP, IPv4 and IPv6.
		for from, sees := range map[string]string{"nk-one": "nk-both nk-all", "nk-two": "nk-both nk-all", "nk-both": "nk-one nk-two nk-all", "nk-all": "nk-one nk-two nk-both nk-def", "nk-def": "nk-all"} {
			wg.Go(func() {
				if r := e.Run(append([]string{"exec", from, "/probe", "visit", "12"}, strings.Fields(sees)...)...); r.Code != 0 {
					t.Errorf("%v", r)
				}
			})
			wg.Go(func() {
				name, _, _ := strings.Cut(sees, " ")
				if r := e.Run("exec", from, "/probe", "lookup", name); r.Code != 0 || strings.HasPrefix(r.Stdout, "error") {
					t.Errorf("%s asks once for %s: %v", from, name, r)
				}
			})
		}
		for name, addr := range ports {
			for _, network := range []string{"tcp", "udp"} {
				wg.Go(func() {
					if err := probe.Visit(network, addr, name); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		t.Logf("all are back after %v", time.Since(killed).Round(time.Millisecond))
	}
	for _, p := range talks {
		said := strings.Count(p.Result().Stdout, "\n")
		p.WaitOut(fmt.Sprintf("answer %d\n", said+3), 20*time.Second)
		p.Stop()
	}
}

// inWorld starts the probe outside of the machine.
func (m *machine) inWorld(e *harness.Env, args ...string) *harness.Proc {
	m.t.Helper()
	world, err := os.ReadFile(filepath.Join(e.Dir(), "world"))
	if err != nil {
		m.t.Fatal(err)
	}
	line := slices.Concat(m.exec, []string{"nsenter", "--net=/proc/" + strings.TrimSpace(string(world)) + "/ns/net", filepath.Join(e.Dir(), "probe")}, args)
	return e.StartWith(func(c *exec.Cmd) {
		c.Path, c.Err = exec.LookPath(line[0])
		c.Args = line
	})
}

// TestStandstill: the network's process and the monitors stand still for a while
// (SBX_TEST_STANDSTILL, by itself 1.5 s), and what is under way with them goes on
// afterwards: connections out, in and between sandboxes, datagrams, questions for names,
// commands.
func TestStandstill(t *testing.T) {
	length := 1500 * time.Millisecond
	if v := os.Getenv("SBX_TEST_STANDSTILL"); v != "" {
		var err error
		if length, err = time.ParseDuration(v); err != nil {
			t.Fatalf("SBX_TEST_STANDSTILL: %v", err)
		}
	}
	e := harness.New(t, harness.BB)
	m := newMachine(t, e)
	shared := filepath.Join(e.Dir(), "shared")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	detached(t, e, "peer", "-h", "peer", harness.BB, "sh", "-c", "/probe echo 8 & exec /probe who 7")
	detached(t, e, "box", "-p", "10.9.0.2:5000:8", "-v", shared+":/shared", harness.BB, "/probe", "echo", "8")
	until(t, e, ":", "exec", "peer", "/probe", "ask", "tcp", "127.0.0.1:7")
	until(t, e, "ready", "logs", "box")
	talks := []*harness.Proc{
		e.Start("exec", "box", "/probe", "talk", "10.9.9.9:7"),
		e.Start("exec", "box", "/probe", "talk", "peer:8"),
		m.inWorld(e, "talk", "10.9.0.2:5000"),
	}
	for _, p := range talks {
		p.WaitOut("answer 3\n", 20*time.Second)
	}
	// These ask once each, in the last second.
	var once []*harness.Proc
	for _, what := range []string{"lookup web.test", "lookup peer", "ask udp 10.9.9.9:9", "ask udp peer:7", "ask tcp peer:7", "get http://web.test/"} {
		once = append(once, e.Start("exec", "box", "sh", "-c", "echo here; while ! [ -e /shared/go ]; do sleep 0.02; done; exec /probe "+what))
	}
	for _, p := range once {
		p.WaitOut("here", 20*time.Second)
	}
	netd := e.Role("sbx-netd")
	if len(netd) != 1 {
		t.Fatalf("%d network processes", len(netd))
	}
	stopped := append(slices.Clone(netd), e.Role("sbx-monitor")...)
	signal := func(sig syscall.Signal) {
		t.Helper()
		for _, pid := range stopped {
			if err := syscall.Kill(pid, sig); err != nil {
				t.Fatal(err)
			}
		}
	}
	signal(syscall.SIGSTOP)
	before := ticks(t, netd[0])
	time.Sleep(length - time.Second)
	if err := os.WriteFile(filepath.Join(shared, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	once = append(once, e.Start("port", "add", "box", "10.9.0.2:5001:8"))
	time.Sleep(time.Second)
	signal(syscall.SIGCONT)
	for _, p := range once {
		if r := p.Wait(30 * time.Second); r.Code != 0 || strings.Contains(r.Stdout, "error") {
			t.Errorf("%v", r)
		}
	}
	for _, p := range talks {
		said := strings.Count(p.Result().Stdout, "\n")
		p.WaitOut(fmt.Sprintf("answer %d\n", said+3), 20*time.Second)
		p.Stop()
	}
	if now := e.Role("sbx-netd"); len(now) != 1 || now[0] != netd[0] {
		t.Errorf("network processes %v, was %v", now, netd)
	}
	used := ticks(t, netd[0]) - before
	t.Logf("after %v the network's process has used %d ms of a processor", length, 10*used)
	if used > 100 {
		t.Errorf("too much: %d ms", 10*used)
	}
}
