package sandbox_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/docker/go-units"
	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/sandbox"
	"github.com/rootless-sbx/sbx/userns"
)

func TestExitStatus(t *testing.T) {
	w := newWorld(t)
	for _, init := range []bool{false, true} {
		for _, tc := range []struct {
			command string
			want    sandbox.ExitStatus
		}{
			{"true", sandbox.ExitStatus{}},
			{"exit 7", sandbox.ExitStatus{Code: 7}},
			{"exit 255", sandbox.ExitStatus{Code: 255}},
			{"kill -KILL $$; sleep 1; exit 3", sandbox.ExitStatus{Code: 3}}, // pid 1 cannot kill itself
		} {
			cfg := w.config("sh", "-c", tc.command)
			if cfg.Init = init; init && tc.want.Code == 3 {
				tc.want.Code = 137
			}
			if _, stderr, st := w.output(cfg); st != tc.want {
				t.Errorf("init %v, %q: %+v, want %+v; %s", init, tc.command, st, tc.want, stderr)
			}
		}
	}
}

func TestStartErrors(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		name string
		edit func(*sandbox.Config)
		want error
	}{
		{"not found", func(c *sandbox.Config) { c.Cmd = []string{"nosuch"} }, sandbox.ErrCommandNotFound},
		{"not executable", func(c *sandbox.Config) { c.Cmd = []string{"/etc/passwd"} }, sandbox.ErrCommandNotExecutable},
		{"user", func(c *sandbox.Config) { c.User = "nobody-here" }, nil},
		{"group", func(c *sandbox.Config) { c.GroupAdd = []string{"nogroup-here"} }, nil},
		{"ulimit", func(c *sandbox.Config) { c.Ulimits = []units.Ulimit{{Name: "nofile", Soft: 1 << 40, Hard: 1 << 40}} }, nil},
		{"link", func(c *sandbox.Config) { c.Networks, c.MTU = sandbox.On(sandbox.NetworkDefault), 576 }, nil}, // IPv6 wants 1280
	} {
		for _, init := range []bool{false, true} {
			cfg := w.config("true")
			cfg.Init = init
			tc.edit(&cfg)
			s := w.create(cfg)
			err := s.Start(t.Context())
			if tc.name == "link" && err == nil { // works without IPv6
				w.wait(s)
				continue
			}
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("%s, init %v: %v", tc.name, init, err)
			}
			if _, werr := w.wait(s); !errors.Is(werr, err) {
				t.Errorf("%s: Wait says %v, Start said %v", tc.name, werr, err)
			}
		}
	}
}

// The methods in states that they are not for.
func TestStates(t *testing.T) {
	w := newWorld(t)
	s := w.create(w.config("cat"))
	if _, err := s.Wait(t.Context()); !errors.Is(err, sandbox.ErrNotStarted) {
		t.Errorf("Wait before Start: %v", err)
	}
	for name, err := range map[string]error{"Signal": s.Signal(t.Context(), syscall.SIGTERM), "Stop": s.Stop(t.Context())} {
		if !errors.Is(err, sandbox.ErrNotStarted) {
			t.Errorf("%s before Start: %v", name, err)
		}
	}
	if err := s.Resize(10, 20); err != nil {
		t.Error(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); !errors.Is(err, sandbox.ErrStarted) {
		t.Errorf("second Start: %v", err)
	}
	if st, err := w.wait(s); err != nil || st.Code != 0 { // stdin is /dev/null
		t.Errorf("%+v, %v", st, err)
	}
	if err := s.Signal(t.Context(), syscall.SIGTERM); !errors.Is(err, sandbox.ErrEnded) {
		t.Errorf("Signal after the end: %v", err)
	}
	if err := errors.Join(s.Stop(t.Context()), s.Remove(t.Context()), s.Remove(t.Context()), s.Resize(1, 1)); err != nil {
		t.Errorf("after the end: %v", err)
	}
	if err := s.Start(t.Context()); !errors.Is(err, sandbox.ErrStarted) {
		t.Errorf("Start after the end: %v", err)
	}

	s = w.create(w.config("true"))
	if err := s.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if err := s.Start(t.Context()); !errors.Is(err, sandbox.ErrRemoved) {
		t.Errorf("Start after Remove: %v", err)
	}
	if _, err := w.wait(s); !errors.Is(err, sandbox.ErrRemoved) {
		t.Errorf("Wait after Remove: %v", err)
	}

	s, _ = w.startReady(w.config("sh", "-c", "echo; exec sleep 1000"))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	if _, err := s.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait with a deadline: %v", err)
	}
	cancel()
	if err := s.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if st, err := w.wait(s); err != nil || st != (sandbox.ExitStatus{Code: 137, Signal: syscall.SIGKILL}) {
		t.Errorf("removed while it ran: %+v, %v", st, err)
	}
}

