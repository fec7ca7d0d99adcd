package e2e

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

// detached starts a sandbox that is removed at the end of the test.
func detached(t *testing.T, e *harness.Env, name string, args ...string) string {
	t.Helper()
	e.AtEnd("rm", "-f", "-v", name)
	id := e.Must(append([]string{"run", "-d", "--name", name}, args...)...)
	return strings.TrimSpace(id)
}

// until waits until a command prints what is wanted.
func until(t *testing.T, e *harness.Env, want string, args ...string) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, func() error {
		if r := e.Run(args...); !strings.Contains(r.Stdout, want) {
			return fmt.Errorf("no %q: %v", want, r)
		}
		return nil
	})
}

func status(e *harness.Env, name string) string {
	return strings.TrimSpace(e.Must("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name))
}

// TestDetached goes through a life.
func TestDetached(t *testing.T) {
	e := harness.New(t, harness.BB)
	id := detached(t, e, "life", "-l", "a=b", harness.BB, "sh", "-c", "trap 'echo bye; exit 7' TERM; echo out; echo err >&2; while :; do sleep 0.1; done")
	if len(id) != 64 {
		t.Errorf("the id is %q", id)
	}
	if got := e.Must("ps", "--format", "{{.ID}} {{.Names}} {{.State}} {{.Image}} {{.Label \"a\"}}"); got != id[:12]+" life running "+harness.BB+" b\n" {
		t.Errorf("ps: %q", got)
	}
	harness.Eventually(t, 20*time.Second, func() error { // its outputs come by two ways
		if r := e.Run("logs", id[:5]); r.Code != 0 || r.Stdout != "out\n" || r.Stderr != "err\n" {
			return fmt.Errorf("logs by a prefix of the id: %v", r)
		}
		return nil
	})
	if got := e.Must("__complete", "stop", "li"); got != "life\n:none\n" {
		t.Errorf("completion: %q", got)
	}
	if got := e.Must("__complete", "start", "li"); got != ":none\n" {
		t.Errorf("completion of what does not run: %q", got)
	}
	if got := e.Must("inspect", "-f", "{{.Name}} {{.State.Running}} {{.Config.Labels.a}} {{.HostConfig.AutoRemove}} {{.GraphDriver.Name}}", "life"); !strings.HasPrefix(got, "/life true b false ") {
		t.Errorf("inspect: %q", got)
	}
	e.Must("exec", "life", "sh", "-c", "echo kept >/kept")
	if got := e.Must("stop", "life"); got != "life\n" {
		t.Errorf("stop: %q", got)
	}
	if got := status(e, "life"); got != "exited 7" {
		t.Errorf("after stop: %q", got)
	}
	if got := e.Must("wait", "life"); got != "7\n" {
		t.Errorf("wait: %q", got)
	}
	if got := e.Must("ps", "-q"); got != "" {
		t.Errorf("ps shows what does not run: %q", got)
	}
	e.Must("start", "life")
	if got := e.Must("exec", "life", "cat", "/kept"); got != "kept\n" {
		t.Errorf("a file of the first run: %q", got)
	}
	until(t, e, "out\nbye\nout\n", "logs", "life") // it has its trap
	e.Must("restart", "-t", "5", "life")
	if got := status(e, "life"); got != "running 0" {
		t.Errorf("after restart: %q", got)
	}
	until(t, e, "out\nbye\nout\nbye\nout\n", "logs", "life")
	e.Must("kill", "-s", "TERM", "life")
	e.Must("wait", "life")
	if got := e.Must("logs", "--tail", "1", "life"); got != "bye\n" {
		t.Errorf("tail: %q", got)
	}
	e.Must("rename", "life", "other")
	e.Fails(1, []string{"no such sandbox"}, "inspect", "--type", "container", "life")
	if got := e.Must("rm", "other"); got != "other\n" {
		t.Errorf("rm: %q", got)
	}
	if got := e.Must("ps", "-aq"); got != "" {
		t.Errorf("after rm: %q", got)
	}
}

func TestCreateStart(t *testing.T) {
	e := harness.New(t, harness.BB)
	e.AtEnd("rm", "-f", "made")
	e.Must("create", "--name", "made", "-i", harness.BB, "sh", "-c", "cat; exit 4")
	if got := status(e, "made"); got != "created 0" {
		t.Errorf("created: %q", got)
	}
	e.AtEnd("rm", "-f", "keys")
	e.Must("create", "--name", "keys", "--tmpfs", "/t:size=1m,exec", "--health-cmd", "true", "--health-interval", "2s", "--health-start-period", "1s", harness.BB)
	for keys, want := range map[string]string{
		".Config.Healthcheck": `{"Test":["CMD-SHELL","true"],"Interval":2000000000,"StartPeriod":1000000000}`,
		".HostConfig.Tmpfs":   `{"/t":"exec,size=1048576"}`,
	} {
		if got := e.Must("inspect", "-f", "{{json "+keys+"}}", "keys"); got != want+"\n" {
			t.Errorf("inspect %s: %s, want %s", keys, got, want)
		}
	}
	e.Fails(1, []string{"no such sandbox"}, "ps", "--filter", "before=nothing-here")
	if got := e.Must("ps", "--filter", "since=made", "-a", "--format", "{{.Names}}"); got != "keys\n" {
		t.Errorf("since: %q", got)
	}
	r := e.RunInput(strings.NewReader("input"), "start", "-a", "-i", "made")
	if r.Code != 4 || r.Stdout != "input" {
		t.Errorf("start -ai: %v", r)
	}
	if got := e.Must("logs", "made"); got != "input" {
		t.Errorf("logs: %q", got)
	}
}

// TestForegroundIsKept: without --rm a sandbox stays, with it nothing does.
func TestForegroundIsKept(t *testing.T) {
	e := harness.New(t, harness.BB)
	e.AtEnd("rm", "-f", "fg")
	r := e.Run("run", "--name", "fg", harness.BB, "sh", "-c", "echo hello; exit 3")
	if r.Code != 3 || r.Stdout != "hello\n" {
		t.Errorf("%v", r)
	}
	if got := status(e, "fg"); got != "exited 3" {
		t.Errorf("%q", got)
	}
	if got := e.Must("logs", "fg"); got != "hello\n" {
		t.Errorf("logs: %q", got)
	}
	e.Must("rm", "fg")
	e.Run("run", "--name", "fg", harness.BB, "no-such-program")
	if got := status(e, "fg"); got != "created 127" {
		t.Errorf("a start that failed: %q", got)
	}
	p := e.Start("run", "--rm", "--name", "gone", harness.BB, "sh", "-c", "echo ready; sleep 1000")
	p.WaitOut("ready", 20*time.Second)
	if got := e.Must("exec", "gone", "echo", "inside"); got != "inside\n" {
		t.Errorf("exec beside the foreground: %q", got)
	}
	e.Must("stop", "-t", "0", "gone")
	if r := p.Wait(10 * time.Second); r.Code != 137 {
		t.Errorf("stopped by another command: %v", r)
	}
	if got := e.Must("ps", "-a", "--format", "{{.Names}}"); got != "fg\n" {
		t.Errorf("ps -a: %q", got)
	}
}

func TestLifeBadInput(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, verb := range []string{"start", "stop", "kill", "restart", "logs", "wait", "inspect", "port", "attach", "rm"} {
		e.Fails(1, []string{"no such sandbox", "nothing-here"}, verb, "nothing-here")
	}
	e.Fails(1, []string{"no such sandbox"}, "exec", "nothing-here", "true")
	e.Fails(1, []string{"no such sandbox"}, "rename", "nothing-here", "x")
	e.Fails(125, []string{"usage"}, "stop")
	detached(t, e, "one", harness.BB, "sleep", "1000")
	e.Fails(125, []string{"name in use", "one"}, "run", "-d", "--name", "one", harness.BB, "true")
	e.Fails(1, []string{"running", "-f"}, "rm", "one")
	e.Fails(1, []string{"name in use"}, "rename", "one", "one")
	e.Fails(1, []string{"only"}, "rename", "one", "a/b")
	e.Fails(125, []string{"invalid signal"}, "kill", "-s", "NOSUCH", "one")
	e.Fails(125, []string{"not supported", "rights"}, "exec", "--privileged", "one", "true")
	e.Must("start", "one") // it runs already
	// What fails does not keep the others.
	r := e.Run("stop", "-t", "0", "nothing-here", "one")
	if r.Code != 1 || r.Stdout != "one\n" {
		t.Errorf("%v", r)
	}
	for _, args := range [][]string{{"exec", "one", "true"}, {"attach", "one"}, {"kill", "one"}} {
		e.Fails(1, []string{"not running", "exited"}, args...)
	}
	e.Must("stop", "one") // it has ended already
	// Enough sandboxes for two ids with the same first digit.
	var ids []string
	for len(ids) < 17 {
		id := strings.TrimSpace(e.Must("create", harness.BB, "true"))
		ids = append(ids, id)
	}
	e.AtEnd(append([]string{"rm"}, ids...)...)
	seen := map[string]bool{}
	for _, id := range ids {
		if seen[id[:1]] {
			e.Fails(1, []string{"beginning of", "more digits"}, "inspect", "--type", "container", id[:1])
			return
		}
		seen[id[:1]] = true
	}
}

// TestRename: the network knows a sandbox that runs by its new name, also when its
// process has been killed.
func TestRename(t *testing.T) {
	e := harness.New(t, harness.BB)
	port := fmt.Sprintf("127.0.0.1:%d:80", e.FreePort())
	detached(t, e, "before", "-p", port, harness.BB, "sleep", "1000")
	e.AtEnd("rm", "-f", "after")
	e.Must("rename", "before", "after")
	e.Fails(125, []string{"in use", "sandbox after"}, "run", "--rm", "-p", port, harness.BB, "true")
	killOne(t, e.Role("sbx-netd"), nil)
	for end := time.Now().Add(harness.Slow(20 * time.Second)); ; {
		r := e.Run("run", "--rm", "-p", port, harness.BB, "true")
		if strings.Contains(r.Stderr, "sandbox after") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("not attached again: %v", r)
		}
	}
	e.Must("stop", "-t", "0", "after")
	e.Must("rename", "after", "before") // one that does not run
	e.Must("start", "before")
	e.Fails(125, []string{"in use", "sandbox before"}, "run", "--rm", "-p", port, harness.BB, "true")
}

// TestStopIgnored: a workload that ignores SIGTERM is killed when the time is over.
func TestStopIgnored(t *testing.T) {
	e := harness.New(t, harness.BB)
	detached(t, e, "deaf", harness.BB, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done")
	until(t, e, "ready", "logs", "deaf")
	e.Must("stop", "-t", "1", "deaf")
	if got := status(e, "deaf"); got != "exited 137" {
		t.Errorf("%q", got)
	}
}

// TestRaces: whoever is first, the others find out, and the record is true.
func TestRaces(t *testing.T) {
	e := harness.New(t, harness.BB)
	const n = 6
	together := func(args func(i int) []string) (codes []int) {
		var wg sync.WaitGroup
		codes = make([]int, n)
		for i := range n {
			wg.Go(func() { codes[i] = e.Run(args(i)...).Code })
		}
		wg.Wait()
		slices.Sort(codes)
		return codes
	}
	e.AtEnd("rm", "-f", "race")
	if codes := together(func(int) []string { return []string{"run", "-d", "--name", "race", harness.BB, "sleep", "1000"} }); codes[0] != 0 || codes[1] != 125 {
		t.Errorf("run of one name: %v", codes)
	}
	e.Must("stop", "-t", "0", "race")
	if codes := together(func(int) []string { return []string{"start", "race"} }); codes[n-1] != 0 {
		t.Errorf("start: %v", codes)
	}
	harness.Eventually(t, 10*time.Second, func() error { // the one before may not be quite gone
		if got := len(e.Role("sbx-monitor")); got != 1 {
			return fmt.Errorf("%d monitors", got)
		}
		return nil
	})
	if codes := together(func(int) []string { return []string{"stop", "-t", "0", "race"} }); codes[n-1] != 0 {
		t.Errorf("stop: %v", codes)
	}
	if got := status(e, "race"); got != "exited 137" {
		t.Errorf("%q", got)
	}
	together(func(i int) []string { return []string{[]string{"start", "rm"}[i%2], "race"} })
	together(func(int) []string { return []string{"rm", "-f", "race"} })
	if got := e.Must("ps", "-aq"); got != "" {
		t.Errorf("after rm: %q", got)
	}
}

// TestKillMonitorDetached: ps -a tells the truth, nothing runs any more, and the name
// is free.
func TestKillMonitorDetached(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, rm := range []bool{false, true} {
		args := []string{harness.BB, "sleep", "987654"}
		if rm {
			args = append([]string{"--rm"}, args...)
		}
		detached(t, e, "victim", args...)
		killOne(t, e.Role("sbx-monitor"), nil)
		for end := time.Now().Add(harness.Slow(10 * time.Second)); len(e.Role("sbx-monitor")) > 0 && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond)
		}
		r := e.Run("ps", "-a", "--format", "{{.Names}} {{.State}} {{.Status}}")
		if rm {
			if r.Code != 0 || r.Stdout != "" {
				t.Errorf("one that was to be removed: %v", r)
			}
		} else {
			if !strings.HasPrefix(r.Stdout, "victim exited Exited (137)") || !strings.Contains(r.Stderr, "monitor was killed") {
				t.Errorf("%v", r)
			}
			e.Must("rm", "victim")
		}
		if left := e.FindArg("987654"); len(left) > 0 {
			t.Errorf("processes %v are left", left)
		}
		if got := e.Must("run", "--rm", "--name", "victim", harness.BB, "echo", "free"); got != "free\n" {
			t.Errorf("%q", got)
		}
	}
}

