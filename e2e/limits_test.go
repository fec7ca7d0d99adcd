package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// controllers are those that this machine gives to the user, by sbx's own account.
// Where there is none the tests are about what sbx says then.
func controllers(t *testing.T, e *harness.Env) []string {
	t.Helper()
	var report struct {
		Checks []struct {
			Name string
			Data json.RawMessage
		}
	}
	if err := json.Unmarshal([]byte(e.Must("doctor", "--format", "json")), &report); err != nil {
		t.Fatal(err)
	}
	for _, c := range report.Checks {
		if c.Name != "cgroup" {
			continue
		}
		var d struct {
			Available []string
		}
		if err := json.Unmarshal(c.Data, &d); err != nil {
			t.Fatal(err)
		}
		return d.Available
	}
	t.Fatal("sbx doctor does not speak of cgroups")
	return nil
}

// noGroups waits until systemd has removed the scopes of the sandboxes that have ended.
func noGroups(t *testing.T) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, func() error {
		for _, pattern := range []string{"/sys/fs/cgroup/user.slice/*/*/*/sbx-*", "/sys/fs/cgroup/sbx-*"} {
			left, err := filepath.Glob(pattern)
			if err != nil || len(left) > 0 {
				return fmt.Errorf("left: %v, %v", left, err)
			}
		}
		return nil
	})
}

// TestLimits: each limit is what the sandbox sees in its own group, or is refused with
// the name of what is missing.
func TestLimits(t *testing.T) {
	e := harness.New(t, harness.BB)
	have := controllers(t, e)
	for _, c := range []struct {
		flags            []string
		controller, file string
		want             string
	}{
		{[]string{"-m", "64m"}, "memory", "memory.max", "67108864"},
		{[]string{"--memory", "64m", "--memory-reservation", "32m"}, "memory", "memory.low", "33554432"},
		{[]string{"--cpus", "0.5"}, "cpu", "cpu.max", "50000 100000"},
		{[]string{"--cpu-quota", "30000", "--cpu-period", "60000"}, "cpu", "cpu.max", "30000 60000"},
		{[]string{"-c", "2"}, "cpu", "cpu.weight", "1"},
		{[]string{"--pids-limit", "100"}, "pids", "pids.max", "100"},
		{[]string{"--cpuset-cpus", "0"}, "cpuset", "cpuset.cpus", "0"},
		{[]string{"--cpuset-mems", "0"}, "cpuset", "cpuset.mems", "0"},
	} {
		t.Run(strings.Join(c.flags, " "), func(t *testing.T) {
			e := e.In(t)
			args := append(append([]string{"run", "--rm", "--network", "none"}, c.flags...), harness.BB, "cat", "/sys/fs/cgroup/"+c.file)
			if slices.Contains(have, c.controller) {
				if got := strings.TrimSpace(e.Must(args...)); got != c.want {
					t.Errorf("%s is %q, want %q", c.file, got, c.want)
				}
				return
			}
			words := []string{"no limit can be set"}
			if len(have) > 0 {
				words = []string{"controller " + c.controller, "fix: "}
			}
			e.Fails(125, words, args...)
		})
	}
	noGroups(t)
}

// TestWithoutLimits: no group is made, and the root of what is seen is the sandbox's.
func TestWithoutLimits(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, flags := range [][]string{nil, {"--init"}, {"--pids-limit", "-1"}} {
		if len(flags) == 2 && len(controllers(t, e)) == 0 {
			continue
		}
		out := e.Must(append(append([]string{"run", "--rm", "--network", "none"}, flags...), harness.BB, "cat", "/proc/self/cgroup")...)
		if !slices.Contains(strings.Split(out, "\n"), "0::/") {
			t.Errorf("%v: %q", flags, out)
		}
	}
}

