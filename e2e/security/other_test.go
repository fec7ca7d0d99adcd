package security

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

// other is another user of the host. Where root has started the tests it is a second
// account; else it is one of our subordinate ids, which outside is a user like any, but has
// our user namespace around it.
type other struct {
	socket string // of the account's process
	probe  string // a copy that a subordinate id can execute
}

func newOther(t *testing.T, e *harness.Env) *other {
	if socket := os.Getenv("SBX_TEST_OTHER"); socket != "" {
		return &other{socket: socket}
	}
	t.Log("the other user is a subordinate id: a second account needs root (scripts/setup.sh and scripts/as-user)")
	self, err := os.Executable()
	must(t, err)
	o := &other{probe: filepath.Join(e.Dir(), "probe")}
	data, err := os.ReadFile(self)
	must(t, err)
	must(t, os.WriteFile(o.probe, data, 0o755))
	return o
}

// run runs a command as the other user; "probe" is this program. It returns what it has
// written and its status.
func (o *other) run(t *testing.T, env []string, args ...string) (string, int) {
	t.Helper()
	if o.socket != "" {
		out, code, err := probe.Command(o.socket, env, args...)
		must(t, err)
		return out, code
	}
	line := slices.Concat([]string{"unshare", "--user", "--map-auto", "--map-root-user", "setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"},
		[]string{"env", "-i", "PATH=" + os.Getenv("PATH"), "TMPDIR=/var/tmp", "HOME=/nonexistent"}, env, args)
	if i := slices.Index(line, "probe"); i > 0 {
		line[i] = o.probe
	}
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// must is run with success.
func (o *other) must(t *testing.T, env []string, args ...string) string {
	t.Helper()
	out, code := o.run(t, env, args...)
	if code != 0 {
		t.Fatalf("%v as the other user: status %d: %s", args, code, out)
	}
	return strings.TrimSpace(out)
}

// try makes an attempt of package probe.
func (o *other) try(t *testing.T, try ...string) string {
	t.Helper()
	return lastLine(o.must(t, nil, append([]string{"probe", "try"}, try...)...))
}

// home makes a directory of the other user's, and returns the environment of his sbx.
func (o *other) home(t *testing.T, e *harness.Env) []string {
	t.Helper()
	shared := filepath.Join(e.Dir(), "shared")
	must(t, os.Mkdir(shared, 0o700))
	must(t, os.Chmod(shared, 0o777|os.ModeSticky))
	dir := filepath.Join(shared, "other")
	o.must(t, nil, "mkdir", "-m", "700", dir, dir+"/data", dir+"/run", dir+"/tmp")
	t.Cleanup(func() { o.must(t, nil, "rm", "-rf", dir) })
	return []string{"XDG_DATA_HOME=" + dir + "/data", "XDG_RUNTIME_DIR=" + dir + "/run", "TMPDIR=" + dir + "/tmp", "SBX_NETD_LINGER=0s"}
}