// Remove while Start is under way.
func TestRemoveStarting(t *testing.T) {
	w := newWorld(t)
	for i := range 10 {
		s := w.create(w.config("sleep", "1000"))
		started := make(chan error)
		go func() { started <- s.Start(context.Background()) }()
		time.Sleep(time.Duration(i) * 8 * time.Millisecond)
		if err := s.Remove(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-started; err != nil && !errors.Is(err, sandbox.ErrRemoved) {
			t.Errorf("Start: %v", err)
		}
		if st, err := w.wait(s); err == nil && st.Code != 137 || err != nil && !errors.Is(err, sandbox.ErrRemoved) {
			t.Errorf("Wait: %+v, %v", st, err)
		}
	}
}

func TestSignalsAndStop(t *testing.T) {
	w := newWorld(t)
	for _, init := range []bool{false, true} {
		cfg := w.config("sh", "-c", `trap 'echo usr1' USR1; trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done`)
		cfg.Init = init
		s, out := w.startReady(cfg)
		if pid := s.Info().PID; pid <= 0 || syscall.Kill(pid, 0) != nil {
			t.Errorf("pid %d is not there", pid)
		}
		if err := s.Signal(t.Context(), syscall.SIGUSR1); err != nil {
			t.Error(err)
		}
		for end := time.Now().Add(20 * time.Second); !strings.Contains(out.buf.String(), "usr1"); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the signal did not come")
			}
		}
		if err := s.Signal(t.Context(), 99); err == nil {
			t.Error("signal 99 was sent")
		}
		if err := s.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		if st, err := w.wait(s); err != nil || st.Code != 5 {
			t.Errorf("init %v: %+v, %v", init, st, err)
		}
	}
	// Deaf to the signal, so killed when the time is up.
	cfg := w.config("sh", "-c", `trap '' TERM; echo ready; while :; do sleep 0.05; done`)
	cfg.StopTimeout = 200 * time.Millisecond
	s, _ := w.startReady(cfg)
	t0 := time.Now()
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if d := time.Since(t0); d < 200*time.Millisecond || d > 10*time.Second {
		t.Errorf("killed after %v", d)
	}
	if st, err := w.wait(s); err != nil || st.Code != 137 {
		t.Errorf("%+v, %v", st, err)
	}
}

// --init: orphans are reaped, and the workload's status is the sandbox's.
func TestInit(t *testing.T) {
	w := newWorld(t)
	cfg := w.config("sh", "-c", `
		for i in 1 2 3 4 5 6 7 8; do (sleep 0.1 & ) ; done
		n=0
		while grep -qx sleep /proc/[0-9]*/comm && [ $((n+=1)) -lt 500 ]; do sleep 0.02; done
		grep -l 'State:.Z' /proc/[0-9]*/status
		echo pid $$
		kill -TERM $$`)
	cfg.Init = true
	stdout, stderr, st := w.output(cfg)
	if strings.Contains(stdout, "status") {
		t.Errorf("zombies: %s", stdout)
	}
	if strings.Contains(stdout, "pid 1\n") || st.Code != 143 {
		t.Errorf("%q %q %+v", stdout, stderr, st)
	}
}

func TestNames(t *testing.T) {
	w := newWorld(t)
	cfg := w.config("sleep", "1000")
	cfg.Name = "one"
	first := w.start(cfg)
	_, err := w.Create(t.Context(), cfg)
	if !errors.Is(err, sandbox.ErrNameInUse) || !strings.Contains(err.Error(), first.ID()[:12]) {
		t.Errorf("second of the name: %v", err)
	}
	if info, err := w.Engine.Info(t.Context()); err != nil || info.Running != 1 {
		t.Errorf("%+v, %v", info, err)
	}
	// Of many at once one gets the name.
	results, all := make(chan error), make(chan struct{})
	var wg sync.WaitGroup
	cfg.Name = "two"
	for range 8 {
		wg.Go(func() {
			s, err := w.Create(context.Background(), cfg)
			if err == nil {
				defer s.Remove(context.Background())
			}
			results <- err
			<-all // nobody gives it back before all have asked
		})
	}
	got := 0
	for range 8 {
		if err := <-results; err == nil {
			got++
		} else if !errors.Is(err, sandbox.ErrNameInUse) {
			t.Error(err)
		}
	}
	close(all)
	wg.Wait()
	if got != 1 {
		t.Errorf("%d sandboxes got the name", got)
	}
	if err := first.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	cfg.Name = "one"
	if err := w.create(cfg).Remove(t.Context()); err != nil {
		t.Error(err)
	}
	a, b := w.create(w.config("true")), w.create(w.config("true"))
	if a.Name() == "" || a.Name() == b.Name() || len(a.ID()) != 64 {
		t.Errorf("names %q and %q", a.Name(), b.Name())
	}
	a.Remove(t.Context())
	b.Remove(t.Context())
}

