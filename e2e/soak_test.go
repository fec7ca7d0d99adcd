package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

// soak is what TestSoak has going on. On network soak-a are soak-1 to soak-3, on soak-b,
// which is internal, soak-far; on soak-k are kept-1 and kept-2, and its process is
// killed now and then.
type soak struct {
	t      *testing.T
	e      *harness.Env
	length time.Duration
	end    chan struct{}
	wg     sync.WaitGroup
	mu     sync.RWMutex // held by what goes on; all of it stops while we count
	mine   sync.Mutex
	count  map[string]int
	stood  atomic.Int64 // when all of it stood still for the last time, in nanoseconds
}

// standstill is longer than a busy machine keeps a process waiting, and shorter than what sbx
// waits for another process.
const standstill = 3 * time.Second

// watch notices that all processes were stopped, or the machine: time-outs have passed
// then with nobody there to answer.
func (s *soak) watch() {
	last := time.Now()
	for {
		select {
		case <-s.end:
			return
		case <-time.After(100 * time.Millisecond):
		}
		if now := time.Now(); now.Sub(last) > standstill {
			s.stood.Store(now.UnixNano())
		}
		last = time.Now()
	}
}

// TestSoak has sandboxes come, go, connect, publish and talk for a while (SBX_SOAK, by
// itself a moment; make test takes five minutes, make soak half an hour), on three
// networks, one of which loses its process again and again. Every answer must come from
// whom it was asked of, connections go on, and the processes that stay must not grow:
// neither in memory nor in descriptors, nor those of the networks in goroutines.
func TestSoak(t *testing.T) {
	s := &soak{t: t, e: harness.New(t, harness.BB), length: 4 * time.Second, end: make(chan struct{}), count: map[string]int{}}
	if v := os.Getenv("SBX_SOAK"); v != "" {
		var err error
		if s.length, err = time.ParseDuration(v); err != nil {
			t.Fatalf("SBX_SOAK: %v", err)
		}
	}
	makeNetwork(t, s.e, "soak-a")
	makeNetwork(t, s.e, "soak-b", "--internal")
	makeNetwork(t, s.e, "soak-k")
	kept := s.e.FreePort()
	stay := []string{"soak-1", "soak-2", "soak-3", "soak-far", "kept-1", "kept-2"}
	for i, name := range stay {
		args := []string{"-h", name, "--network", []string{"soak-a", "soak-a", "soak-a", "soak-b", "soak-k", "soak-k"}[i]}
		if name == "kept-2" {
			args = append(args, "-p", fmt.Sprintf("%d:7", kept), "-p", fmt.Sprintf("%d:7/udp", kept))
		}
		detached(t, s.e, name, append(args, harness.BB, "sh", "-c", "/probe echo 8 & exec /probe who 7")...)
		until(t, s.e, ":", "exec", name, "/probe", "ask", "tcp", "127.0.0.1:7")
	}
	talks := []*harness.Proc{
		s.e.Start("exec", "soak-1", "/probe", "talk", "soak-2:8"),
		s.e.Start("exec", "kept-1", "/probe", "talk", "kept-2:8"),
	}
	go s.watch()
	s.visitors(stay)
	s.guests()
	s.connections()
	s.ports()
	s.kills(kept)

	time.Sleep(s.length / 4) // until pools, caches and heaps have their size:
	harness.Eventually(t, 60*time.Second, s.begun)
	before := s.measure(stay)
	for _, p := range talks {
		p.WaitOut("answer 1\n", 20*time.Second)
	}
	time.Sleep(s.length - s.length/4)
	close(s.end)
	s.wg.Wait()
	if t.Failed() {
		return
	}
	harness.Eventually(t, 30*time.Second, func() error { return s.grown(before, s.measure(stay)) })
	t.Logf("%v in %v; processes after: %v, before: %v", s.count, s.length, s.measure(stay), before)
	for _, p := range talks {
		said := strings.Count(p.Result().Stdout, "\n")
		p.WaitOut(fmt.Sprintf("answer %d\n", said+3), 20*time.Second)
		p.Stop()
	}
}

// begun: each of what goes on has been done.
func (s *soak) begun() error {
	s.mine.Lock()
	defer s.mine.Unlock()
	for _, kind := range []string{"visitors", "guests", "connected", "ports", "kills"} {
		if s.count[kind] == 0 && !s.t.Failed() {
			return fmt.Errorf("%v", s.count)
		}
	}
	return nil
}

// work does something again and again until the end. undo is run before the next time if
// all stood still in the middle of it and it failed.
func (s *soak) work(kind string, pause time.Duration, step func(n int) error, undo ...string) {
	s.wg.Go(func() {
		for n := 0; ; n++ {
			s.mu.RLock()
			begun := time.Now().UnixNano()
			err := step(n)
			if err != nil && !strings.Contains(err.Error(), "wrong delivery") {
				time.Sleep(time.Second) // until it is noticed
				if s.stood.Load() > begun {
					s.t.Logf("%s, after %d times, stopped in the middle: %v", kind, n, err)
					for _, c := range undo {
						_ = s.all(c) // it may not have come so far
					}
					err = nil
				}
			}
			s.mu.RUnlock()
			if err != nil {
				s.t.Errorf("%s, after %d times: %v", kind, n, err)
				return
			}
			s.mine.Lock()
			s.count[kind]++
			s.mine.Unlock()
			select {
			case <-s.end:
				return
			case <-time.After(pause):
			}
		}
	})
}

