package sandbox_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/sandbox"
)

var errEnough = errors.New("enough")

// A Start that is given up at any moment returns the cause and leaves nothing.
func TestCancelStart(t *testing.T) {
	w := newWorld(t)
	cfg := w.config("sleep", "1000")
	cfg.Networks = sandbox.On(sandbox.NetworkDefault)
	s := w.create(cfg)
	t0 := time.Now()
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	full := time.Since(t0) // at most: the machine was busy perhaps
	if err := s.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	cancelled := 0
	for i := range 50 {
		cfg.TTY, cfg.Init = i%3 == 1, i%3 == 2
		s := w.create(cfg)
		ctx, cancel := context.WithCancelCause(t.Context())
		timer := time.AfterFunc(full*time.Duration(i)/45, func() { cancel(errEnough) })
		t0 := time.Now()
		err := s.Start(ctx)
		if timer.Stop(); err == nil {
			full = min(full, time.Since(t0))
		}
		cancel(nil)
		switch {
		case err == nil:
			if err := s.Remove(t.Context()); err != nil {
				t.Error(err)
			}
		case err != errEnough:
			t.Errorf("moment %d: %v", i, err)
		default:
			cancelled++
			if _, err := w.wait(s); err != errEnough {
				t.Errorf("Wait: %v", err)
			}
		}
		if names, err := os.ReadDir(w.dir + "/data/containers"); err != nil || len(names) != 1 {
			t.Fatalf("moment %d: %v, %v", i, names, err)
		}
		if left := find(os.Getpid(), "sbx-monitor"); len(left) != 0 {
			t.Fatalf("moment %d: monitor %v", i, left)
		}
	}
	if cancelled < 10 {
		t.Errorf("%d of 50 were cancelled", cancelled)
	}
}

func TestCancelCreate(t *testing.T) {
	w := newWorld(t)
	for i := range 20 {
		ctx, cancel := context.WithCancelCause(t.Context())
		if i == 0 {
			cancel(errEnough)
		}
		os.Remove(w.dir + "/data/storage-auto.json") // so that it has something to do
		time.AfterFunc(time.Duration(i)*4*time.Millisecond, func() { cancel(errEnough) })
		s, err := w.Create(ctx, w.config("true"))
		if err == nil {
			s.Remove(t.Context())
		} else if err != errEnough {
			t.Errorf("moment %d: %v", i, err)
		}
		cancel(nil)
	}
}

// victims are the processes of a sandbox that may be killed at any moment.
func TestKillWhileRunning(t *testing.T) {
	w := newWorld(t)
	for _, victim := range []string{"sbx-monitor", "pid 1", "sbx-netd"} {
		t.Run(victim, func(t *testing.T) {
			for i := range 30 {
				cfg := w.config("sh", "-c", "echo ready; sleep 1000; exit 4")
				in, end := io.Pipe()
				if victim == "sbx-netd" { // which it outlives
					cfg.Cmd[2], cfg.Stdin = "echo ready; read x; exit 4", in
				}
				cfg.Networks, cfg.Init = sandbox.On(sandbox.NetworkDefault), i%2 == 1
				s, _ := w.startReady(cfg)
				time.Sleep(rand.N(50 * time.Millisecond))
				switch victim {
				case "pid 1":
					kill(s.Info().PID)
				default:
					pids := find(os.Getpid(), victim)
					if len(pids) == 0 {
						t.Errorf("no %s", victim)
					}
					kill(pids...)
				}
				if victim == "sbx-netd" { // ends while another one comes, or after that
					time.Sleep(rand.N(150 * time.Millisecond))
				}
				end.Close()
				st, err := w.wait(s)
				switch victim {
				case "sbx-monitor":
					if !errors.Is(err, sandbox.ErrMonitorDied) || !strings.Contains(err.Error(), "signal 9") {
						t.Errorf("%+v, %v", st, err)
					}
				case "pid 1":
					if err != nil || st != (sandbox.ExitStatus{Code: 137, Signal: syscall.SIGKILL}) {
						t.Errorf("%+v, %v", st, err)
					}
				default:
					if err != nil || st.Code != 4 {
						t.Errorf("%+v, %v", st, err)
					}
				}
				if n := find(os.Getpid(), "sleep"); len(n) != 0 {
					t.Errorf("left: %v", n)
				}
			}
			if strings.Contains(w.log.String(), "leave the network") {
				t.Error("who ended while it attached again could not leave the network")
			}
		})
	}
	w.output(cfgTrue(w)) // takes over the files of a network's process that was killed
}

// The same while Start is under way: it fails, or the sandbox ends.
func TestKillWhileStarting(t *testing.T) {
	w := newWorld(t)
	for _, victim := range []string{"sbx-monitor", "sbx-init", "sbx-netd"} {
		t.Run(victim, func(t *testing.T) {
			hit := 0
			for i := range 30 {
				cfg := w.config("sh", "-c", "sleep 0.1; exit 4")
				cfg.Networks = sandbox.On(sandbox.NetworkDefault)
				s := w.create(cfg)
				started := make(chan error, 1)
				go func() { started <- s.Start(context.Background()) }()
				var pids []int
				for end := time.Now().Add(time.Second); len(pids) == 0 && time.Now().Before(end); {
					pids = find(os.Getpid(), victim)
				}
				time.Sleep(time.Duration(i) * time.Millisecond / 2)
				kill(pids...)
				if err := <-started; err != nil {
					hit++
					if victim == "sbx-monitor" && !errors.Is(err, sandbox.ErrMonitorDied) || victim == "sbx-init" && !strings.Contains(err.Error(), "killed") {
						t.Errorf("Start: %v", err)
					}
				}
				st, err := w.wait(s)
				if err == nil && st.Code != 4 && st.Code != 137 {
					t.Errorf("Wait: %+v", st)
				}
			}
			t.Logf("%d of 30 starts failed", hit)
		})
	}
	// A network's process that was killed leaves its files to the next one.
	cfg := w.config("true")
	cfg.Networks = sandbox.On(sandbox.NetworkDefault)
	w.output(cfg)
}

// A worker that is killed makes Create fail with a word about it, or not at all.
func TestKillWorker(t *testing.T) {
	w := newWorld(t)
	for i := range 30 {
		os.Remove(w.dir + "/data/storage-auto.json")
		done := make(chan error, 1)
		go func() {
			s, err := w.Create(context.Background(), w.config("true"))
			if err == nil {
				err = s.Remove(context.Background())
			}
			done <- err
		}()
		var pids []int
		for end := time.Now().Add(300 * time.Millisecond); len(pids) == 0 && time.Now().Before(end); {
			pids = find(os.Getpid(), "sbx-worker")
		}
		time.Sleep(time.Duration(i) * time.Millisecond / 2)
		kill(pids...)
		if err := <-done; err != nil && !strings.Contains(err.Error(), "signal 9") {
			t.Error(err)
		}
	}
}

// A pid 1 that has lost its death signal ends with its monitor all the same. The
// kernel takes the signal away when ids are changed.
func TestSurvivor(t *testing.T) {
	w := newWorld(t)
	s, _ := w.startReady(w.survivor())
	kill(find(os.Getpid(), "sbx-monitor")...)
	if _, err := w.wait(s); !errors.Is(err, sandbox.ErrMonitorDied) {
		t.Error(err)
	}
	if n := find(os.Getpid(), "sleep"); len(n) != 0 {
		t.Errorf("left: %v", n)
	}
}

func (w *world) survivor() sandbox.Config {
	w.Helper()
	return w.config("su", "app", "-c", "echo ready; exec sleep 1000")
}
