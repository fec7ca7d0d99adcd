package security

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// TestMonitor looks from outside at what a sandbox's monitor has shed, and that the
// workload has what it had, in its first run, in another one, and beside it.
func TestMonitor(t *testing.T) {
	e := harness.New(t, harness.BB)
	o := newOutside(t, e)
	must(t, os.Mkdir(filepath.Join(e.Dir(), "shared"), 0o755))
	const all = "files calls"
	cases := []struct {
		name  string
		flags []string
		shed  string
	}{
		{"plain", nil, all},
		{"none", []string{"--network", "none", "-t"}, all},
		{"files", []string{"-v", "data:/data", "-v", filepath.Join(e.Dir(), "shared") + ":/shared:ro", "-p", "127.0.0.1::80"}, all},
		{"again", []string{"--restart", "on-failure:3", "-v", "data:/data"}, all},
		{"again-files", []string{"--restart", "on-failure:3", "-v", filepath.Join(e.Dir(), "shared") + ":/shared"}, "calls"},
		{"nnp", []string{"--security-opt", "no-new-privileges"}, all},
		{"unconfined", []string{"--security-opt", "seccomp=unconfined", "--security-opt", "no-new-privileges"}, "files"},
		{"every-cap", []string{"--cap-add", "ALL"}, "files calls"},
	}
	for _, tc := range cases {
		e.AtEnd("rm", "-f", tc.name)
		// The first run of those that are started again ends at once.
		script := "exec sleep 1000"
		if slices.Contains(tc.flags, "--restart") {
			script = "test -e /again && exec sleep 1000; touch /again; exit 1"
		}
		e.Must(slices.Concat([]string{"run", "-d", "--name", tc.name}, tc.flags, []string{harness.BB, "sh", "-c", script})...)
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			e := e.In(t)
			inspect := func(field string) string { return strings.TrimSpace(e.Must("inspect", "-f", "{{"+field+"}}", tc.name)) }
			pid := inspect(".State.Monitor.Pid")
			var status map[string]string
			harness.Eventually(t, 20*time.Second, func() error {
				comm, err := os.ReadFile("/proc/" + inspect(".State.Pid") + "/comm")
				if err != nil || string(comm) != "sleep\n" {
					return fmt.Errorf("pid 1 is %q, %v", comm, err)
				}
				status = statusOf(t, pid)
				return nil
			})
			shed := map[string]bool{
				"files": filesShed(t, pid, o.canary),
				"calls": status["Seccomp"] == "2",
			}
			kept := inspect(".State.Monitor.Kept")
			for stage, is := range shed {
				if want := strings.Contains(tc.shed, stage); is != want || strings.Contains(kept, stage+":") == want {
					t.Errorf("%s is shed: %v; kept %q", stage, is, kept)
				}
			}
			// The workload, and what is executed beside it, have what they had.
			one := statusOf(t, inspect(".State.Pid"))
			beside := parseStatus(e.Must("exec", tc.name, "cat", "/proc/self/status"))
			for _, key := range []string{"CapBnd", "CapEff", "CapInh", "CapAmb", "NoNewPrivs", "Seccomp"} {
				if one[key] != beside[key] {
					t.Errorf("%s of the workload %s, of what is executed beside it %s", key, one[key], beside[key])
				}
			}
			if want := "00000000a80425fb"; one["CapBnd"] != want && tc.name != "every-cap" {
				t.Errorf("the workload has %s, not %s", one["CapBnd"], want)
			}
			asked := slices.Contains(tc.flags, "no-new-privileges")
			if (one["NoNewPrivs"] == "1") != asked || (status["NoNewPrivs"] == "1") != (asked && shed["calls"]) {
				t.Errorf("no_new_privs of the monitor %s, of the workload %s", status["NoNewPrivs"], one["NoNewPrivs"])
			}
		})
	}
	o.unchanged(t)
}

// filesShed says that nothing of a process leads to a file of the user's.
func filesShed(t *testing.T, pid, canary string) bool {
	t.Helper()
	proc := "/proc/" + pid
	ways := []string{proc + "/root", proc + "/cwd"}
	fds, err := os.ReadDir(proc + "/fd")
	must(t, err)
	for _, fd := range fds {
		ways = append(ways, proc+"/fd/"+fd.Name())
	}
	for _, w := range ways {
		st, err := os.Stat(w)
		if err != nil || !st.IsDir() {
			continue
		}
		d, err := unix.Open(w, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		f, err := unix.Openat2(d, canary, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
		must(t, unix.Close(d))
		if err == nil {
			must(t, unix.Close(f))
			return false
		}
	}
	mounts, err := os.ReadFile(proc + "/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		if at := strings.Fields(line)[4]; at != "/" && strings.HasPrefix(canary, at+"/") {
			return false
		}
	}
	return true
}

func statusOf(t *testing.T, pid string) map[string]string {
	t.Helper()
	b, err := os.ReadFile("/proc/" + pid + "/status")
	must(t, err)
	return parseStatus(string(b))
}

func parseStatus(text string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		m[key] = strings.TrimSpace(value)
	}
	return m
}