func (s *soak) sbx(args ...string) (string, error) {
	r := s.e.Run(args...)
	if r.Code != 0 {
		return "", fmt.Errorf("%v", r)
	}
	return strings.TrimSpace(r.Stdout), nil
}

// all runs commands until one fails.
func (s *soak) all(commands ...string) error {
	for _, c := range commands {
		if _, err := s.sbx(strings.Fields(c)...); err != nil {
			return err
		}
	}
	return nil
}

// visitors come, talk and go.
func (s *soak) visitors(stay []string) {
	for i := range 2 {
		s.work("visitors", 0, func(n int) error {
			network, hosts := "soak-a", stay[:3]
			if (n+i)%3 == 0 {
				network, hosts = "soak-k", stay[4:]
			}
			return s.all("run --rm --network " + network + " --link-driver " + linkDrivers[n%2] + " " + harness.BB + " /probe visit 20 " + strings.Join(hosts, " "))
		})
	}
}

// guests have a name and addresses for as long as they are there, also over a restart.
func (s *soak) guests() {
	s.e.AtEnd("rm", "-f", "soak-guest")
	const lookup = "exec soak-3 /probe lookup soak-guest"
	const where = "inspect -f {{range.NetworkSettings.Networks}}{{.IPAddress}},{{.GlobalIPv6Address}}{{end}} soak-guest"
	s.work("guests", 0, func(n int) error {
		if err := s.all("run -d --name soak-guest -h soak-guest --network soak-a "+harness.BB+" /probe who 7", "exec soak-3 /probe visit 3 soak-guest"); err != nil {
			return err
		}
		first, err := s.sbx(strings.Fields(where)...)
		if err != nil {
			return err
		}
		if err := s.all("restart -t 0 soak-guest", "exec soak-3 /probe visit 3 soak-guest"); err != nil {
			return err
		}
		again, err := s.sbx(strings.Fields(where)...)
		if err != nil || again != first {
			return fmt.Errorf("after a restart on %q, before on %q: %w", again, first, err)
		}
		found, err := s.sbx(strings.Fields(lookup)...)
		four, six, _ := strings.Cut(first, ",")
		if err != nil || found != four+" "+six && found != six+" "+four {
			return fmt.Errorf("soak-guest is at %q, it has %q: %w", found, first, err)
		}
		if err := s.all("rm -f soak-guest"); err != nil {
			return err
		}
		if found, err := s.sbx(strings.Fields(lookup)...); err != nil || !strings.HasPrefix(found, "error") {
			return fmt.Errorf("the one that was removed is at %q: %w", found, err)
		}
		return nil
	}, "rm -f soak-guest")
}

// connections: one is connected to another network, asks there, and is taken out again.
func (s *soak) connections() {
	s.work("connected", 0, func(int) error {
		return s.all("network connect soak-b soak-1", "exec soak-1 /probe visit 5 soak-far soak-3", "exec soak-far /probe visit 3 soak-1", "network disconnect soak-b soak-1")
	}, "network disconnect soak-b soak-1")
}

// ports: another one publishes a port, is asked there, and takes it back.
func (s *soak) ports() {
	port := s.e.FreePort()
	s.work("ports", 0, func(int) error {
		network, host := []string{"tcp", "udp"}[rand.IntN(2)], []string{"127.0.0.1", "::1"}[rand.IntN(2)]
		at := net.JoinHostPort(host, strconv.Itoa(port))
		if err := s.all("port add soak-2 " + at + ":7/" + network); err != nil {
			return err
		}
		if err := probe.Visit(network, at, "soak-2"); err != nil {
			return err
		}
		return s.all("port rm soak-2 " + at + ":7/" + network)
	}, fmt.Sprintf("port rm soak-2 127.0.0.1:%d:7/tcp", port), fmt.Sprintf("port rm soak-2 127.0.0.1:%d:7/udp", port),
		fmt.Sprintf("port rm soak-2 [::1]:%d:7/tcp", port), fmt.Sprintf("port rm soak-2 [::1]:%d:7/udp", port))
}

// kills ends the process of soak-k, whose sandboxes and ports answer again soon.
func (s *soak) kills(port int) {
	s.work("kills", min(s.length/20, 10*time.Second), func(int) error {
		pid, err := s.sbx("network", "inspect", "-f", "{{with .Status}}{{.Pid}}{{end}}", "soak-k")
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(pid)
		if err != nil {
			return err
		}
		if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
			return err
		}
		for _, network := range []string{"tcp", "udp"} {
			if err := probe.Visit(network, fmt.Sprintf("127.0.0.1:%d", port), "kept-2"); err != nil {
				return err
			}
		}
		return s.all("exec kept-1 /probe visit 5 kept-2", "exec kept-2 /probe visit 5 kept-1")
	})
}
