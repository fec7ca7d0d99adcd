package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// TestEvents compares what a life leaves in the journal, and what a follower sees of
// it, with what Docker says.
func TestEvents(t *testing.T) {
	e := harness.New(t, harness.BB)
	since := time.Now().Format(time.RFC3339Nano)
	// The signal is caught when it says so.
	loop := []string{harness.BB, "sh", "-c", "trap 'exit 3' TERM; trap : USR1; echo up; while :; do sleep 0.1; done"}
	up := func(name string, runs int) { until(t, e, strings.Repeat("up\n", runs), "logs", name) }
	const format = "{{.Type}} {{.Action}}{{with .Actor.Attributes.name}} {{.}}{{end}}{{with .Actor.Attributes.signal}} {{.}}{{end}}{{with .Actor.Attributes.exitCode}} {{.}}{{end}}"
	live := e.Start("events", "--since", since, "--format", format)
	id := strings.TrimSpace(detached(t, e, "web", append([]string{"-l", "tier=front", "-v", "store:/d"}, loop...)...))
	up("web", 1)
	e.Fails(127, nil, "exec", "web", "/nope")
	e.Must("kill", "-s", "USR1", "web")
	e.Must("restart", "web")
	up("web", 2)
	e.Must("rename", "web", "www")
	e.Must("stop", "www")
	e.Must("rm", "www")
	e.Must("volume", "rm", "store")
	e.Must(append([]string{"run", "--rm", "-d", "--name", "gone", "--network", "none"}, loop...)...)
	up("gone", 1)
	e.Must("stop", "gone")
	e.Must("tag", harness.BB, "x:1")
	e.Must("rmi", "x:1")
	want := `container create web
volume create
volume mount
network connect bridge
container start web
container exec_create: /nope web
container kill web 10
container kill web 15
container die web 3
network disconnect bridge
volume unmount
container stop web
volume mount
network connect bridge
container start web
container restart web
container rename www
container kill www 15
container die www 3
network disconnect bridge
volume unmount
container stop www
container destroy www
volume destroy
container create gone
network connect none
container start gone
container kill gone 15
container die gone 3
network disconnect none
container stop gone
container destroy gone
image tag x:1
image untag x:1
`
	if got := e.Must("events", "--since", since, "--until", "0s", "--format", format); got != want {
		t.Errorf("the journal:\n%s", got)
	}
	live.WaitOut("image untag", 10*time.Second)
	live.Signal(unix.SIGINT)
	if r := live.Wait(10 * time.Second); r.Stdout != want || r.Stderr != "" || r.Code != 130 {
		t.Errorf("the follower, with status %d:\n%s", r.Code, r.Stdout)
	}
	for filter, lines := range map[string]int{
		"container=" + id[:12]: 14, "container=gone": 6, "event=die": 3, "event=exec_create": 1, "type=network": 6, "network=bridge": 4,
		"volume=store": 6, "image=" + harness.BB: 20, "image=x": 2, "label=tier=front": 14, "label=tier=back": 0, "scope=local": 34,
	} {
		if got := e.Must("events", "--since", since, "--until", "0s", "--filter", filter); strings.Count(got, "\n") != lines {
			t.Errorf("--filter %s: %d lines, want %d\n%s", filter, strings.Count(got, "\n"), lines, got)
		}
	}
	got := e.Must("events", "--since", since, "--until", "0s", "--filter", "event=die", "--filter", "container=gone", "--format", "json")
	if !strings.HasPrefix(got, `{"status":"die","id":"`) || !strings.Contains(got, `"Actor":{"ID":"`) || !strings.Contains(got, `"Attributes":{"exitCode":"3","image":"`+harness.BB+`","name":"gone"}},"scope":"local","time":`) {
		t.Errorf("json: %s", got)
	}
	if got := e.Must("events", "--since", since, "--until", "0s", "--filter", "event=rename"); !strings.HasSuffix(got, fmt.Sprintf(" container rename %s (image=%s, name=www, oldName=/web, tier=front)\n", id, harness.BB)) {
		t.Errorf("as text: %s", got)
	}
	e.Fails(125, []string{"no filter", "colour"}, "events", "--filter", "colour=red")
	e.Fails(125, []string{"is no time"}, "events", "--since", "yesterday")
	e.Fails(125, []string{"Bogus"}, "events", "--format", "{{.Bogus}}")
}

// TestEventsOfKilledMonitor: who finds it says that it has ended.
func TestEventsOfKilledMonitor(t *testing.T) {
	e := harness.New(t)
	id := detached(t, e, "orphan", "demo")
	for _, pid := range e.Role("sbx-monitor") {
		unix.Kill(pid, unix.SIGKILL)
	}
	until(t, e, "exited 137", "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "orphan")
	if got := e.Must("events", "--since", "1m", "--until", "0s", "--filter", "container="+id, "--filter", "event=die", "--format", "{{.Actor.Attributes.exitCode}}"); got != "137\n" {
		t.Errorf("die: %q", got)
	}
}