func TestMountsAndVolumes(t *testing.T) {
	w := newWorld(t)
	bind := filepath.Join(w.dir, "bind")
	cfg := w.config("sh", "-c", "echo one >/v/f; echo two >/b/f; touch /a/x; echo three >/f; cat /b/f")
	cfg.Mounts = []fsoverlay.Mount{
		{Type: fsoverlay.TypeVolume, Source: "keep-me", Target: "/v"},
		{Type: fsoverlay.TypeVolume, Target: "/a"},
		{Type: fsoverlay.TypeBind, Source: bind, Target: "/b", CreateSource: true},
		{Type: fsoverlay.TypeTmpfs, Target: "/t"},
	}
	if out, stderr, st := w.output(cfg); out != "two\n" || st.Code != 0 {
		t.Errorf("%q %q %+v", out, stderr, st)
	}
	if b, err := os.ReadFile(filepath.Join(bind, "f")); string(b) != "two\n" {
		t.Errorf("bind: %q, %v", b, err)
	}
	cfg.Cmd = []string{"cat", "/v/f"}
	if out, stderr, _ := w.output(cfg); out != "one\n" {
		t.Errorf("volume: %q %q", out, stderr)
	}
	if _, err := os.Stat(filepath.Join(cfg.RootFS, "f")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the root directory was written to: %v", err)
	}
	if err := w.Volumes().Remove(t.Context(), "keep-me"); err != nil {
		t.Error(err)
	}
}

// Files of subordinate ids are removed with the sandbox, and on every driver.
func TestDriversAndMappings(t *testing.T) {
	w := newWorld(t)
	for _, mode := range []userns.Mode{userns.ModeAuto, userns.ModeSingle, userns.ModeKeepID} {
		for _, driver := range []string{"native", "fuse", "copy"} {
			cfg := w.config("sh", "-c", "mkdir -p /d/e; touch /d/e/f; chown -R 1000:1000 /d 2>/dev/null; chmod 0 /d; id -u; cat /etc/passwd")
			cfg.UserNS, cfg.StorageDriver = mode, driver
			s, err := w.Create(t.Context(), cfg)
			if err != nil {
				t.Errorf("%s %s: %v", mode, driver, err)
				continue
			}
			if err := s.Start(t.Context()); err != nil {
				t.Errorf("%s %s: %v", mode, driver, err)
				continue
			}
			if st, err := w.wait(s); err != nil || st.Code != 0 {
				t.Errorf("%s %s: %+v, %v", mode, driver, st, err)
			}
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	w := newWorld(t)
	cfg := w.config("cat")
	cfg.Stdin, cfg.Stdout = blockingReader{}, io.Discard
	s := w.create(cfg)
	stop := make(chan struct{})
	for range 4 {
		go func() {
			for {
				select {
				case <-stop:
					return
				default:
					s.Info()
					s.Notes()
					s.Resize(1, 2)
					s.Signal(context.Background(), syscall.SIGCONT)
				}
			}
		}()
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	close(stop)
}

// blockingReader gives nothing and ends at once, once it is asked.
type blockingReader struct{}

func (blockingReader) Read([]byte) (int, error) { time.Sleep(100 * time.Millisecond); return 0, io.EOF }

// The end of a sandbox must not wait until the disk has everybody's data.
func TestVolatile(t *testing.T) {
	w := newWorld(t)
	out, stderr, st := w.output(w.config("sh", "-c", "grep ' / / ' /proc/self/mountinfo; echo x >/file && sync /file"))
	if st.Code != 0 || strings.Contains(out, " - overlay ") && !strings.Contains(out, "volatile") {
		t.Errorf("%+v %s%s", st, out, stderr)
	}
}
