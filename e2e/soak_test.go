package e2e

import (
	"errors"
	"fmt"
	"io/fs"
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

// usage is what a process holds. Of one that lets nobody look at its descriptors, as
// the network's, fds is the size of their table, which doubles.
type usage struct {
	rss, fds, threads int
	table             bool
}

func usageOf(t *testing.T, pid int) (u usage) {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if u.table = errors.Is(err, fs.ErrPermission); err != nil && !u.table {
		t.Fatal(err)
	}
	u.fds = len(fds)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		switch f[0] {
		case "VmRSS:":
			u.rss, err = strconv.Atoi(f[1]) // KiB
		case "FDSize:":
			if u.table {
				u.fds, err = strconv.Atoi(f[1])
			}
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
// was asked of, and the processes that stay must not grow: neither in memory, which is
// where goroutines would show, nor in descriptors.
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

	stay := func() (pids []int) { return append(e.Role("sbx-netd"), e.Role("sbx-monitor")...) }
	measure := func() map[int]usage {
		mu.Lock()
		defer mu.Unlock()
		all := map[int]usage{}
		for _, pid := range stay() {
			all[pid] = usageOf(t, pid)
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
			most := was.fds + 4
			if was.table {
				most = max(2*was.fds, 256)
			}
			// A heap may grow by half before it is collected.
			if now.rss > was.rss*3/2+16<<10 || now.fds > most || now.threads > was.threads+8 {
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
