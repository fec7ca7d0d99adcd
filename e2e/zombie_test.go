package e2e

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"golang.org/x/sys/unix"
)

// TestNobodyReaps: when its monitor is killed, the program of a health check becomes a child
// of the machine's first process or, as here, of one that collects nobody while it waits for
// rm, as the first process of many a container. The sandbox's pid 1 waits for it for ever.
func TestNobodyReaps(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, init := range []string{"--init", "--init=false"} {
		e.Must("run", "-d", init, "--name", "victim", "--network", "none", "--health-cmd", "touch /checked; exec sleep 1000",
			"--health-interval", "10ms", harness.BB, "sleep", "1000")
		e.AtEnd("rm", "-f", "victim")
		e.Must("exec", "victim", "sh", "-c", "until [ -e /checked ]; do sleep 0.01; done")
		monitor, err := strconv.Atoi(strings.TrimSpace(e.Must("inspect", "-f", "{{.State.Monitor.Pid}}", "victim")))
		if err != nil || monitor <= 1 {
			t.Fatalf("monitor %d: %v", monitor, err)
		}
		if err := unix.Kill(monitor, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		e.Must("rm", "-f", "victim")
		t.Logf("%s: %v", init, time.Since(start))
	}
}
