package sandbox_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/sandbox"
)

// keep makes a sandbox that outlives its handle, and removes it at the end.
func (w *world) keep(cfg sandbox.Config) *sandbox.Sandbox {
	w.Helper()
	cfg.Detach, cfg.Keep = true, true
	s := w.create(cfg)
	id := s.ID()
	w.Cleanup(func() {
		o, err := w.Open(context.Background(), id)
		if err == nil {
			err = o.Remove(context.Background())
		}
		if err != nil && !errors.Is(err, sandbox.ErrNoSandbox) {
			w.Error(err)
		}
	})
	return s
}

func (w *world) open(ref string) *sandbox.Sandbox {
	w.Helper()
	s, err := w.engine().Open(w.Context(), ref)
	if err != nil {
		w.Fatal(err)
	}
	return s
}

func (w *world) status(ref string) string {
	w.Helper()
	in, err := w.open(ref).Inspect(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	return in.State.Status
}

// A sandbox that is saved is started, looked at, stopped, started again and removed
// by others.
func TestSavedSandbox(t *testing.T) {
	w := newWorld(t)
	cfg := w.config("sh", "-c", "trap 'exit 5' TERM; echo begun; while :; do sleep 0.05; done")
	cfg.Name = "saved"
	s := w.keep(cfg)
	if err := s.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := w.engine().Sweep(t.Context()); n != 0 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	if got := w.status("saved"); got != "created" {
		t.Errorf("saved: %s", got)
	}
	if st, err := s.Wait(t.Context()); err != nil || st.Code != 0 {
		t.Errorf("wait for one that was not started: %+v, %v", st, err)
	}
	if err := s.Signal(t.Context(), syscall.SIGTERM); !errors.Is(err, sandbox.ErrNotRunning) {
		t.Errorf("signal: %v", err)
	}
	for run := range 2 {
		a := w.open(s.ID()[:20])
		if err := a.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		b := w.open("saved")
		if err := b.Start(t.Context()); !errors.Is(err, sandbox.ErrRunning) {
			t.Errorf("started twice: %v", err)
		}
		if err := b.RemoveWith(t.Context(), sandbox.RemoveOptions{}); !errors.Is(err, sandbox.ErrRunning) {
			t.Errorf("removed while it runs: %v", err)
		}
		list, err := w.List(t.Context(), sandbox.Filter{})
		if err != nil || len(list) != 1 || list[0].Name != "/saved" || list[0].State.Pid == 0 {
			t.Errorf("%+v, %v", list, err)
		}
		var out bytes.Buffer
		if err := b.Logs(t.Context(), sandbox.LogOptions{Follow: true}, func(r *sandbox.LogRecord) error {
			if out.Write(r.Log); out.Len() > run*len("begun\n") {
				return io.EOF // enough: the signal is caught now
			}
			return nil
		}); err != io.EOF || out.String() != strings.Repeat("begun\n", run+1) {
			t.Errorf("logs: %q, %v", out.String(), err)
		}
		if err := b.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		if st, err := a.Wait(t.Context()); err != nil || st.Code != 5 {
			t.Errorf("%+v, %v", st, err)
		}
		if st, err := b.Wait(t.Context()); err != nil || st.Code != 5 {
			t.Errorf("%+v, %v", st, err)
		}
	}
	if err := w.open("saved").RemoveWith(t.Context(), sandbox.RemoveOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := w.Open(t.Context(), "saved"); !errors.Is(err, sandbox.ErrNoSandbox) {
		t.Errorf("after its removal: %v", err)
	}
}

// One that is saved to be removed at its end.
func TestSavedOnce(t *testing.T) {
	w := newWorld(t)
	cfg := w.config("sh", "-c", "exit 6")
	cfg.Name, cfg.Detach = "once", true
	s := w.create(cfg)
	if err := s.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	o := w.open("once")
	if err := o.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st, err := o.Wait(t.Context()); err != nil || st.Code != 6 {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := w.Open(t.Context(), "once"); !errors.Is(err, sandbox.ErrNoSandbox) {
		t.Errorf("after its end: %v", err)
	}
}

func TestSessions(t *testing.T) {
	w := newWorld(t)
	cfg := w.config("sh", "-c", "while read x; do echo got $x; done; exit 3")
	cfg.Name, cfg.OpenStdin, cfg.StdinOnce = "sessions", true, true
	s := w.keep(cfg)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var one, two, inside syncBuffer
	look, err := w.open("sessions").Attach(t.Context(), sandbox.Streams{Stdout: &one})
	if err != nil {
		t.Fatal(err)
	}
	x, err := w.open("sessions").Exec(t.Context(), sandbox.ExecConfig{
		Args: []string{"sh", "-c", "read x; echo $x $A $PWD; exit 9"}, Env: []string{"A=b"}, WorkDir: "/tmp",
		Streams: sandbox.Streams{Stdin: strings.NewReader("in\n"), Stdout: &inside},
	})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := x.Wait(t.Context()); err != nil || st.Code != 9 || inside.String() != "in b /tmp\n" {
		t.Errorf("exec: %+v, %v, %q", st, err, inside.String())
	}
	if _, err := w.open("sessions").Exec(t.Context(), sandbox.ExecConfig{Args: []string{"nosuch"}}); !errors.Is(err, sandbox.ErrCommandNotFound) {
		t.Errorf("exec of nothing: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	if _, err := look.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait with a deadline: %v", err)
	}
	cancel()
	writer, err := w.open("sessions").Attach(t.Context(), sandbox.Streams{Stdin: strings.NewReader("a\nb\n"), Stdout: &two})
	if err != nil {
		t.Fatal(err)
	}
	// The input ends with its first writer, and so does the workload.
	for _, y := range []*sandbox.Session{writer, look} {
		if st, err := y.Wait(t.Context()); err != nil || st.Code != 3 {
			t.Errorf("%+v, %v", st, err)
		}
	}
	if one.String() != "got a\ngot b\n" || two.String() != one.String() {
		t.Errorf("%q, %q", one.String(), two.String())
	}
	if _, err := w.open("sessions").Attach(t.Context(), sandbox.Streams{}); !errors.Is(err, sandbox.ErrNotRunning) {
		t.Errorf("attach to what has ended: %v", err)
	}
}

// A monitor that is killed: the record becomes true, what ran is gone, and the
// sandbox can be started again.
func TestRepair(t *testing.T) {
	w := newWorld(t)
	cfg := w.survivor()
	cfg.Name = "repaired"
	s := w.keep(cfg)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	pid := s.Info().PID
	b := w.open("repaired")
	waited := make(chan error, 1)
	go func() {
		st, err := b.Wait(context.Background())
		if err == nil && st.Code != 137 {
			err = errors.New("another status")
		}
		waited <- err
	}()
	kill(s.MonitorPID())
	if _, err := w.wait(s); !errors.Is(err, sandbox.ErrMonitorDied) {
		t.Errorf("the one who started it: %v", err)
	}
	if err := <-waited; err != nil {
		t.Errorf("another who waited: %v", err)
	}
	in, err := w.open("repaired").Inspect(t.Context())
	if err != nil || in.State.Status != "exited" || in.State.ExitCode != 137 || !strings.Contains(in.State.Error, "monitor") {
		t.Errorf("%+v, %v", in.State, err)
	}
	if state, _ := stat(pid); state != "" && state != "Z" {
		t.Errorf("pid 1 is in state %s", state)
	}
	again := w.open("repaired")
	if err := again.Start(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestFind(t *testing.T) {
	w := newWorld(t)
	cfg := w.config("true")
	cfg.Name = "0"
	a := w.keep(cfg)
	if err := a.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"0", "/0", a.ID(), a.ID()[:12]} {
		if s := w.open(ref); s.ID() != a.ID() {
			t.Errorf("%s: %s", ref, s.ID())
		}
	}
	for _, ref := range []string{"", "g", "..", a.ID() + "0", "1/../"} {
		if _, err := w.Open(t.Context(), ref); !errors.Is(err, sandbox.ErrNoSandbox) {
			t.Errorf("%q: %v", ref, err)
		}
	}
	if err := w.open("0").Rename(t.Context(), "other"); err != nil {
		t.Error(err)
	}
	if s := w.open("other"); s.Name() != "other" {
		t.Error(s.Name())
	}
}
