// Package vm tests sbx where the build machine cannot: in a login session of a stock
// Debian with systemd, the unified cgroup tree and its kernel, as a user without
// sudo. scripts/vm-guest.sh runs it once with and once without linger; make test-vm
// boots the machine.
package vm

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

// variant is how dev has logged in: linger or no-linger.
var variant = os.Getenv("SBX_TEST_VM")

func TestMain(m *testing.M) {
	if variant == "" && !probe.IsProbe() {
		fmt.Fprintln(os.Stderr, "e2e/vm needs a virtual machine: make test-vm")
		os.Exit(1)
	}
	os.Exit(harness.Main(m))
}

// session returns an environment with the runtime directory of the login session.
func session(t *testing.T, images ...string) *harness.Env {
	t.Helper()
	e := harness.New(t, images...)
	e.Setenv("XDG_RUNTIME_DIR=" + os.Getenv("XDG_RUNTIME_DIR"))
	return e
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func kernel(t *testing.T) string {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	return unix.ByteSliceToString(u.Release[:])
}

// TestMachine: the ring tests what it says it does.
func TestMachine(t *testing.T) {
	uid := os.Getuid()
	if got := read(t, "/proc/self/cgroup"); !strings.HasPrefix(got, fmt.Sprintf("0::/user.slice/user-%d.slice/session-", uid)) {
		t.Errorf("not in a login session of the unified tree: %q", got)
	}
	if want := fmt.Sprintf("/run/user/%d", uid); os.Getenv("XDG_RUNTIME_DIR") != want {
		t.Errorf("XDG_RUNTIME_DIR=%s, want %s", os.Getenv("XDG_RUNTIME_DIR"), want)
	}
	if _, err := os.Stat(filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "systemd/private")); err != nil {
		t.Errorf("the user's systemd: %v", err)
	}
	for _, dev := range []string{"/dev/net/tun", "/dev/fuse"} {
		if fi, err := os.Stat(dev); err != nil || fi.Mode().Perm() != 0o666 {
			t.Errorf("%s: %v, %v", dev, fi, err)
		}
	}
	if k := kernel(t); !strings.HasPrefix(k, "6.1.") {
		t.Errorf("kernel %s, want that of Debian 12", k)
	}
	if err := unix.Access("/usr/bin/sudo", unix.X_OK); err == nil {
		t.Error("there is a sudo")
	}
}

// check is a line of sbx doctor.
type check struct {
	Name, Status, Detail, Fix string
	Data                      json.RawMessage
}

func diagnose(t *testing.T, e *harness.Env) map[string]check {
	t.Helper()
	var report struct {
		OK     bool
		Checks []check
	}
	if err := json.Unmarshal([]byte(e.Must("doctor", "--format", "json")), &report); err != nil {
		t.Fatal(err)
	}
	if !report.OK {
		t.Error("sandboxes cannot run here")
	}
	checks := map[string]check{}
	for _, c := range report.Checks {
		checks[c.Name] = c
	}
	return checks
}

// TestDoctor: a stock Debian lacks ping sockets, two controllers and, as it may be,
// linger. User Mode Linux has no Landlock.
func TestDoctor(t *testing.T) {
	checks := diagnose(t, session(t))
	lacks := map[string]bool{
		"ping": true, "cgroup": true, "linger": variant != "linger",
		"landlock": !strings.HasSuffix(kernel(t), "-amd64"),
	}
	for name, c := range checks {
		want := "ok"
		if lacks[name] {
			want = "degraded"
		}
		if c.Status != want {
			t.Errorf("%s is %s, want %s: %s (%s)", name, c.Status, want, c.Detail, c.Fix)
		}
	}
	var cgroup struct {
		Version   string
		Delegated []string
		Writable  bool
	}
	if err := json.Unmarshal(checks["cgroup"].Data, &cgroup); err != nil {
		t.Fatal(err)
	}
	slices.Sort(cgroup.Delegated)
	if cgroup.Version != "v2" || !slices.Equal(cgroup.Delegated, []string{"cpu", "memory", "pids"}) || cgroup.Writable {
		t.Errorf("%+v", cgroup)
	}
	if c := checks["cgroup"]; !strings.Contains(c.Fix, "user@.service.d") {
		t.Errorf("the file that the administrator must write: %q", c.Fix)
	}
}

// TestDefaults: what sbx chooses on a stock Debian is the best of each.
func TestDefaults(t *testing.T) {
	e := session(t, harness.BB)
	out := e.Must("run", "--rm", harness.BB, "sh", "-c", "grep ' / ' /proc/mounts; cat /sys/class/net/eth0/tun_flags; awk '{n+=$3} END {print n}' /proc/self/uid_map")
	for _, want := range []string{"overlay / overlay ", "userxattr", "\n0x", "\n65537\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
}

// TestRuntimeDirectory: in the runtime directory of the session nothing is left.
func TestRuntimeDirectory(t *testing.T) {
	e := session(t, harness.BB)
	port := e.FreePort()
	p := e.Start("run", "--rm", "-p", fmt.Sprintf("127.0.0.1:%d:80", port), harness.BB, "/probe", "serve", "80")
	p.WaitGet(fmt.Sprintf("http://127.0.0.1:%d/", port))
	dir := filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "sbx")
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
	p.Stop()
	harness.Eventually(t, 20*time.Second, func() error {
		return filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Type() == os.ModeSocket {
				err = fmt.Errorf("left: %s", path)
			}
			return err
		})
	})
}
