package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// spin computes without end.
var spin = []string{harness.BB, "sh", "-c", "trap 'exit 9' TERM; trap 'exit 8' USR1; echo ready; while :; do :; done"}

// TestPause: what is paused computes nothing, is refused what it cannot do, and is
// stopped, killed and removed all the same.
func TestPause(t *testing.T) {
	e := harness.New(t, harness.BB)
	detached(t, e, "pause", append([]string{"--network", "none", "--health-cmd", "true", "--health-interval", "20ms"}, spin...)...)
	until(t, e, "ready", "logs", "pause")
	if len(controllers(t, e)) == 0 {
		e.Fails(1, []string{"pause: the sandbox has no cgroup", "fix: "}, "pause", "pause")
		e.Fails(1, []string{"not paused"}, "unpause", "pause")
		return
	}
	e.Fails(1, []string{"not paused"}, "unpause", "pause")
	until(t, e, "healthy", "ps")
	if got := e.Must("pause", "pause"); got != "pause\n" {
		t.Errorf("pause: %q", got)
	}
	if got := e.Must("ps", "--filter", "status=paused", "--format", "{{.Status}}"); !strings.Contains(got, "(Paused)") {
		t.Errorf("ps: %q", got)
	}
	if got := e.Must("inspect", "-f", "{{.State.Status}} {{.State.Paused}} {{.State.Running}}", "pause"); got != "paused true true\n" {
		t.Errorf("inspect: %q", got)
	}
	if got := e.Must("stats", "--no-stream", "--format", "{{.CPUPerc}}", "pause"); got != "0.00%\n" {
		t.Errorf("it computes: %q", got)
	}
	for _, args := range [][]string{{"pause", "pause"}, {"exec", "pause", "true"}, {"attach", "--no-stdin", "pause"}, {"rm", "pause"}, {"start", "pause"}} {
		e.Fails(1, []string{"is paused"}, args...)
	}
	if got := e.Must("logs", "pause"); got != "ready\n" {
		t.Errorf("logs: %q", got)
	}
	if got := e.Must("top", "pause"); !strings.Contains(got, "echo ready") {
		t.Errorf("top: %s", got)
	}
	if got := e.Must("inspect", "-f", "{{.State.Health.Status}}", "pause"); got != "healthy\n" {
		t.Errorf("its health: %q", got)
	}
	if got := e.Must("events", "--since", "1h", "--until", "0s", "--filter", "container=pause", "--format", "{{.Action}}"); strings.Contains(got, "exec_create: true") {
		t.Errorf("an event of a program that was refused:\n%s", got)
	}
	e.Must("kill", "-s", "USR1", "pause") // waits for unpause
	e.Fails(1, []string{"is paused"}, "exec", "pause", "true")
	e.Must("unpause", "pause")
	e.Must("wait", "pause")
	if got := status(e, "pause"); got != "exited 8" {
		t.Errorf("after the signal: %q", got)
	}
	for i, end := range []struct {
		args []string
		want string
	}{
		{[]string{"stop", "pause"}, "exited 9"},
		{[]string{"kill", "pause"}, "exited 137"},
		{[]string{"stop", "-s", "KILL", "pause"}, "exited 137"},
		{[]string{"restart", "pause"}, "running 0"},
	} {
		e.Must("start", "pause")
		until(t, e, strings.Repeat("ready\n", i+2), "logs", "pause") // it has its traps
		e.Must("exec", "pause", "true")
		e.Must("pause", "pause")
		e.Must(end.args...)
		if got := status(e, "pause"); got != end.want {
			t.Errorf("%v: %q, want %q", end.args, got, end.want)
		}
	}
	e.Must("pause", "pause")
	e.Must("rm", "-f", "pause")
	noGroups(t)
}

