package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/e2e/fixture"
	"github.com/rootless-sbx/sbx/e2e/harness"
)

// TestRacingCommands: of two commands about one sandbox at the same moment each does its
// work or says in the user's words why not, and the record is true.
func TestRacingCommands(t *testing.T) {
	e := harness.New(t, harness.BB)
	const arg = "8000000"
	create := []string{"create", "--name", "race", harness.BB, "sleep", arg}
	run := []string{"run", "-d", "--name", "race", harness.BB, "sleep", arg}
	words := []string{"no such sandbox", "not running", "is running", "name in use", "busy", "another command works"}
	netd := map[int]int{}
	for _, c := range []struct {
		before      []string
		a, b        string
		least, most int // how many succeed
	}{
		{nil, strings.Join(create, " "), strings.Join(create, " "), 1, 1},
		{nil, strings.Join(run, " "), strings.Join(create, " "), 1, 1},
		{nil, strings.Join(run, " "), strings.Join(run, " "), 1, 1},
		{create, "start race", "start race", 2, 2},
		{create, "start race", "rm race", 1, 2},
		{create, "start race", "rm -f race", 1, 2},
		{create, "start race", "rename race other", 1, 2},
		{create, "rm race", "rm race", 1, 1},
		{create, "rename race one", "rename race other", 1, 2},
		{run, "stop -t 0 race", "rm -f race", 1, 2},
		{run, "stop -t 0 race", "stop -t 0 race", 2, 2},
		{run, "stop -t 0 race", "start race", 2, 2},
		{run, "stop -t 0 race", "exec race true", 1, 2},
		{run, "restart -t 0 race", "restart -t 0 race", 1, 2},
		{run, "restart -t 0 race", "rm -f race", 1, 2},
		{run, "rename race other", "rm -f race", 1, 2},
		{run, "rm -f race", "rm -f race", 1, 2},
	} {
		if c.before != nil {
			e.Must(c.before...)
		}
		results := make([]harness.Result, 2)
		var wg sync.WaitGroup
		for i, line := range []string{c.a, c.b} {
			wg.Go(func() { results[i] = e.Run(strings.Fields(line)...) })
		}
		wg.Wait()
		good := 0
		for _, r := range results {
			if r.Code == 0 {
				good++
			} else if !slices.ContainsFunc(words, func(w string) bool { return strings.Contains(r.Stderr, w) }) {
				t.Errorf("beside %q and %q: %v", c.a, c.b, r)
			}
		}
		if good < c.least || good > c.most {
			t.Errorf("%d of %q and %q succeeded, want %d to %d: %v\n%v", good, c.a, c.b, c.least, c.most, results[0], results[1])
		}
		if lie := eventually(func() string { return lie(e, arg) }); lie != "" {
			t.Errorf("after %q and %q: %s", c.a, c.b, lie)
		}
		e.Must("rm", "-f", "race", "other", "one")
		if left := eventually(func() string { return strings.Join(leftOf(t, e, arg, nil, netd, "bridge"), ", ") }); left != "" {
			t.Errorf("after %q and %q: left behind: %s", c.a, c.b, left)
		}
		if t.Failed() {
			e.Run("rm", "-f", "race", "other", "one")
		}
	}
}

// killAll ends every process of the user's sandboxes at once, as the end of a machine.
func killAll(e *harness.Env) {
	for _, role := range []string{"sbx-monitor", "sbx-netd", "fuse-overlayfs"} {
		for _, pid := range e.Role(role) {
			_ = unix.Kill(pid, unix.SIGKILL) // one may end with another
		}
	}
	eventually(func() string {
		if len(e.Role("sbx-monitor")) > 0 {
			return "a monitor is there"
		}
		return ""
	})
}

