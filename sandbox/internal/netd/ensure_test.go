package netd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestEnsureStartsOneProcess(t *testing.T) {
	n := newNetwork(t)
	var wg sync.WaitGroup
	clients := make([]*Client, 20)
	for i := range clients {
		wg.Go(func() {
			c, err := Ensure(t.Context(), n.Config)
			if err != nil {
				t.Error(err)
				return
			}
			clients[i] = c
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	if got := n.count(); got != 1 {
		t.Errorf("%d processes", got)
	}
	for _, c := range clients {
		if c.Info() != clients[0].Info() || c.Info().Name != "default" || !c.Info().Subnet4.IsValid() {
			t.Errorf("%+v", c.Info())
		}
	}
	for name, mode := range map[string]os.FileMode{"": 0o700, sockName: 0o600, lockName: 0o600, logName: 0o600} {
		fi, err := os.Stat(n.path(name))
		if err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%q: %v, %v", name, fi.Mode(), err)
		}
	}
	pid := clients[0].Info().PID
	if sid, err := syscall.Getpgid(pid); err != nil || sid != pid {
		t.Errorf("process group of %d is %d, %v", pid, sid, err)
	}
	for _, c := range clients {
		c.Close()
	}
	n.gone()
}

// TestEnsureDuringLeave has clients arrive just as the process leaves.
func TestEnsureDuringLeave(t *testing.T) {
	n := newNetwork(t)
	n.Linger = time.Millisecond
	var wg sync.WaitGroup
	for g := range 3 {
		wg.Go(func() {
			for i := range 15 {
				c, err := Ensure(t.Context(), n.Config)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := c.Lease(t.Context(), LeaseRequest{ID: fmt.Sprintf("%d-%d", g, i)}); err != nil {
					t.Errorf("%d-%d: %v", g, i, err)
				}
				c.Close()
				time.Sleep(time.Duration(i%4) * time.Millisecond)
			}
		})
	}
	wg.Wait()
	n.gone()
	t.Logf("%d processes", n.count())
}

func TestLingerIsReset(t *testing.T) {
	n := newNetwork(t)
	a := n.ensure()
	for range 4 {
		a.Close()
		time.Sleep(shortLinger / 3)
		a = n.ensure()
		time.Sleep(shortLinger + shortLinger/3) // while somebody is here
	}
	if n.count() != 1 {
		t.Errorf("%d processes", n.count())
	}
	a.Close()
	n.gone()
}

func TestKilledProcess(t *testing.T) {
	n := newNetwork(t)
	n.owner("a")
	removed := n.owner("b")
	a, b := n.ensure(), n.ensure()
	la, err := a.Lease(t.Context(), LeaseRequest{ID: "a", Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	lb, err := b.Lease(t.Context(), LeaseRequest{ID: "b"})
	if err != nil {
		t.Fatal(err)
	}
	n.kill()
	<-a.Done()
	<-b.Done()
	if _, err := a.Stats(t.Context()); !gone(err) {
		t.Errorf("call after the end: %v", err)
	}
	if _, err := os.Stat(n.path(sockName)); err != nil {
		t.Errorf("no stale socket, which this test is about: %v", err)
	}

	c := n.ensure()
	if n.count() != 2 || c.Info().PID == a.Info().PID || c.Info().Subnet4 != a.Info().Subnet4 || c.Info().Subnet6 != a.Info().Subnet6 {
		t.Errorf("%d processes, %+v, before %+v", n.count(), c.Info(), a.Info())
	}
	if _, err := c.Lease(t.Context(), LeaseRequest{ID: "c", Addr4: la.Addr4}); code(err) != CodeAddrTaken {
		t.Errorf("the address of a sandbox that is on its way back: %v", err)
	}
	lc, err := c.Lease(t.Context(), LeaseRequest{ID: "c"})
	if err != nil || lc.Addr4 == la.Addr4 || lc.Addr4 == lb.Addr4 {
		t.Errorf("%+v, %v", lc, err)
	}
	a2 := n.ensure()
	if l, err := a2.Lease(t.Context(), LeaseRequest{ID: "a", Addr4: la.Addr4, Addr6: la.Addr6, MAC: la.MAC}); err != nil || l.Addr4 != la.Addr4 || l.Name != "one" {
		t.Errorf("%+v, %v", l, err)
	}
	// Killed once more: b has not come back yet and keeps its address.
	n.kill()
	d := n.ensure()
	if _, err := d.Lease(t.Context(), LeaseRequest{ID: "d", Addr4: lb.Addr4}); code(err) != CodeAddrTaken {
		t.Errorf("after the second crash: %v", err)
	}
	removed()
	if _, err := d.Lease(t.Context(), LeaseRequest{ID: "d", Addr4: lb.Addr4}); err != nil {
		t.Errorf("b is no more: %v", err)
	}
	d.Close()
	n.gone()
}

// TestDirectoryRemoved: as at the end of a login session.
func TestDirectoryRemoved(t *testing.T) {
	n := newNetwork(t)
	a := n.ensure()
	if err := os.RemoveAll(n.dir); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * shortLinger)
	if _, err := a.Lease(t.Context(), LeaseRequest{ID: "a"}); err != nil {
		t.Errorf("who is connected stays so: %v", err)
	}
	a.Close()
	select {
	case <-n.done[0]:
	case <-time.After(5 * time.Second):
		t.Error("the process stays for ever")
	}
}

// TestToldToGo: SIGTERM keeps the leases for the next process.
func TestToldToGo(t *testing.T) {
	n := newNetwork(t)
	n.owner("a")
	a := n.ensure()
	la, err := a.Lease(t.Context(), LeaseRequest{ID: "a"})
	if err != nil {
		t.Fatal(err)
	}
	syscall.Kill(a.Info().PID, syscall.SIGTERM)
	<-a.Done()
	b := n.ensure()
	if _, err := b.Lease(t.Context(), LeaseRequest{ID: "b", Addr4: la.Addr4}); code(err) != CodeAddrTaken {
		t.Errorf("%v", err)
	}
	if n.count() != 2 {
		t.Errorf("%d processes", n.count())
	}
}

func TestRuntimeDirs(t *testing.T) {
	t.Run("symbolic link", func(t *testing.T) {
		n := newNetwork(t)
		link := n.dir + ".link"
		if err := os.Symlink(n.dir, link); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(link) })
		direct := n.ensure()
		n.RuntimeDir = link
		if c := n.ensure(); c.Info().PID != direct.Info().PID || n.count() != 1 {
			t.Errorf("two processes for one directory")
		}
	})
	t.Run("long path", func(t *testing.T) {
		n := newNetwork(t)
		n.RuntimeDir = filepath.Join(n.dir, strings.Repeat("long", 40), strings.Repeat("path", 40))
		n.Name = strings.Repeat("n", maxName)
		n.ensure()
	})
	for name, spoil := range map[string]func(n *network) error{
		"writable for others": func(n *network) error { return os.Chmod(n.dir, 0o777) },
		"net is a link": func(n *network) error {
			return os.Symlink("/tmp", filepath.Join(n.dir, "net"))
		},
		"network is a link": func(n *network) error {
			if err := os.Mkdir(filepath.Join(n.dir, "net"), 0o700); err != nil {
				return err
			}
			return os.Symlink("/tmp", filepath.Join(n.dir, "net", n.Name))
		},
		"lock is a link": func(n *network) error {
			if err := os.MkdirAll(n.path(""), 0o700); err != nil {
				return err
			}
			return os.Symlink("/tmp/netd-test-must-not-appear", n.path(lockName))
		},
		"a file": func(n *network) error { return os.WriteFile(filepath.Join(n.dir, "net"), nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			if err := spoil(n); err != nil {
				t.Fatal(err)
			}
			if c, err := Ensure(t.Context(), n.Config); err == nil {
				c.Close()
				t.Error("accepted")
			} else if n.count() != 0 {
				t.Errorf("a process was started: %v", err)
			}
		})
	}
	for _, name := range []string{"", ".", "..", "a/b", "-x", ".x", "a b", strings.Repeat("x", maxName+1), "ä"} {
		if err := CheckName(name); code(err) != CodeMisuse {
			t.Errorf("name %q: %v", name, err)
		}
	}
}

// TestLookMakesNothing: who looks for a network's process, or forgets it, makes no
// directory, not even again one that was just removed.
func TestLookMakesNothing(t *testing.T) {
	n := newNetwork(t)
	n.ensure().Close()
	n.gone()
	look := func() {
		t.Helper()
		if c, err := Connect(t.Context(), n.RuntimeDir, Hello{Name: n.Name}); c != nil || err != nil {
			t.Errorf("%v, %v", c, err)
		}
		if err := Forget(t.Context(), n.RuntimeDir, n.Name, time.Second); err != nil {
			t.Error(err)
		}
		if got, err := filepath.Glob(n.dir + "/*/*"); err != nil || len(got) > 0 {
			t.Errorf("%q is there, %v", got, err)
		}
	}
	look()
	look()
	if err := os.RemoveAll(n.dir); err != nil {
		t.Fatal(err)
	}
	look()
	if _, err := os.Stat(n.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the runtime directory is there again: %v", err)
	}
}

// suspend returns when every thread has stopped: until then they may still answer.
func suspend(t *testing.T, pid int) {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGCONT) })
	for {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(stats) == 0 {
			t.Fatalf("threads of %d: %v", pid, err)
		}
		if !slices.ContainsFunc(stats, func(name string) bool {
			b, err := os.ReadFile(name)
			return err == nil && !bytes.Contains(b, []byte(") T "))
		}) {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func TestStartErrors(t *testing.T) {
	t.Run("bad subnet", func(t *testing.T) {
		n := newNetwork(t)
		n.Subnet4 = netip.MustParsePrefix("10.0.0.0/31")
		_, err := Ensure(t.Context(), n.Config)
		if err == nil || !strings.Contains(err.Error(), "10.0.0.0/31") {
			t.Errorf("the process' own error is lost: %v", err)
		}
	})
	t.Run("dies at once", func(t *testing.T) {
		n := newNetwork(t)
		n.role = "broken"
		_, err := Ensure(t.Context(), n.Config)
		if err == nil || !strings.Contains(err.Error(), "log") {
			t.Errorf("%v", err)
		}
		if b, err := os.ReadFile(n.path(logName)); err != nil || !strings.Contains(string(b), "broken on purpose") {
			t.Errorf("log %q, %v", b, err)
		}
		n.role = "netd"
		n.ensure() // nothing stands in the way
	})
	t.Run("hangs", func(t *testing.T) {
		n := newNetwork(t)
		c := n.ensure()
		suspend(t, c.Info().PID)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := Ensure(ctx, n.Config)
		if err == nil || !strings.Contains(err.Error(), "does not answer") || n.count() != 1 {
			t.Errorf("%v, %d processes", err, n.count())
		}
	})
	t.Run("starter killed", func(t *testing.T) {
		// The process runs, but who started it never got the answer.
		n := newNetwork(t)
		n.Linger = 2 * time.Second
		ctx, cancel := context.WithCancel(t.Context())
		interrupted := n.Config
		interrupted.Start = func(_ context.Context, f StartFiles) error {
			defer cancel()
			return n.start(ctx, f)
		}
		if c, err := Ensure(ctx, interrupted); err == nil {
			c.Close()
			t.Error("the start was not interrupted")
		}
		n.ensure()
	})
	t.Run("broken state", func(t *testing.T) {
		n := newNetwork(t)
		if err := os.MkdirAll(n.path(""), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{"", "{", `{"version":1}`, `{"version":9,"subnet4":"10.77.0.0/24"}`} {
			if err := os.WriteFile(n.path(stateName), []byte(s), 0o600); err != nil {
				t.Fatal(err)
			}
			c := n.ensure()
			if _, err := c.Lease(t.Context(), LeaseRequest{ID: "a"}); err != nil {
				t.Errorf("state %q: %v", s, err)
			}
			c.Close()
			n.gone()
		}
	})
}

func TestLogIsBounded(t *testing.T) {
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "log"), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := &boundedLog{f: f, max: 10_000}
	for i := range 1000 {
		if _, err := fmt.Fprintf(l, "line %d of the log, which goes on and on\n", i); err != nil {
			t.Fatal(err)
		}
		if fi, err := f.Stat(); err != nil || fi.Size() > 10_100 {
			t.Fatalf("%d bytes, %v", fi.Size(), err)
		}
	}
	b, err := os.ReadFile(f.Name())
	if err != nil || !strings.HasSuffix(string(b), "line 999 of the log, which goes on and on\n") || !strings.Contains(string(b), "line 950 ") {
		t.Errorf("%v\n%s", err, b)
	}
}