func TestLogs(t *testing.T) {
	e := harness.New(t, harness.BB)
	t.Run("a line of 16 MiB", func(t *testing.T) {
		e := e.In(t)
		const n = 16 << 20
		detached(t, e, "long", "--log-opt", "max-size=40m", harness.BB, "sh", "-c", fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; echo; echo end", n))
		e.Must("wait", "long")
		got := e.Must("logs", "long")
		if want := strings.Repeat("x", n) + "\nend\n"; sha256.Sum256([]byte(got)) != sha256.Sum256([]byte(want)) {
			t.Errorf("%d bytes, want %d", len(got), len(want))
		}
		if got := e.Must("logs", "--tail", "1", "long"); got != "end\n" {
			t.Errorf("tail: %d bytes", len(got))
		}
	})
	t.Run("every byte", func(t *testing.T) {
		e := e.In(t)
		const n = 3 << 20
		detached(t, e, "bytes", "--log-opt", "max-size=40m", harness.BB, "/probe", "flood", fmt.Sprint(n))
		e.Must("wait", "bytes")
		r := e.Run("logs", "bytes")
		for seed, got := range map[uint64]string{1: r.Stdout, 2: r.Stderr} {
			want, _ := probe.Sum(probe.Stream(n, seed))
			if sum, _ := probe.Sum(strings.NewReader(got)); sum != want {
				t.Errorf("stream %d: %s, want %s", seed, sum, want)
			}
		}
	})
	t.Run("bounded", func(t *testing.T) {
		e := e.In(t)
		detached(t, e, "bounded", "--log-opt", "max-size=64k", "--log-opt", "max-file=2", harness.BB, "sh", "-c", "seq 1 50000")
		e.Must("wait", "bounded")
		got := e.Must("logs", "bounded")
		if !strings.HasSuffix(got, "\n49999\n50000\n") || len(got) > 128<<10 {
			t.Errorf("%d bytes", len(got))
		}
	})
	t.Run("follow", func(t *testing.T) {
		e := e.In(t)
		detached(t, e, "follow", harness.BB, "sh", "-c", "echo first; while [ ! -e /go ]; do sleep 0.05; done; echo last")
		p := e.Start("logs", "-f", "-t", "follow")
		p.WaitOut("first", 20*time.Second)
		e.Must("exec", "follow", "touch", "/go")
		r := p.Wait(20 * time.Second)
		lines := strings.Split(r.Stdout, "\n")
		if r.Code != 0 || len(lines) != 3 || !strings.HasSuffix(lines[0], "Z first") || !strings.HasSuffix(lines[1], "Z last") {
			t.Errorf("%v", r)
		}
		stamp, _, _ := strings.Cut(lines[1], " ")
		if got := e.Must("logs", "--since", stamp, "follow"); got != "last\n" {
			t.Errorf("since %s: %q", stamp, got)
		}
		if got := e.Must("logs", "--until", stamp[:len(stamp)-4]+"Z", "follow"); !strings.HasPrefix(got, "first\n") {
			t.Errorf("until: %q", got)
		}
	})
	t.Run("closed outputs", func(t *testing.T) {
		e := e.In(t)
		detached(t, e, "closed", harness.BB, "sh", "-c", "echo said; exec >&- 2>&-; sleep 0.3; exit 5")
		if got := e.Must("wait", "closed"); got != "5\n" {
			t.Errorf("wait: %q", got)
		}
		if got := e.Must("logs", "closed"); got != "said\n" {
			t.Errorf("logs: %q", got)
		}
	})
	t.Run("none", func(t *testing.T) {
		e := e.In(t)
		detached(t, e, "none", "--log-driver", "none", harness.BB, "echo", "unheard")
		e.Must("wait", "none")
		e.Fails(1, []string{"not logged"}, "logs", "none")
	})
}

func TestExec(t *testing.T) {
	e := harness.New(t, harness.BB)
	detached(t, e, "box", "-e", "A=1", "-w", "/data", harness.BB, "sleep", "1000")
	for _, c := range []struct {
		code int
		out  string
		args []string
	}{
		{0, "", []string{"box", "true"}},
		{1, "", []string{"box", "false"}},
		{50, "", []string{"box", "/probe", "exit", "50"}},
		{127, "", []string{"box", "no-such-program"}},
		{126, "", []string{"box", "/etc/passwd"}},
		{128 + 15, "", []string{"box", "sh", "-c", "kill -15 $$"}},
		{0, "1 2 /data\n", []string{"-e", "B=2", "box", "sh", "-c", "echo $A $B $PWD"}},
		{0, "/etc\n", []string{"-w", "/etc", "box", "pwd"}},
		{0, "1000 1000 1000 1000 [1000 2000]\n", []string{"-u", "app", "box", "/probe", "ids"}},
		{0, "sleep\n", []string{"box", "cat", "/proc/1/comm"}},
		{0, "yes\n", []string{"-t", "box", "sh", "-c", "test -t 0 && test -t 1 && echo yes | tr -d '\\r'"}},
	} {
		r := e.Run(append([]string{"exec"}, c.args...)...)
		if out := strings.ReplaceAll(r.Stdout, "\r", ""); r.Code != c.code || c.code < 126 && out != c.out {
			t.Errorf("want %d %q: %v", c.code, c.out, r)
		}
	}
	// Arguments and environment are bytes, UTF-8 or not.
	if got := e.Must("exec", "-e", "X=\xfd", "box", "sh", "-c", `printf "$X$1"`, "sh", "\xff\xc3"); got != "\xfd\xff\xc3" {
		t.Errorf("%q", got)
	}
	if got := e.Must("run", "--rm", "--network", "none", "-e", "X=\xfd", harness.BB, "sh", "-c", `printf "$X$1"`, "sh", "\xff\xc3"); got != "\xfd\xff\xc3" {
		t.Errorf("run: %q", got)
	}
	e.Fails(1, []string{"not UTF-8"}, "exec", "-w", "/\xff", "box", "true")
	const n = 2 << 20
	r := e.RunInput(probe.Stream(n, 7), "exec", "-i", "box", "/probe", "stdin")
	want, _ := probe.Sum(probe.Stream(n, 7))
	if strings.TrimSpace(r.Stdout) != want {
		t.Errorf("stdin: want %s: %v", want, r)
	}
	if r := e.Run("exec", "-d", "box", "sh", "-c", "sleep 0.2; echo done >/tmp/done"); r.Code != 0 || r.Stdout != "" {
		t.Errorf("-d: %v", r)
	}
	until(t, e, "done", "exec", "box", "cat", "/tmp/done")
	// The rights are those of the sandbox's own command.
	own := e.Must("exec", "box", "grep", "-E", "^(Cap|Seccomp:|NoNewPrivs)", "/proc/1/status")
	if got := e.Must("exec", "box", "grep", "-E", "^(Cap|Seccomp:|NoNewPrivs)", "/proc/self/status"); got != own {
		t.Errorf("rights:\n%s, of pid 1:\n%s", got, own)
	}
	for _, ns := range []string{"mnt", "net", "ipc", "uts", "pid", "user", "cgroup"} {
		if got := e.Must("exec", "box", "sh", "-c", fmt.Sprintf("[ $(readlink /proc/1/ns/%[1]s) = $(readlink /proc/self/ns/%[1]s) ] && echo same", ns)); got != "same\n" {
			t.Errorf("another %s namespace", ns)
		}
	}
	detached(t, e, "host", "--network", "host", harness.BB, "sleep", "1000")
	if got := e.Must("exec", "host", "echo", "inside"); got != "inside\n" {
		t.Errorf("on the host's network: %q", got)
	}
	// It ends with the sandbox.
	p := e.Start("exec", "box", "sh", "-c", "echo ready; sleep 1000")
	p.WaitOut("ready", 20*time.Second)
	e.Must("stop", "-t", "0", "box")
	if r := p.Wait(20 * time.Second); r.Code != 137 {
		t.Errorf("%v", r)
	}
}

func TestAttach(t *testing.T) {
	e := harness.New(t, harness.BB)
	detached(t, e, "cat", "-i", harness.BB, "sh", "-c", "while read x; do echo got $x; [ $x = end ] && exit 6; done")
	in, w := io.Pipe()
	results := make(chan harness.Result, 2)
	go func() { results <- e.RunInput(in, "attach", "cat") }()
	look := e.Start("attach", "--no-stdin", "cat")
	// Neither tells when it is there: what was said before is in the log.
	for i := 0; !strings.Contains(look.Result().Stdout, "got"); i++ {
		fmt.Fprintf(w, "line%d\n", i)
		time.Sleep(20 * time.Millisecond)
	}
	fmt.Fprintln(w, "end")
	w.Close()
	r := <-results
	if r.Code != 6 || !strings.HasSuffix(r.Stdout, "got end\n") {
		t.Errorf("%v", r)
	}
	if r := look.Wait(20 * time.Second); r.Code != 6 || !strings.HasSuffix(r.Stdout, "got end\n") {
		t.Errorf("the other session: %v", r)
	}
	if got := e.Must("logs", "cat"); !strings.HasPrefix(got, "got line0\n") || !strings.HasSuffix(got, "got end\n") {
		t.Errorf("the log: %q", got)
	}
}

func TestRestartPolicy(t *testing.T) {
	e := harness.New(t, harness.BB)
	detached(t, e, "twice", "--restart", "on-failure:2", harness.BB, "sh", "-c", "echo run; exit 9")
	if got := e.Must("wait", "twice"); got != "9\n" {
		t.Errorf("wait: %q", got)
	}
	if got := e.Must("inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "twice"); got != "2 exited\n" {
		t.Errorf("%q", got)
	}
	if got := e.Must("logs", "twice"); got != "run\nrun\nrun\n" {
		t.Errorf("logs: %q", got)
	}
	detached(t, e, "always", "--restart", "always", harness.BB, "sh", "-c", "echo $$; sleep 0.2")
	until(t, e, "1\n1\n", "logs", "always")
	e.Must("stop", "-t", "0", "always")
	if got := e.Must("inspect", "-f", "{{.State.Status}}", "always"); got != "exited\n" {
		t.Errorf("%q", got)
	}
	// Once more, and the end of its command while it waits to be started again.
	e.Must("start", "always")
	e.Must("kill", "always")
	if got := e.Must("inspect", "-f", "{{.State.Status}}", "always"); got != "exited\n" {
		t.Errorf("after kill: %q", got)
	}
	e.Fails(125, []string{"--rm"}, "run", "-d", "--rm", "--restart", "always", harness.BB, "true")
	e.Fails(125, []string{"-d"}, "run", "--restart", "always", harness.BB, "true")
}

// TestSourcesOfRuns: a restart policy mounts what is there by then, also where a link
// leads now; one that was given later, what there was at the start, or says what to do.
func TestSourcesOfRuns(t *testing.T) {
	e := harness.New(t, harness.BB)
	dir := e.Dir()
	put := func(n string) {
		t.Helper()
		if err := errors.Join(
			os.MkdirAll(filepath.Join(dir, n), 0o755), os.WriteFile(filepath.Join(dir, n, "n"), []byte(n+"\n"), 0o644),
			os.Symlink(n, filepath.Join(dir, "link.new")), os.Rename(filepath.Join(dir, "link.new"), filepath.Join(dir, "link")),
			os.WriteFile(filepath.Join(dir, "file.new"), []byte(n+"\n"), 0o644), os.Rename(filepath.Join(dir, "file.new"), filepath.Join(dir, "file")),
		); err != nil {
			t.Fatal(err)
		}
	}
	end := func(name string) {
		t.Helper()
		pid, err := strconv.Atoi(strings.TrimSpace(e.Must("inspect", "-f", "{{.State.Pid}}", name)))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	link, file := filepath.Join(dir, "link"), filepath.Join(dir, "file")
	start := func(name string, flags ...string) {
		t.Helper()
		detached(t, e, name, slices.Concat(flags, []string{harness.BB, "sh", "-c", "cat /x/n /f; exec sleep 1000"})...)
	}
	put("one")
	start("policy", "--restart", "always", "-v", link+":/x", "-v", file+":/f")
	start("later", "-v", link+":/x")
	start("replaced", "-v", file+":/f")
	e.Must("update", "--restart", "always", "later", "replaced")
	for name, want := range map[string]string{"policy": "one\none\n", "later": "one\n", "replaced": "one\n"} {
		until(t, e, want, "logs", name)
	}
	put("two")
	end("policy")
	end("later")
	end("replaced")
	until(t, e, "one\none\ntwo\ntwo\n", "logs", "policy")
	until(t, e, "one\none\n", "logs", "later")
	until(t, e, "sbx restart replaced", "inspect", "-f", "{{.State.Error}}", "replaced")
	for _, name := range []string{"later", "replaced"} {
		e.Must("restart", "-t", "0", name)
		until(t, e, "two\n", "logs", name)
	}
}

func TestHealth(t *testing.T) {
	e := harness.New(t, harness.BB)
	detached(t, e, "ill", "--health-cmd", "echo looked; test -e /well", "--health-interval", "100ms", "--health-retries", "2", harness.BB, "sleep", "1000")
	until(t, e, "unhealthy", "inspect", "-f", "{{.State.Health.Status}}", "ill")
	if got := e.Must("inspect", "-f", "{{(index .State.Health.Log 0).ExitCode}} {{(index .State.Health.Log 0).Output}}", "ill"); got != "1 looked\n\n" {
		t.Errorf("log: %q", got)
	}
	e.Must("exec", "ill", "touch", "/well")
	until(t, e, "(healthy)", "ps")
}

// TestImageOfSandbox: an image stays as long as a sandbox that was made of it.
func TestImageOfSandbox(t *testing.T) {
	e := harness.New(t, harness.BB)
	detached(t, e, "user", harness.BB, "true")
	e.Must("wait", "user")
	e.Fails(125, []string{"in use"}, "rmi", "-f", harness.BB)
	e.Must("start", "user")
}

// TestStartedAgain: what was written is there in the next run, whatever is below it.
func TestStartedAgain(t *testing.T) {
	e := harness.New(t, harness.BB)
	for i, args := range [][]string{
		{"--storage-driver", "native"}, {"--storage-driver", "fuse"}, {"--storage-driver", "copy"},
		{"--userns", "single"}, {"--userns", "keep-id"}, {"--init"}, {"--link-driver", "packet"},
	} {
		name := fmt.Sprintf("again%d", i)
		detached(t, e, name, append(args, "-u", "0", harness.BB, "sh", "-c", "cat /etc/kept; echo more >>/etc/kept; exec sleep 1000")...)
		kept := ""
		for run := range 3 {
			if run > 0 {
				e.Must("restart", "-t", "0", name)
			}
			kept += "more\n"
			until(t, e, kept, "exec", name, "sh", "-c", "cat /etc/kept || :") // it has come to its sleep
		}
		until(t, e, "more\nmore\nmore\n", "logs", name)
		if got := e.Must("logs", name); got != "more\nmore\nmore\n" { // the first run has nothing to show
			t.Errorf("logs of %v: %q", args, got)
		}
		e.Must("rm", "-f", name)
	}
}

func TestAnonymousVolumes(t *testing.T) {
	e := harness.New(t, harness.App)
	detached(t, e, "vol", "--entrypoint", "/bin/sh", "-u", "0", harness.App, "-c", "echo more >>/data/log; cat /data/log")
	e.Must("wait", "vol")
	e.Must("start", "-a", "vol")
	if got := e.Must("logs", "--tail", "2", "vol"); got != "more\nmore\n" {
		t.Errorf("the second run: %q", got)
	}
	name := strings.TrimSpace(e.Must("inspect", "-f", "{{(index .Mounts 0).Name}}", "vol"))
	e.Fails(1, []string{"in use"}, "volume", "rm", name)
	e.Must("rm", "-v", "vol")
	if got := e.Must("volume", "ls", "-q"); strings.Contains(got, name) {
		t.Errorf("volume ls: %q", got)
	}
}

func TestVolumeCommands(t *testing.T) {
	e := harness.New(t, harness.BB)
	e.AtEnd("volume", "rm", "-f", "life-vol")
	e.Must("volume", "create", "--label", "a=b", "life-vol")
	detached(t, e, "holder", "-v", "life-vol:/v", harness.BB, "sh", "-c", "echo kept >/v/file")
	e.Must("wait", "holder")
	e.Fails(1, []string{"in use", "sbx rm"}, "volume", "rm", "life-vol")
	e.Must("rm", "-v", "holder")
	if got := e.Must("volume", "ls", "--filter", "label=a=b", "--format", "{{.Name}}"); got != "life-vol\n" {
		t.Errorf("ls: %q", got)
	}
	if got := e.Must("run", "--rm", "-v", "life-vol:/v", harness.BB, "cat", "/v/file"); got != "kept\n" {
		t.Errorf("%q", got)
	}
	if got := e.Must("volume", "inspect", "-f", "{{.Labels.a}}", "life-vol"); got != "b\n" {
		t.Errorf("inspect: %q", got)
	}
	e.Must("volume", "rm", "life-vol")
	e.Fails(1, []string{"no such volume"}, "volume", "rm", "life-vol")
}

func TestTop(t *testing.T) {
	e := harness.New(t, harness.BB)
	detached(t, e, "top", harness.BB, "sh", "-c", "sleep 87654321 & sleep 87654322")
	p := e.Start("exec", "top", "sh", "-c", "echo ready; sleep 87654323")
	p.WaitOut("ready", 20*time.Second)
	for _, want := range []string{"sleep 87654321", "sleep 87654322", "sleep 87654323"} {
		until(t, e, want, "top", "top")
	}
	got := e.Must("top", "top")
	if !strings.HasPrefix(got, "UID ") {
		t.Errorf("%s", got)
	}
	if strings.Contains(got, "sbx-monitor") {
		t.Errorf("what is ours is in\n%s", got)
	}
	with := [][]string{{"-o", "pid,args"}}
	if exec.Command("ps", "-ef").Run() == nil { // it does not work in User Mode Linux
		with = append(with, []string{"-ef"}, []string{"aux"}, []string{"axf"})
	}
	for _, args := range with { // the host's ps
		got := e.Must(append([]string{"top", "top"}, args...)...)
		if strings.Count(got, "\n") != 4 || !strings.Contains(got, "PID") || !strings.Contains(got, "sleep 87654323") {
			t.Errorf("%v: %s", args, got)
		}
	}
	if got := e.Must("top", "top", "-o", "comm="); strings.Count(got, "sleep\n") != 3 {
		t.Errorf("%q", got)
	}
	e.Fails(1, []string{"ps --nosuch"}, "top", "top", "--nosuch")
	e.Must("kill", "top")
	p.Wait(20 * time.Second)
	e.Fails(1, []string{"not running"}, "top", "top")
}

func TestSystemPrune(t *testing.T) {
	e := harness.New(t, harness.BB)
	detached(t, e, "stays", harness.BB, "sleep", "1000")
	detached(t, e, "goes", harness.BB, "true")
	e.Must("wait", "goes")
	e.Fails(125, []string{"not confirmed"}, "system", "prune")
	if got := e.Must("system", "prune", "-f", "--volumes"); !strings.HasPrefix(got, "Deleted Containers:\n") {
		t.Errorf("%q", got)
	}
	if got := e.Must("ps", "-a", "--format", "{{.Names}}"); got != "stays\n" {
		t.Errorf("%q", got)
	}
}

// TestLeaveTerminal: the keys leave a sandbox, and attach finds it again.
func TestLeaveTerminal(t *testing.T) {
	e := harness.New(t, harness.BB)
	e.AtEnd("rm", "-f", "term")
	type step struct{ in, want string }
	talk := func(con io.ReadWriter, steps ...step) {
		t.Helper()
		for _, s := range steps {
			if _, err := io.WriteString(con, s.in); err != nil {
				t.Fatal(err)
			}
			if s.want != "" {
				expect(t, con, s.want)
			}
		}
	}
	con, p := terminal(t, e, "run", "-it", "--name", "term", harness.BB, "sh")
	talk(con, step{"x=$((40+2)); echo is-$x\n", "is-42"}, step{"\x10\x11", ""})
	if r := p.Wait(20 * time.Second); r.Code != 0 {
		t.Errorf("left: %v", r)
	}
	if got := status(e, "term"); got != "running 0" {
		t.Errorf("%q", got)
	}
	con, p = terminal(t, e, "exec", "-it", "term", "sh")
	talk(con, step{"stty size\n", "40 100"}, step{"exit 5\n", ""})
	if r := p.Wait(20 * time.Second); r.Code != 5 {
		t.Errorf("exec: %v", r)
	}
	con, p = terminal(t, e, "attach", "--detach-keys", "ctrl-x,x", "term")
	talk(con, step{"echo still-$((x+1))\n", "still-43"}, step{"\x18x", ""})
	if r := p.Wait(20 * time.Second); r.Code != 0 {
		t.Errorf("left again: %v", r)
	}
	con, p = terminal(t, e, "attach", "term")
	talk(con, step{"exit 6\n", ""})
	if r := p.Wait(20 * time.Second); r.Code != 6 {
		t.Errorf("the end: %v", r)
	}
	con, p = terminal(t, e, "start", "-ai", "--detach-keys", "ctrl-x,x", "term")
	talk(con, step{"echo again-$((40+4))\n", "again-44"}, step{"\x18x", ""})
	if r := p.Wait(20 * time.Second); r.Code != 0 || status(e, "term") != "running 0" {
		t.Errorf("started and left: %v, %s", r, status(e, "term"))
	}
	con, p = terminal(t, e, "attach", "term")
	talk(con, step{"exit 9\n", ""})
	if r := p.Wait(20 * time.Second); r.Code != 9 {
		t.Errorf("its second end: %v", r)
	}
	if got := e.Must("logs", "term"); !strings.Contains(got, "is-42") || !strings.Contains(got, "still-43") {
		t.Errorf("logs: %q", got)
	}
}