// TestStartByPolicy: after the end of everything the restart policies say what is started,
// and what somebody had stopped.
func TestStartByPolicy(t *testing.T) {
	e := harness.New(t, harness.BB)
	var want []string
	for _, b := range []struct {
		policy, name string
		before, due  bool // stopped by the user; started again
	}{
		{"always", "always", false, true},
		{"always", "always-stopped", true, true},
		{"unless-stopped", "unless", false, true},
		{"unless-stopped", "unless-stopped", true, false},
		{"on-failure", "failure", false, true},
		{"no", "no", false, false},
	} {
		detached(t, e, b.name, "--network", "none", "--restart", b.policy, harness.BB, "sleep", "1000")
		if b.before {
			e.Must("stop", "-t", "0", b.name)
		}
		if b.due {
			want = append(want, b.name)
		}
	}
	e.AtEnd("rm", "-f", "never")
	e.Must("create", "--name", "never", "--restart", "always", harness.BB, "true")
	killAll(e)
	r := e.Run("start", "--by-policy")
	if got := strings.Fields(r.Stdout); r.Code != 0 || !slices.Equal(got, want) || strings.Count(r.Stderr, "monitor was killed") != 4 {
		t.Errorf("want %v: %v", want, r)
	}
	running := strings.Fields(e.Must("ps", "--format", "{{.Names}}"))
	slices.Sort(running)
	slices.Sort(want)
	if !slices.Equal(running, want) {
		t.Errorf("running: %v, want %v", running, want)
	}
	if got := e.Must("start", "--by-policy"); got != "" {
		t.Errorf("started again what runs: %q", got)
	}
	e.Fails(125, []string{"takes no argument"}, "start", "--by-policy", "no")
	e.Fails(125, []string{"one sandbox"}, "start", "--by-policy", "-a")
}

// TestMonitorTerminated: systemd ends a session, a service or a machine with SIGTERM. The
// workload is asked to end, and the record is true at once; the restart policy holds
// later, and not now.
func TestMonitorTerminated(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGHUP} {
		detached(t, e, "box", "--restart", "unless-stopped", harness.BB, "sh", "-c", "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done")
		until(t, e, "ready", "logs", "box")
		for _, pid := range e.Role("sbx-monitor") {
			if err := unix.Kill(pid, sig); err != nil {
				t.Fatal(err)
			}
		}
		if got := e.Must("wait", "box"); got != "7\n" {
			t.Errorf("%v: wait: %q", sig, got)
		}
		r := e.Run("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}", "box")
		if want := "exited 7 its monitor got " + unix.SignalName(sig); !strings.HasPrefix(r.Stdout, want) || r.Stderr != "" {
			t.Errorf("want %q: %v", want, r)
		}
		if got := e.Must("logs", "--tail", "1", "box"); got != "bye\n" {
			t.Errorf("%v: logs: %q", sig, got)
		}
		if got := e.Must("start", "--by-policy"); got != "box\n" {
			t.Errorf("%v: start --by-policy: %q", sig, got)
		}
		e.Must("rm", "-f", "box")
	}
}

// TestSessionEnds: systemd sends SIGTERM and SIGHUP to each process of a session that it
// ends. The workload has its files until it has ended, also where a process serves them.
func TestSessionEnds(t *testing.T) {
	e := harness.New(t, harness.BB)
	detached(t, e, "box", "--network", "none", "--storage-driver", "fuse", harness.BB, "sh", "-c", "trap 'cp /bin/busybox /copy && echo saved >/file; exit 7' TERM; echo ready; while :; do sleep 0.05; done")
	until(t, e, "ready", "logs", "box")
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGTERM} {
		for _, pid := range append(e.Role("fuse-overlayfs"), e.Role("sbx-monitor")...) {
			if err := unix.Kill(pid, sig); err != nil && sig == unix.SIGHUP {
				t.Fatal(err)
			}
		}
	}
	if got := e.Must("wait", "box"); got != "7\n" {
		t.Errorf("wait: %q", got)
	}
	if got := e.Must("cp", "box:/file", "-"); !strings.Contains(got, "saved\n") {
		t.Errorf("%q", got)
	}
}

