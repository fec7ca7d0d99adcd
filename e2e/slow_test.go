package e2e

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

// startPiped starts sbx with a line as its input, and returns the reading ends of its
// outputs, which nobody reads yet.
func startPiped(t *testing.T, e *harness.Env, args ...string) (p *harness.Proc, outputs [2]*os.File) {
	t.Helper()
	var theirs [2]*os.File
	for i := range outputs {
		var err error
		if outputs[i], theirs[i], err = os.Pipe(); err != nil {
			t.Fatal(err)
		}
		defer theirs[i].Close()
	}
	p = e.StartWith(func(cmd *exec.Cmd) {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("go\n"), theirs[0], theirs[1]
	}, args...)
	t.Cleanup(func() { outputs[0].Close(); outputs[1].Close() })
	return p, outputs
}

// slowly reads to the end, much slower than it is written, and for two seconds not at all.
func slowly(r io.Reader) []byte {
	var got bytes.Buffer
	for paused := false; ; time.Sleep(5 * time.Millisecond) {
		if got.Len() > 512<<10 && !paused {
			paused = true
			time.Sleep(2 * time.Second)
		}
		if _, err := io.CopyN(&got, r, 16<<10); err != nil {
			return got.Bytes()
		}
	}
}

// TestSlowReader: whoever reads a workload's output, in whatever way, gets every byte in
// order, however slow.
func TestSlowReader(t *testing.T) {
	e := harness.New(t, harness.BB)
	const n = 2 << 20
	flood := []string{"sh", "-c", "read x; exec /probe flood " + fmt.Sprint(n)}
	with := func(args ...string) []string { return append(append(args, harness.BB), flood...) }
	for _, name := range []string{"attached", "started"} {
		e.Must(with("create", "-i", "--name", name, "--network", "none")...)
		e.AtEnd("rm", "-f", name)
	}
	e.Must("start", "attached")
	detached(t, e, "followed", "--network", "none", "--log-opt", "max-size=40m", harness.BB, "sh", "-c", flood[2])
	detached(t, e, "beside", "--network", "none", harness.BB, "sleep", "1000")
	e.AtEnd("rm", "-f", "kept")
	var all sync.WaitGroup
	for _, args := range [][]string{
		with("run", "-i", "--rm", "--network", "none"),
		with("run", "-i", "--name", "kept", "--network", "none"),
		{"start", "-ai", "started"},
		{"attach", "attached"},
		{"logs", "-f", "followed"},
		append([]string{"exec", "-i", "beside"}, flood...),
	} {
		p, outputs := startPiped(t, e, args...)
		for i, r := range outputs {
			all.Go(func() {
				got := slowly(r)
				want, _ := io.ReadAll(probe.Stream(n, uint64(i+1)))
				if !bytes.Equal(got, want) {
					t.Errorf("%v: output %d: %d bytes of %d, and so far the same: %v", args, i+1, len(got), n, bytes.HasPrefix(want, got))
				}
			})
		}
		all.Go(func() {
			if r := p.Wait(time.Minute); r.Code != 0 {
				t.Errorf("%v", r)
			}
		})
	}
	all.Wait()
}

// TestNeverRead: nobody has to read for a sandbox to be stopped, and who is not the one
// for whom it runs does not keep its workload.
func TestNeverRead(t *testing.T) {
	e := harness.New(t, harness.BB)
	const full = 1 << 20 // more than all the pipes on the way hold
	flood := []string{harness.BB, "sh", "-c", fmt.Sprintf("read x; /probe flood %d; exit 3", full)}
	e.AtEnd("rm", "-f", "front")
	e.AtEnd("rm", "-f", "looked")
	front, _ := startPiped(t, e, append([]string{"run", "-i", "--name", "front", "--network", "none"}, flood...)...)
	harness.Eventually(t, 20*time.Second, func() error { // until nobody takes more
		if r := e.Run("logs", "front"); len(r.Stdout)+len(r.Stderr) < 100<<10 { // it may not be there yet
			return fmt.Errorf("%d bytes: status %d", len(r.Stdout), r.Code)
		}
		return nil
	})
	e.Must("stop", "-t", "0", "front")
	if got := status(e, "front"); got != "exited 137" {
		t.Errorf("%q", got)
	}
	front.Signal(os.Kill) // it still writes to nobody
	e.Must(append([]string{"create", "-i", "--name", "looked", "--network", "none"}, flood...)...)
	e.Must("start", "looked")
	startPiped(t, e, "attach", "looked")
	if testing.Short() { // the patience is 10 seconds
		e.Must("stop", "-t", "0", "looked")
	} else if got := e.Must("wait", "looked"); got != "3\n" {
		t.Errorf("wait: %q", got)
	}
}
