package phases

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// TestClock: root sets the clock back by three hours while sandboxes run, and then
// forward again. All goes on, and what is printed makes sense.
func TestClock(t *testing.T) {
	in(t, func(t *testing.T, e *harness.Env) {
		const echo = "7000"
		start(t, e, "server", "exec /probe echo 7", "-p", echo+":7", "-p", echo+":7/udp")
		// One connection through the network's process, and datagrams likewise.
		start(t, e, "talk", "echo ready; exec /probe talk 10.99.0.2:"+echo)
		start(t, e, "count", "echo ready; i=0; while :; do echo $i; i=$((i+1)); sleep 0.2; done")
		start(t, e, "checked", polite, "--health-cmd", "true", "--health-interval", "1s")
		start(t, e, "failing", "echo ready; sleep 0.2; exit 1", "--restart", "always")
		start(t, e, "stopped", polite)
		e.Must("stop", "stopped")
		// They outlive this phase.
		follow(t, e, "logs", "logs", "-f", "count")
		follow(t, e, "events", "events")
		harness.Eventually(t, 30*time.Second, func() error {
			if s := inspect(e, "checked", "{{.State.Health.Status}}"); s != "healthy" {
				return fmt.Errorf("its health is %s", s)
			}
			return nil
		})
		keep(t, e, "time", strconv.FormatInt(time.Now().Unix(), 10))
	}, func(t *testing.T, e *harness.Env) { // the clock was set back
		before, err := strconv.ParseInt(recall(t, e, "time"), 10, 64)
		if err != nil || time.Now().Unix() > before-3600 {
			t.Fatalf("the clock was not set back: %v", err)
		}
		goesOn(t, e)
	}, func(t *testing.T, e *harness.Env) { // and forward
		goesOn(t, e)
		e.Must("stop", "-t", "1", "count")
		harness.Eventually(t, 20*time.Second, func() error {
			for _, name := range []string{"logs", "events"} {
				if alive(t, e, name) != (name == "events") {
					return fmt.Errorf("sbx %s", name)
				}
			}
			return nil
		})
		pid, err := strconv.Atoi(recall(t, e, "events-pid"))
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGTERM)
		}
		if err != nil {
			t.Error(err)
		}
	})
}