// TestAutostart: the unit is installed and removed, also where no systemd is.
func TestAutostart(t *testing.T) {
	e := harness.New(t)
	unit := e.Must("system", "autostart")
	if want := "\nExecStart=-\"" + harness.Binary() + "\" start --by-policy\n"; !strings.Contains(unit, want) || !strings.Contains(unit, "\nEnvironment=\"XDG_DATA_HOME=") {
		t.Errorf("no %q in\n%s", want, unit)
	}
	path := filepath.Join(e.Home, ".config/systemd/user/sbx-restart.service")
	link := filepath.Join(e.Home, ".config/systemd/user/default.target.wants/sbx-restart.service")
	for range 2 {
		if got := e.Must("system", "autostart", "--install"); got != path+"\n" {
			t.Errorf("%q", got)
		}
	}
	for _, f := range []string{path, link} {
		if b, err := os.ReadFile(f); err != nil || string(b) != unit {
			t.Errorf("%s: %q, %v", f, b, err)
		}
	}
	for range 2 {
		e.Must("system", "autostart", "--remove")
	}
	for _, f := range []string{path, link} {
		if _, err := os.Lstat(f); !os.IsNotExist(err) {
			t.Errorf("%s: %v", f, err)
		}
	}
	e.Fails(125, []string{"contradict"}, "system", "autostart", "--install", "--remove")
}

// TestDiskFullWhileLogging: a workload that fills the disk with its output goes on and
// ends as it will; what is not in the log is counted, and the record is true. It writes
// no file without end: through fuse-overlayfs it would never hear of the full disk.
func TestDiskFullWhileLogging(t *testing.T) {
	e := harness.NewPrivate(t)
	path := filepath.Join(e.Dir(), "image.tar")
	if err := fixture.SaveDocker(build(t, harness.BB), harness.BB, path); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(e.Data(), 0o755); err != nil {
		t.Fatal(err)
	}
	sbx, data := harness.Binary(), filepath.Dir(e.Data())
	e.InNamespace("mount -t tmpfs -o size=256m tmpfs " + data)
	e.Prefix = append(e.Prefix, "sh", "-c", fmt.Sprintf(`set -ex
sbx=%s
$sbx load -q -i %s
$sbx run -d --name full --log-opt max-size=1g %s sh -c 'echo before; until test -e /go; do sleep 0.02; done; dd if=/dev/zero of=/fill bs=1M count=300; head -c 2000000 /dev/zero | tr "\\0" x; exit 7'
until $sbx logs full | grep -q before; do sleep 0.02; done
$sbx exec full touch /go
$sbx wait full
$sbx inspect -f '{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}' full
df %s | grep -o 100%%
$sbx logs full >%s
head -n 1 %[5]s
$sbx rm full
$sbx run --rm %[3]s echo room again
`, sbx, path, harness.BB, data, filepath.Join(e.Dir(), "log")))
	r := e.Run()
	if want := "\n7\nexited 7 \n100%\nbefore\nfull\nroom again\n"; r.Code != 0 || !strings.HasSuffix(r.Stdout, want) {
		t.Errorf("want %q: %v", want, r)
	}
	if m := regexp.MustCompile(`note: (\d+) bytes of its output`).FindStringSubmatch(r.Stderr); m == nil || len(m[1]) != 7 {
		t.Errorf("no word of two million bytes: %v", r)
	}
}

// TestOrphans: a thousand processes that have lost their parents end with the sandbox.
func TestOrphans(t *testing.T) {
	e := harness.New(t, harness.BB)
	n := 1000
	if testing.Short() {
		n = 100
	}
	detached(t, e, "orphans", "--init", harness.BB, "sh", "-c",
		fmt.Sprintf("trap '' TERM; i=0; while [ $i -lt %d ]; do (sleep 7654321 &); i=$((i+1)); done; echo forked; sleep 1000", n))
	until(t, e, "forked", "logs", "orphans")
	// The last of them are still to be executed.
	until(t, e, fmt.Sprintln(n), "exec", "orphans", "sh", "-c", "ps -o ppid,args | grep -c '^ *1 sleep 7654321'")
	e.Must("stop", "-t", "0", "orphans")
	if left := e.FindArg("7654321"); len(left) > 0 {
		t.Errorf("%d are left", len(left))
	}
	if got := status(e, "orphans"); got != "exited 137" {
		t.Errorf("%q", got)
	}
}
