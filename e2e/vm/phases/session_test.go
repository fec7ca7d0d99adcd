package phases

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

const (
	// polite ends with 3 when it is asked to, and says so.
	polite = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
	// failing is a service that ends with a failure when the machine ends.
	failing = "trap 'exit 1' TERM; echo ready; while :; do sleep 0.1; done"
	// deaf does not care.
	deaf = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
)

// start starts a sandbox in the background and waits until it is ready for signals.
func start(t *testing.T, e *harness.Env, name, script string, flags ...string) harness.Result {
	t.Helper()
	r := e.Run(append(append([]string{"run", "-d", "--name", name}, flags...), harness.BB, "sh", "-c", script)...)
	if r.Code != 0 {
		t.Fatal(r)
	}
	waitLog(t, e, name, "ready")
	return r
}

func waitLog(t *testing.T, e *harness.Env, name, text string) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, func() error {
		if r := e.Run("logs", name); !strings.Contains(r.Stdout, text) {
			return fmt.Errorf("no %q: %v", text, r)
		}
		return nil
	})
}

// TestLogout: without linger a detached sandbox ends when its user logs out, as run -d
// has said; with linger it stays.
func TestLogout(t *testing.T) {
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	in(t, func(t *testing.T, e *harness.Env) {
		r := start(t, e, "polite", polite)
		for _, word := range []string{"end when you log out", "loginctl enable-linger " + u.Username} {
			if !strings.Contains(r.Stderr, word) {
				t.Errorf("run -d does not say %q: %s", word, r.Stderr)
			}
		}
		start(t, e, "deaf", deaf, "--stop-timeout", "1")
		start(t, e, "limited", polite, "-m", "64m", "--restart", "always")
		e.Must("pause", "limited")
		start(t, e, "removed", polite, "--rm")
	}, func(t *testing.T, e *harness.Env) { // after a logout, in a new session
		if got := e.Must("ps", "-q"); got != "" {
			t.Errorf("something runs: %q", got)
		}
		const why = "the session or the machine ended"
		wantState(t, e, "polite", "exited 3", why)
		wantState(t, e, "deaf", "exited 137", why)
		wantState(t, e, "limited", "exited 3", why)
		if got := e.Must("logs", "polite"); !strings.HasSuffix(got, "bye\n") {
			t.Errorf("its last words: %q", got)
		}
		e.Fails(1, []string{"no such sandbox"}, "logs", "removed")
		wantWhole(t, e)
		if got := e.Must("start", "--by-policy"); got != "limited\n" {
			t.Errorf("started by policy: %q", got)
		}
		e.Must("start", "polite")
		keep(t, e, "started", inspect(e, "polite", "{{.State.StartedAt}} {{.State.Pid}}"))
	}, func(t *testing.T, e *harness.Env) { // after a logout with linger
		if got, want := inspect(e, "polite", "{{.State.StartedAt}} {{.State.Pid}}"), recall(t, e, "started"); got != want {
			t.Errorf("it is another one now: %s, was %s", got, want)
		}
		if got := e.Must("exec", "limited", "echo", "inside"); got != "inside\n" {
			t.Errorf("exec: %q", got)
		}
		e.Must("exec", "polite", "ping", "-c1", "-W5", "limited")
		if r := start(t, e, "another", polite); strings.Contains(r.Stderr, "log out") {
			t.Errorf("a note with linger: %s", r.Stderr)
		}
		e.Must("stop", "polite")
		wantState(t, e, "polite", "exited 3", "")
	})
}

// TestRestart: after the machine was restarted, and after it was switched off without a
// warning, sandboxes are as the records say, and those run that their policies want.
func TestRestart(t *testing.T) {
	const port = "8088"
	begin := func(t *testing.T, e *harness.Env) {
		keep(t, e, "boot", bootID(t))
		start(t, e, "polite", polite)
		start(t, e, "paused", deaf, "--stop-timeout", "1")
		e.Must("pause", "paused")
		start(t, e, "removed", polite, "--rm")
	}
	// rebooted checks what is the same in both cases.
	rebooted := func(t *testing.T, e *harness.Env) {
		if bootID(t) == recall(t, e, "boot") {
			t.Fatal("the machine has not been restarted")
		}
		for _, name := range []string{"always", "failed", "stopped-always"} {
			harness.Eventually(t, 60*time.Second, func() error {
				if s := inspect(e, name, "{{.State.Status}}"); s != "running" {
					return fmt.Errorf("%s is %s", name, s)
				}
				return nil
			})
		}
		harness.Eventually(t, 20*time.Second, func() error { // its server has to come up, too
			if body, err := harness.Get("http://127.0.0.1:" + port + "/"); err != nil || body != "probe /" {
				return fmt.Errorf("the published port: %q, %v", body, err)
			}
			return nil
		})
		wantState(t, e, "stopped", "exited 3", "")
		wantState(t, e, "never", "created 0", "")
		e.Fails(1, []string{"no such sandbox"}, "logs", "removed")
		wantWhole(t, e)
		if r := e.Run("ps", "-a"); r.Code != 0 || r.Stderr != "" {
			t.Errorf("a second look: %v", r)
		}
	}
	in(t, func(t *testing.T, e *harness.Env) {
		unit := filepath.Join(e.Home, ".config/systemd/user/sbx-restart.service")
		if got := e.Must("system", "autostart", "--install"); got != unit+"\n" {
			t.Errorf("the unit is %q", got)
		}
		e.Must("run", "-d", "--name", "always", "--restart", "always", "-p", port+":80", harness.BB, "/probe", "serve", "80")
		start(t, e, "failed", failing, "--restart", "on-failure")
		start(t, e, "stopped-always", polite, "--restart", "always")
		start(t, e, "stopped", polite, "--restart", "unless-stopped")
		e.Must("stop", "stopped", "stopped-always")
		e.Must("create", "--name", "never", "--restart", "always", harness.BB, "true")
		begin(t, e)
	}, func(t *testing.T, e *harness.Env) { // after a restart
		rebooted(t, e)
		const why = "the session or the machine ended"
		wantState(t, e, "polite", "exited 3", why)
		wantState(t, e, "paused", "exited 137", why)
		if got := e.Must("logs", "polite"); !strings.HasSuffix(got, "bye\n") {
			t.Errorf("its last words: %q", got)
		}
		e.Must("rm", "polite", "paused")
		begin(t, e)
	}, func(t *testing.T, e *harness.Env) { // after a crash
		rebooted(t, e)
		const why = "the monitor was killed"
		wantState(t, e, "polite", "exited 137", why)
		wantState(t, e, "paused", "exited 137", why)
		e.Must("start", "polite", "paused")
		if got := e.Must("system", "autostart", "--remove"); !strings.HasSuffix(got, "sbx-restart.service\n") {
			t.Errorf("the unit was %q", got)
		}
	})
}

func bootID(t *testing.T) string {
	t.Helper()
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	return string(id)
}
