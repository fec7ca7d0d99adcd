package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

// usage is what a process holds. goroutines are known of a network's process alone.
type usage struct {
	rss, fds, threads, goroutines int
}

// usageOf reads what a monitor holds.
func usageOf(t *testing.T, pid int) usage {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	u := memoryOf(t, pid)
	u.fds = len(fds)
	return u
}

// usageOfNetwork asks a network's process, which lets nobody look; 0 is the pid of none.
func usageOfNetwork(t *testing.T, e *harness.Env, network string) (pid int, u usage) {
	t.Helper()
	out := e.Must("network", "inspect", "-f", "{{with .Status}}{{.Pid}} {{.Descriptors}} {{.Goroutines}}{{end}}", network)
	if strings.TrimSpace(out) == "" {
		return 0, u
	}
	var fds, goroutines int
	if _, err := fmt.Sscan(out, &pid, &fds, &goroutines); err != nil {
		t.Fatalf("network inspect: %q: %v", out, err)
	}
	u = memoryOf(t, pid)
	u.fds, u.goroutines = fds, goroutines
	return pid, u
}

func memoryOf(t *testing.T, pid int) (u usage) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		switch f[0] {
		case "VmRSS:":
			u.rss, err = strconv.Atoi(f[1]) // KiB
		case "Threads:":
			u.threads, err = strconv.Atoi(f[1])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return u
}

// TestSoak has sandboxes come, go, connect, publish and talk for a while (SBX_SOAK, by
// itself a moment; make soak takes half an hour). Every answer must come from whom it
// was asked of, and the processes that stay must not grow: neither in memory nor in
// descriptors, nor those of the networks in goroutines.
func TestSoak(t *testing.T) {
	length := 4 * time.Second
	if v := os.Getenv("SBX_SOAK"); v != "" {
		var err error
		if length, err = time.ParseDuration(v); err != nil {
			t.Fatalf("SBX_SOAK: %v", err)
		}
	}
	e := harness.New(t, harness.BB)
	makeNetwork(t, e, "soak-a")
	makeNetwork(t, e, "soak-b")
	servers := []string{"soak-1", "soak-2", "soak-3"}
	for _, s := range servers {
		detached(t, e, s, "-h", s, "--network", "soak-a", harness.BB, "/probe", "who", "7")
	}
	detached(t, e, "soak-far", "-h", "soak-far", "--network", "soak-b", harness.BB, "/probe", "who", "7")

	var mu sync.RWMutex // held by what goes on; all of it stops while we count
	end := make(chan struct{})
	var wg sync.WaitGroup
	count := make([]int, 4)
	work := func(i int, step func(n int) error) {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-end:
					return
				default:
				}
				mu.RLock()
				err := step(n)
				mu.RUnlock()
				if err != nil {
					t.Errorf("after %d times: %v", n, err)
					return
				}
				count[i]++
			}
		})
	}
	sbx := func(args ...string) error {
		if r := e.Run(args...); r.Code != 0 {
			return fmt.Errorf("%v", r)
		}
		return nil
	}
	// They come, talk and go.
	for i := range 2 {
		work(i, func(n int) error {
			args := []string{"run", "--rm", "--network", "soak-a", "--link-driver", []string{"tap", "packet"}[n%2], harness.BB, "/probe", "visit", "20"}
			return sbx(append(args, servers...)...)
		})
	}
	// One is connected to another network, asks there, and is taken out again.
	work(2, func(n int) error {
		if err := sbx("network", "connect", "soak-b", "soak-1"); err != nil {
			return err
		}
		if err := sbx("exec", "soak-1", "/probe", "visit", "5", "soak-far"); err != nil {
			return err
		}
		return sbx("network", "disconnect", "soak-b", "soak-1")
	})
	// Another one publishes a port, is asked there, and takes it back.
	port := e.FreePort()
	work(3, func(n int) error {
		network := []string{"tcp", "udp"}[rand.IntN(2)]
		spec := fmt.Sprintf("127.0.0.1:%d:7/%s", port, network)
		if err := sbx("port", "add", "soak-2", spec); err != nil {
			return err
		}
		answer, err := probe.Ask(network, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil || !strings.HasSuffix(answer, " soak-2") {
			return fmt.Errorf("%s: %q %v", spec, answer, err)
		}
		return sbx("port", "rm", "soak-2", spec)
	})

	measure := func() map[int]usage {
		mu.Lock()
		defer mu.Unlock()
		all := map[int]usage{}
		for _, pid := range e.Role("sbx-monitor") {
			all[pid] = usageOf(t, pid)
		}
		for _, network := range []string{"soak-a", "soak-b"} {
			pid, u := usageOfNetwork(t, e, network)
			all[pid] = u
		}
		return all
	}
	time.Sleep(length / 4) // until pools, caches and heaps have their size
	before := measure()
	time.Sleep(length - length/4)
	close(end)
	wg.Wait()
	if t.Failed() {
		return
	}
	harness.Eventually(t, 30*time.Second, func() error {
		after := measure()
		if len(after) != len(before) {
			return fmt.Errorf("%d processes, before %d", len(after), len(before))
		}
		for pid, was := range before {
			now := after[pid]
			// A heap may grow by half before it is collected. A network keeps up to 8
			// sockets in advance for soak-2, of each family and type.
			if now.rss > was.rss*3/2+16<<10 || now.fds > was.fds+4*8+4 || now.goroutines > was.goroutines+8 || now.threads > was.threads+8 {
				return fmt.Errorf("process %d has grown: %+v, before %+v (KiB)", pid, now, was)
			}
		}
		return nil
	})
	t.Logf("%d and %d sandboxes came and went, %d connected, %d ports; processes after: %+v, before: %+v", count[0], count[1], count[2], count[3], measure(), before)
	for i, n := range count {
		if n == 0 {
			t.Errorf("nothing of kind %d has come about", i)
		}
	}
}
