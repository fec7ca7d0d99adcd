package security

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// TestOtherUser: another user of the host can read, list, connect to and signal nothing
// of a sandbox and of the processes around it. The other one is a subordinate id of
// ours, which outside is a user like any.
func TestOtherUser(t *testing.T) {
	e := harness.New(t, harness.BB)
	e.AtEnd("rm", "-f", "box")
	// What somebody has made by hand is closed before anything is put there.
	must(t, os.Chmod(e.Data(), 0o755))
	must(t, os.MkdirAll(filepath.Join(e.Runtime, "sbx"), 0o755))
	must(t, os.Chmod(filepath.Join(e.Runtime, "sbx"), 0o755)) // loading the image has made it
	id := strings.TrimSpace(e.Must("run", "-d", "--name", "box", harness.BB, "sleep", "1000"))
	self, err := os.Executable()
	must(t, err)
	probe := filepath.Join(e.Dir(), "probe")
	data, err := os.ReadFile(self)
	must(t, err)
	must(t, os.WriteFile(probe, data, 0o755))
	// The runtime directory of a session is closed by its maker; ours must be without.
	must(t, os.Chmod(e.Runtime, 0o755))
	as := func(other bool, try []string) string {
		line := append([]string{probe, "try"}, try...)
		if other {
			line = append([]string{"unshare", "--user", "--map-auto", "--map-root-user", "setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"}, line...)
		}
		out, err := exec.Command(line[0], line[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", line, err, out)
		}
		return lastLine(string(out))
	}
	for _, dir := range []string{e.Data(), filepath.Join(e.Runtime, "sbx")} {
		st, err := os.Stat(dir)
		must(t, err)
		if st.Mode().Perm() != 0o700 {
			t.Errorf("%s has the mode %v", dir, st.Mode())
		}
	}
	box := filepath.Join(e.Data(), "containers", id)
	socket := filepath.Join(e.Runtime, "sbx/box", id[:12]+".sock")
	netd := filepath.Join(e.Runtime, "sbx/net/default")
	tries := map[string][]string{
		"list sandboxes":            {"list", filepath.Dir(box)},
		"list a sandbox":            {"list", box},
		"read its configuration":    {"read", filepath.Join(box, "config.json")},
		"read its state":            {"read", filepath.Join(box, "state.json")},
		"list its files":            {"list", filepath.Join(box, "upper")},
		"list the sockets":          {"list", filepath.Dir(socket)},
		"connect to the monitor":    {"unix", socket},
		"list the networks":         {"list", filepath.Dir(netd)},
		"read the network's state":  {"read", filepath.Join(netd, "state.json")},
		"read the network's log":    {"read", filepath.Join(netd, "log")},
		"create in the runtime dir": {"create", filepath.Join(e.Runtime, "sbx/evil")},
	}
	pids := map[string]string{"workload": strings.TrimSpace(e.Must("inspect", "-f", "{{.State.Pid}}", "box"))}
	for _, role := range []string{"sbx-monitor", "sbx-netd"} {
		found := e.Role(role)
		if len(found) != 1 {
			t.Fatalf("%d processes are %s", len(found), role)
		}
		pids[role] = fmt.Sprint(found[0])
	}
	for who, pid := range pids {
		for _, what := range []string{"attach", "vm_read", "proc_mem", "proc_root", "proc_fd", "prlimit"} {
			tries[what+" "+who] = []string{what, pid}
		}
		tries["environment of "+who] = []string{"read", "/proc/" + pid + "/environ"}
		if got := as(true, []string{"kill", pid}); got != "EPERM" {
			t.Errorf("kill %s: %s", who, got)
		}
	}
	reached := 0
	for name, try := range tries {
		if got := as(true, try); got != "EACCES" && got != "EPERM" {
			t.Errorf("%s: %s", name, got)
		}
		if !strings.Contains(name, " sbx-") && !strings.HasSuffix(name, "workload") && as(false, try) == "ok" {
			reached++
		}
	}
	if reached < 9 { // empty directories, and sockets of another type, are not reached
		t.Errorf("its own user reaches %d of these", reached)
	}
	if r := e.Run("exec", "box", "true"); r.Code != 0 {
		t.Errorf("it does not live: %v", r)
	}
	must(t, os.Remove(filepath.Join(e.Runtime, "sbx/evil"))) // that its own user has made
}
