package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// usage is what a process holds. goroutines are known of a network's process alone.
type usage struct {
	pid, rss, fds, threads, goroutines int
}

// measure is what the monitors of the sandboxes that stay hold, and the networks'
// processes, while nothing goes on.
func (s *soak) measure(stay []string) map[string]usage {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]usage{}
	for _, name := range stay {
		pid, err := strconv.Atoi(strings.TrimSpace(s.e.Must("inspect", "-f", "{{.State.Pid}}", name)))
		if err != nil {
			s.t.Fatal(err)
		}
		all[name] = usageOf(s.t, numbers(s.t, pid, "PPid")[0])
	}
	for _, network := range []string{"soak-a", "soak-b", "soak-k"} {
		all[network] = usageOfNetwork(s.t, s.e, network)
	}
	return all
}

// usageOf reads what a monitor holds; a network's process lets nobody look.
func usageOf(t *testing.T, pid int) usage {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	n := numbers(t, pid, "VmRSS", "Threads")
	return usage{pid: pid, rss: n[0], fds: len(fds), threads: n[1]}
}

// usageOfNetwork asks a network's process; 0 is the pid of none.
func usageOfNetwork(t *testing.T, e *harness.Env, network string) (u usage) {
	t.Helper()
	out := e.Must("network", "inspect", "-f", "{{with .Status}}{{.Pid}} {{.Descriptors}} {{.Goroutines}}{{end}}", network)
	if strings.TrimSpace(out) == "" {
		return u
	}
	if _, err := fmt.Sscan(out, &u.pid, &u.fds, &u.goroutines); err != nil {
		t.Fatalf("network inspect: %q: %v", out, err)
	}
	n := numbers(t, u.pid, "VmRSS", "Threads")
	u.rss, u.threads = n[0], n[1]
	return u
}

// numbers reads keys of a process's status.
func numbers(t *testing.T, pid int, keys ...string) []int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	found := make([]int, len(keys))
	for i, key := range keys {
		_, line, _ := strings.Cut(string(status), "\n"+key+":")
		if _, err := fmt.Sscan(line, &found[i]); err != nil {
			t.Fatalf("%s of process %d: %v", key, pid, err)
		}
	}
	return found
}

// grown says what is larger than it was. A heap may grow before it is collected; a
// network keeps up to 8 sockets in advance for a port, of each family and type.
func (s *soak) grown(before, after map[string]usage) error {
	for name, was := range before {
		now := after[name]
		if name != "soak-k" && now.pid != was.pid {
			return fmt.Errorf("%s: process %d has become %d", name, was.pid, now.pid)
		}
		if now.rss > was.rss*5/4+8<<10 || now.fds > was.fds+4*8+4 || now.goroutines > was.goroutines+8 || now.threads > was.threads+8 {
			return fmt.Errorf("%s has grown: %+v, before %+v (KiB)", name, now, was)
		}
	}
	if n := len(s.e.Role("sbx-monitor")); n != len(after)-3 {
		return fmt.Errorf("%d monitors of %d sandboxes", n, len(after)-3)
	}
	return nil
}