// goesOn checks everything that has to do with time, after the clock was set.
func goesOn(t *testing.T, e *harness.Env) {
	used := cpuTime(t)
	begin := time.Now()

	if ps := e.Must("ps", "-a", "--format", "{{.Status}}, {{.RunningFor}}"); strings.Contains(ps, "-") || strings.Count(ps, "Up ") < 4 {
		t.Errorf("ps:\n%s", ps)
	}
	for _, name := range []string{"count", "talk"} {
		wantMoreLines(t, e, name)
	}
	// The follower that was there before goes on too.
	had := fileSize(t, e, "logs")
	harness.Eventually(t, 20*time.Second, func() error {
		if fileSize(t, e, "logs") <= had {
			return fmt.Errorf("sbx logs -f stands still")
		}
		return nil
	})
	if got := e.Must("logs", "--since", "10m", "--tail", "1", "count"); got == "" {
		t.Error("logs --since says nothing")
	}

	// A check of now, that took no negative time.
	harness.Eventually(t, 20*time.Second, func() error {
		var h struct {
			Status string
			Log    []struct{ Start, End time.Time }
		}
		if err := json.Unmarshal([]byte(inspect(e, "checked", "{{json .State.Health}}")), &h); err != nil {
			return err
		}
		for _, c := range h.Log {
			if c.End.Before(c.Start) {
				t.Errorf("a health check ended %v before it began", c.Start.Sub(c.End))
			}
		}
		if n := len(h.Log); h.Status != "healthy" || n == 0 || h.Log[n-1].Start.Before(begin) {
			return fmt.Errorf("no check since: %+v", h)
		}
		return nil
	})
	// The restart policy goes on.
	count := inspect(e, "failing", "{{.RestartCount}}")
	harness.Eventually(t, 90*time.Second, func() error {
		if inspect(e, "failing", "{{.RestartCount}}") == count {
			return fmt.Errorf("restarted %s times", count)
		}
		return nil
	})
	e.Must("update", "--restart", "always", "failing")

	// New sandboxes, with names and the network.
	e.Must("run", "--rm", "--name", "fresh", harness.BB, "sh", "-ec", "/probe dial tcp server:7; /probe udp server:7 100; /probe udp 10.99.0.2:7000 100")
	ready := func() int { return strings.Count(e.Must("logs", "stopped"), "ready") }
	before := ready()
	e.Must("restart", "stopped")
	harness.Eventually(t, 30*time.Second, func() error { // or it has no trap for the signal yet
		if ready() == before {
			return fmt.Errorf("it is not ready after a restart")
		}
		return nil
	})
	e.Must("stop", "stopped")
	wantState(t, e, "stopped", "exited 3", "")
	if took := lifetime(t, e, "stopped"); took < 0 || took > time.Hour {
		t.Errorf("it has lived for %v", took)
	}
	// The journal has it, in a moment's view and in that of the follower.
	events := e.Must("events", "--since", "10m", "--until", "0s", "--filter", "container=stopped", "--format", "{{.Action}}")
	if !strings.HasSuffix(events, "stop\n") {
		t.Errorf("events: %q", events)
	}
	harness.Eventually(t, 20*time.Second, func() error {
		if !strings.Contains(fileText(t, e, "events"), "name=fresh") {
			return fmt.Errorf("sbx events stands still")
		}
		return nil
	})
	// What is newer than an hour stays, also if its time has not come yet.
	if got := e.Must("container", "prune", "-f", "--filter", "until=1h"); strings.Contains(got, inspect(e, "stopped", "{{.Id}}")) {
		t.Errorf("prune: %q", got)
	}

	// Nobody turns in circles: what waits for a time takes none.
	for pid, now := range cpuTime(t) {
		if spent := now - used[pid]; used[pid] > 0 && spent > time.Since(begin)/2 {
			t.Errorf("process %d (%s) took %v of %v", pid, comm(pid), spent, time.Since(begin))
		}
	}
}

func lifetime(t *testing.T, e *harness.Env, name string) time.Duration {
	t.Helper()
	var s struct{ StartedAt, FinishedAt time.Time }
	if err := json.Unmarshal([]byte(inspect(e, name, "{{json .State}}")), &s); err != nil {
		t.Fatal(err)
	}
	return s.FinishedAt.Sub(s.StartedAt)
}

// follow leaves a command behind that writes into a file.
func follow(t *testing.T, e *harness.Env, name string, args ...string) {
	t.Helper()
	f, err := os.Create(filepath.Join(e.Home, "follow-"+name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(harness.Binary(), args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = e.Environ(), e.Home, f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	keep(t, e, name+"-pid", strconv.Itoa(cmd.Process.Pid))
}

func alive(t *testing.T, e *harness.Env, name string) bool {
	t.Helper()
	_, err := os.Stat("/proc/" + recall(t, e, name+"-pid") + "/exe")
	return err == nil
}

func fileText(t *testing.T, e *harness.Env, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(e.Home, "follow-"+name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func fileSize(t *testing.T, e *harness.Env, name string) int { return len(fileText(t, e, name)) }

// cpuTime is what each of our processes that stay has used.
func cpuTime(t *testing.T) map[int]time.Duration {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	used := map[int]time.Duration{}
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if !strings.HasPrefix(comm(pid), "sbx") {
			continue
		}
		data, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue // it has ended
		}
		f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		user, _ := strconv.Atoi(f[11])
		system, _ := strconv.Atoi(f[12])
		used[pid] = time.Duration(user+system) * (time.Second / 100)
	}
	return used
}

func comm(pid int) string {
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // gone: no name
	return strings.TrimSpace(string(name))
}