// TestOutOfMemory: the workload is killed, sbx says why, and only the sandbox suffers.
func TestOutOfMemory(t *testing.T) {
	e := harness.New(t, harness.BB)
	if !slices.Contains(controllers(t, e), "memory") {
		e.Fails(125, []string{"--memory", "no limit can be set", "fix: "}, "run", "--rm", "-m", "32m", harness.BB, "true")
		return
	}
	hog := []string{harness.BB, "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"}
	for _, flags := range [][]string{nil, {"--init"}} {
		args := append([]string{"run", "--rm", "--network", "none", "-m", "32m", "--memory-swap", "32m"}, flags...)
		e.Fails(137, []string{"its memory was used up"}, append(args, hog...)...)
	}
	// Too little for our own init, which is in the group already.
	if r := e.Run("run", "--rm", "--network", "none", "-m", "6m", "--memory-swap", "6m", harness.BB, "true"); r.Code != 0 {
		r.Want(t, 125, "--memory", "fix: ")
	}
	// A child of the workload's: its own matter, but said all the same.
	r := e.Run("run", "--rm", "--network", "none", "-m", "32m", "--memory-swap", "32m", harness.BB, "sh", "-c",
		"dd if=/dev/zero of=/dev/null bs=200M count=1; echo status $?; exit 3")
	if r.Code != 3 || !strings.Contains(r.Stdout, "status 137") || !strings.Contains(r.Stderr, "its memory was used up") {
		t.Errorf("%v", r)
	}
	noGroups(t)
}

// TestForkBomb: processes over the limit are refused, and no other sandbox's. The limit is
// the workload's, however few that are.
func TestForkBomb(t *testing.T) {
	e := harness.New(t, harness.BB)
	if !slices.Contains(controllers(t, e), "pids") {
		e.Fails(125, []string{"--pids-limit", "no limit can be set", "fix: "}, "run", "--rm", "--pids-limit", "5", harness.BB, "true")
		return
	}
	r := e.Run("run", "--rm", "--network", "none", "--pids-limit", "5", harness.BB, "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; wait")
	if !strings.Contains(strings.ToLower(r.Stderr), "fork") {
		t.Errorf("%v", r)
	}
	e.Must("run", "--rm", "--network", "none", "--pids-limit", "1", harness.BB, "true")
	detached(t, e, "few", "--network", "none", "--pids-limit", "2", harness.BB, "sh", "-c", "while read n </sys/fs/cgroup/pids.max && [ $n != 2 ]; do :; done; echo limited; sleep 1000")
	until(t, e, "limited", "logs", "few")
	e.Fails(1, []string{"may have 2 (--pids-limit)", "sbx update"}, "exec", "few", "true")
	e.Must("restart", "-t", "0", "few")
	e.Must("update", "--pids-limit", "40", "few")
	e.Must("exec", "few", "true")
	e.Must("rm", "-f", "few")
	e.Fails(125, []string{"with --init at least 24"}, "run", "--rm", "--init", "--pids-limit", "4", harness.BB, "true")
	noGroups(t)
}

// TestKillLimited: a monitor or a caller that is killed leaves no group.
func TestKillLimited(t *testing.T) {
	e := harness.New(t, harness.BB)
	if !slices.Contains(controllers(t, e), "memory") {
		e.Fails(125, []string{"fix: "}, "run", "--rm", "-m", "64m", harness.BB, "true")
		return
	}
	for _, victim := range []string{"monitor", "sbx"} {
		p := e.Start("run", "--rm", "--network", "none", "-m", "64m", harness.BB, "sh", "-c", "echo up; sleep 1000")
		p.WaitOut("up", 20*time.Second)
		want := 125
		if victim == "sbx" {
			p.Signal(syscall.SIGKILL)
			want = 137
		} else {
			for _, pid := range e.Role("sbx-monitor") {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Error(err)
				}
			}
		}
		if r := p.Wait(20 * time.Second); r.Code != want {
			t.Errorf("%s killed: want %d: %v", victim, want, r)
		}
		noGroups(t)
	}
}

// TestBadLimits: refused by what they say, with or without cgroups.
func TestBadLimits(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, c := range []struct{ flag, value, word string }{
		{"--memory", "1m", "minimum is 6MB"},
		{"--memory", "lots", "512m"},
		{"--memory-swap", "64m", "must be limited too"},
		{"--memory-reservation", "1m", "minimum is 6MB"},
		{"--cpus", "10000", "as there are"},
		{"--cpus", "0.001", "from 0.01"},
		{"--cpu-period", "5", "from 1000"},
		{"--cpu-quota", "5", "at least 1000"},
		{"--cpu-shares", "1", "from 2"},
		{"--cpuset-cpus", "1-0", "list"},
		{"--pids-limit", "x", "whole number"},
		{"--blkio-weight", "5", "from 10"},
		{"--device-read-bps", "/tmp/x:1mb", "/dev"},
	} {
		e.Fails(125, []string{c.word}, "run", "--rm", c.flag, c.value, harness.BB, "true")
	}
}