// TestUpdate: at once, and for the next start.
func TestUpdate(t *testing.T) {
	e := harness.New(t, harness.BB)
	detached(t, e, "up", "--network", "none", harness.BB, "sh", "-c", "dd if=/dev/zero of=/dev/shm/held bs=1M count=30; echo ready; exec sleep 1000")
	until(t, e, "ready", "logs", "up")
	e.Fails(125, []string{"something to change"}, "update", "up")
	e.Fails(125, []string{"no policy"}, "update", "--restart", "always:3", "up")
	e.Fails(1, []string{"not one of"}, "update", "--restart", "sometimes", "up")
	if got := e.Must("update", "--restart", "on-failure:2", "up"); got != "up\n" {
		t.Errorf("%q", got)
	}
	if got := e.Must("inspect", "-f", "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}", "up"); got != "on-failure 2\n" {
		t.Errorf("%q", got)
	}
	e.Must("kill", "-s", "9", "up") // by somebody, so it is not started again
	if got := status(e, "up"); got != "exited 137" {
		t.Errorf("%q", got)
	}
	e.Must("update", "--restart", "no", "up")
	e.Must("start", "up")
	until(t, e, "ready\nready\n", "logs", "up") // it holds its memory again
	if !slices.Contains(controllers(t, e), "memory") {
		e.Fails(1, []string{"no cgroup", "fix: "}, "update", "-m", "64m", "up")
		e.Must("stop", "-t", "0", "up")
		e.Fails(1, []string{"--memory", "no limit can be set"}, "update", "-m", "64m", "up")
		return
	}
	file := func(name string) string {
		return strings.TrimSpace(e.Must("exec", "up", "cat", "/sys/fs/cgroup/"+name))
	}
	e.Must("update", "-m", "64m", "--pids-limit", "40", "--cpus", "0.5", "up")
	check := func(when string) {
		t.Helper()
		if got := file("memory.max") + " " + file("pids.max") + " " + file("cpu.max"); got != "67108864 40 50000 100000" {
			t.Errorf("%s: %s", when, got)
		}
	}
	check("at once")
	e.Fails(1, []string{"--memory", "in use"}, "update", "-m", "16m", "up")
	e.Fails(1, []string{"minimum"}, "update", "-m", "1m", "up")
	e.Fails(1, []string{"--cpus"}, "update", "--cpu-quota", "20000", "up")
	check("after what was refused")
	if got := e.Must("inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.NanoCpus}}", "up"); got != "67108864 40 500000000\n" {
		t.Errorf("inspect: %q", got)
	}
	e.Must("restart", "-t", "0", "up")
	check("after a restart")
	e.Must("stop", "-t", "0", "up")
	e.Must("update", "--pids-limit", "50", "up")
	e.Must("start", "up")
	if got := file("pids.max"); got != "50" {
		t.Errorf("pids.max is %s", got)
	}
	e.Must("rm", "-f", "up")
	noGroups(t)
}

// TestStats: the keys and the table are Docker's.
func TestStats(t *testing.T) {
	e := harness.New(t, harness.BB)
	id := detached(t, e, "stats", "--network", "none", harness.BB, "sh", "-c", "trap 'exit 0' TERM; while :; do :; done")
	var row struct{ BlockIO, CPUPerc, Container, ID, MemPerc, MemUsage, Name, NetIO, PIDs string }
	dec := json.NewDecoder(strings.NewReader(e.Must("stats", "--no-stream", "--format", "json", "stats")))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&row); err != nil {
		t.Fatal(err)
	}
	var load float64
	if _, err := fmt.Sscanf(row.CPUPerc, "%f%%", &load); err != nil || load < 1 {
		t.Errorf("it computes all the time, and stats says %q, %v", row.CPUPerc, err)
	}
	if row.Container != "stats" || row.Name != "stats" || row.ID != id[:12] || row.PIDs != "1" || row.NetIO != "0B / 0B" || !strings.Contains(row.MemUsage, "B / ") || !strings.HasSuffix(row.MemPerc, "%") {
		t.Errorf("%+v", row)
	}
	p := e.Start("stats")
	p.WaitOut("CONTAINER ID", 20*time.Second)
	for _, w := range []string{"CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"} {
		p.WaitOut(w, time.Second)
	}
	p.Signal(syscall.SIGINT)
	if r := p.Wait(10 * time.Second); r.Code != 0 {
		t.Errorf("interrupted: %v", r)
	}
	e.Must("stop", "stats")
	if got := e.Must("stats", "--no-stream", "-a", "--no-trunc", "--format", "{{.Container}} {{.CPUPerc}} {{.PIDs}}"); got != id+" -- --\n" {
		t.Errorf("of one that has ended: %q", got)
	}
	if got := e.Must("stats", "--no-stream", "--format", "{{.ID}}"); got != "" {
		t.Errorf("of those that run: %q", got)
	}
	e.Fails(1, []string{"no such sandbox"}, "stats", "--no-stream", "nothing-here")
	e.Fails(125, []string{"--format"}, "stats", "--no-stream", "--format", "{{.Nothing}}")
}

// TestExecLimited: what is run beside the workload is in its group, and is killed when
// its memory is used up.
func TestExecLimited(t *testing.T) {
	e := harness.New(t, harness.BB)
	if !slices.Contains(controllers(t, e), "memory") {
		detached(t, e, "hog", "--network", "none", harness.BB, "sleep", "1000")
		if got := e.Must("exec", "hog", "cat", "/proc/self/cgroup"); !strings.Contains(got, "0::/\n") {
			t.Errorf("%q", got)
		}
		return
	}
	detached(t, e, "hog", "--network", "none", "-m", "32m", "--memory-swap", "32m", harness.BB, "sleep", "1000")
	if got := e.Must("exec", "hog", "cat", "/proc/self/cgroup"); got != "0::/\n" {
		t.Errorf("%q", got)
	}
	if r := e.Run("exec", "hog", "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"); r.Code != 137 {
		t.Errorf("%v", r)
	}
	harness.Eventually(t, 10*time.Second, func() error {
		if got := e.Must("inspect", "-f", "{{.State.Status}} {{.State.OOMKilled}}", "hog"); got != "running true\n" {
			return errors.New(got)
		}
		return nil
	})
	e.Must("restart", "-t", "0", "hog")
	if got := e.Must("inspect", "-f", "{{.State.OOMKilled}}", "hog"); got != "false\n" {
		t.Errorf("started again: %q", got)
	}
	e.Must("rm", "-f", "hog")
	noGroups(t)
}
