package sandbox_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/sandbox"
	"golang.org/x/sys/unix"
)

// A caller that is killed takes its sandbox along; if the monitor is killed with
// it, the next engine ends and removes what is left: a pid 1 that has lost its
// death signal, anonymous volumes, the port driver's directory.
func TestKilledCaller(t *testing.T) {
	w := newWorld(t)
	for _, victims := range []string{"caller", "caller and monitor", "caller, monitor and init"} {
		t.Run(victims, func(t *testing.T) {
			cfg := w.survivor()
			cfg.Name = "victim"
			cfg.Networks, cfg.PortDriver = sandbox.On(sandbox.NetworkDefault), "builtin"
			cfg.Publish = ports(t, "127.0.0.1::80")
			cfg.Mounts = []fsoverlay.Mount{{Type: fsoverlay.TypeVolume, Target: "/v"}}
			b, err := json.Marshal(callerOf(cfg))
			if err != nil {
				t.Fatal(err)
			}
			cmd, in, out := w.helper("caller", string(b))
			defer in.Close()
			out.wait(t)
			var pid int
			if _, err := fmt.Sscan(out.buf.String(), &pid); err != nil {
				t.Fatalf("%v: %s", err, out.buf.String())
			}
			if n, err := w.Sweep(t.Context()); n != 0 || err != nil {
				t.Errorf("swept %d that run, %v", n, err)
			}
			monitors := find(cmd.Process.Pid, "sbx-monitor")
			kill(cmd.Process.Pid)
			if strings.Contains(victims, "monitor") {
				kill(monitors...)
				dead(t, monitors...) // the lock goes with its last holder
			}
			if strings.Contains(victims, "init") {
				kill(pid)
			}
			cmd.Wait()
			if victims == "caller" { // the monitor clears up
				for end := time.Now().Add(10 * time.Second); len(find(os.Getpid(), "sbx-monitor")) > 0; time.Sleep(10 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatal("the monitor is still there")
					}
				}
				return
			}
			// The name is free as soon as the kernel has ended all threads of the
			// dead, though Create does not sweep every time.
			s, err := w.Create(t.Context(), cfg)
			for end := time.Now().Add(5 * time.Second); errors.Is(err, sandbox.ErrNameInUse) && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				s, err = w.Create(t.Context(), cfg)
			}
			if err != nil {
				t.Fatal(err)
			}
			s.Remove(t.Context())
			if state, _ := stat(pid); state != "" && state != "Z" {
				t.Errorf("pid 1 is in state %s", state)
			}
			if n, err := w.engine().Sweep(t.Context()); n != 0 || err != nil {
				t.Errorf("the second sweep found %d, %v", n, err)
			}
		})
	}
}

// dead waits for the end of processes that were killed.
func dead(t testing.TB, pids ...int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		alive := 0
		for _, p := range pids {
			if state, _ := stat(p); state != "" && state != "Z" {
				alive++
			}
		}
		if alive == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %v are still there", alive, pids)
		}
	}
}

// A caller that is killed at any moment, together with whatever it has started.
func TestKilledAtAnyMoment(t *testing.T) {
	w := newWorld(t)
	cfg := w.config("sh", "-c", "echo ready; exec sleep 1000")
	cfg.Networks = sandbox.On(sandbox.NetworkDefault)
	b, err := json.Marshal(callerOf(cfg))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		cmd, in, out := w.helper("caller", string(b), "now")
		out.wait(t)
		time.Sleep(rand.N(60 * time.Millisecond))
		all := append(descendants(cmd.Process.Pid), cmd.Process.Pid)
		if i%2 == 0 {
			all = all[len(all)-1:]
		}
		kill(all...)
		cmd.Wait()
		in.Close()
		if _, err := w.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := w.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
		ids, err := filepath.Glob(filepath.Join(w.dir, "data/containers/[0-9a-f]*"))
		if err != nil || time.Now().After(end) {
			t.Fatalf("left: %v, %v", ids, err)
		}
		if len(ids) == 0 {
			break
		}
	}
	w.output(cfgTrue(w)) // takes over the files of a network's process that was killed
}

func cfgTrue(w *world) sandbox.Config {
	cfg := w.config("true")
	cfg.Networks = sandbox.On(sandbox.NetworkDefault)
	return cfg
}

// Sweep never takes a directory that is being made or removed by somebody else.
func TestSweepRaces(t *testing.T) {
	w := newWorld(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	swept := 0
	for i := range 2 {
		e := w.engine()
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					n, err := e.Sweep(context.Background())
					if err != nil {
						t.Error(err)
					}
					if i == 0 {
						swept += n
					}
				}
			}
		})
	}
	for range 5 {
		cfg := w.config("sh", "-c", "echo hello; exit 3")
		if err := runMany(w.Engine, 8, cfg); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
	if swept != 0 {
		t.Errorf("swept %d that were somebody's", swept)
	}
	if strings.Contains(w.log.String(), "clean-up") || strings.Contains(w.log.String(), "could not") {
		t.Error("a clean-up met another one")
	}
}

// What is in containers/ and is none of ours does no harm, and a lock that is held
// for ever is waited for no longer than the context says.
func TestHostileContainers(t *testing.T) {
	w := newWorld(t)
	root := filepath.Join(w.dir, "data/containers")
	for _, d := range []string{"aa", "bb", "cc"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		unix.Mkfifo(filepath.Join(root, "aa/lock"), 0o600),
		unix.Mkfifo(filepath.Join(root, "bb/name"), 0o600),
		os.Symlink("/etc/passwd", filepath.Join(root, "cc/lock")),
		os.WriteFile(filepath.Join(root, "file"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	w.output(w.config("true"))
	if _, err := os.Stat(filepath.Join(root, "bb")); err == nil {
		t.Error("a directory without an owner is still there")
	}
	for _, f := range []string{"aa", "cc", "file"} {
		if err := os.RemoveAll(filepath.Join(root, f)); err != nil {
			t.Error(err)
		}
	}
	f, err := os.OpenFile(filepath.Join(root, ".lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, errEnough)
	defer cancel()
	if _, err := w.Create(ctx, w.config("true")); err != errEnough {
		t.Errorf("Create: %v", err)
	}
}

func TestParallel(t *testing.T) {
	w := newWorld(t)
	cfg := w.config("sh", "-c", "echo hello; exit 3")
	cfg.Networks = sandbox.On(sandbox.NetworkDefault)
	if err := runMany(w.Engine, 20, cfg); err != nil {
		t.Error(err)
	}
	var cmds []*exec.Cmd
	var outs []*bytes.Buffer
	for range 8 {
		cmd := exec.Command("/proc/self/exe", "4", cfg.RootFS, sandbox.NetworkDefault)
		cmd.Env = append(os.Environ(), roleEnv+"=many", "SBX_LIB_TEST_DIR="+w.dir)
		out := &bytes.Buffer{}
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds, outs = append(cmds, cmd), append(outs, out)
	}
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, outs[i].String())
		}
	}
}

// The probe is made once; damage of its file is no more than a new probe.
func TestProbeCache(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(w.dir, "data/storage-auto.json")
	create := func() []byte {
		t.Helper()
		w.create(w.config("true")).Remove(t.Context())
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	first := create()
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	create()
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("probed again: %v", err)
	}
	for _, damage := range []string{"", "{", `{"key":"other","results":[]}`, string(first[:len(first)/2])} {
		if err := os.WriteFile(path, []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		if b := create(); !bytes.Equal(b, first) {
			t.Errorf("after %q: %s", damage, b)
		}
	}
}
