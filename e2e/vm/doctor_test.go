package vm

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

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

// TestDoctor: what a stock Debian lacks, and nothing else, is reported.
func TestDoctor(t *testing.T) {
	checks := diagnose(t, env(t))
	lacks := map[string]string{ // with a word of the remedy
		"ping":        "net.ipv4.ping_group_range",
		"linger":      "loginctl enable-linger dev",
		"runtime-dir": "XDG_RUNTIME_DIR",
		"landlock":    "CONFIG_SECURITY_LANDLOCK",
		"cgroup":      "/etc/systemd/system/user@.service.d/delegate.conf",
	}
	if place == linger {
		delete(lacks, "linger")
	}
	if place != bare {
		delete(lacks, "runtime-dir")
	}
	if strings.HasSuffix(kernel(t), "-amd64") { // User Mode Linux has no Landlock
		delete(lacks, "landlock")
	}
	switch exist := controllers(t, "/sys/fs/cgroup"); {
	case place == bare:
		lacks["cgroup"] = "log in through systemd"
	case place == delegated && slices.Contains(exist, "cpuset"):
		delete(lacks, "cgroup")
	case place == delegated: // User Mode Linux has no cpuset either
		lacks["cgroup"] = "a kernel with these controllers"
	}
	for name, c := range checks {
		fix, lack := lacks[name]
		want := "ok"
		if lack {
			want = "degraded"
		}
		if c.Status != want || !strings.Contains(c.Fix, fix) {
			t.Errorf("%s is %s, want %s with %q: %s (%s)", name, c.Status, want, fix, c.Detail, c.Fix)
		}
	}
	for name := range lacks {
		if _, ok := checks[name]; !ok {
			t.Errorf("no check %s", name)
		}
	}
}

// TestDelegation: the doctor names the controllers that the user's systemd has, and
// those it lacks.
func TestDelegation(t *testing.T) {
	c := diagnose(t, env(t))["cgroup"]
	var data struct {
		Version   string
		Delegated []string
		Writable  bool
	}
	if err := json.Unmarshal(c.Data, &data); err != nil {
		t.Fatal(err)
	}
	if data.Version != "v2" {
		t.Errorf("version %s", data.Version)
	}
	// A session's scope and a service of the system are root's; one of the user's is not.
	if data.Writable != (place == linger) {
		t.Errorf("writable: %v", data.Writable)
	}
	want := []string{"cpu", "memory", "pids"}
	switch place {
	case bare:
		want = nil
	case delegated:
		want = slices.DeleteFunc(controllers(t, "/sys/fs/cgroup"), func(s string) bool {
			return !slices.Contains([]string{"cpu", "cpuset", "io", "memory", "pids"}, s)
		})
	}
	slices.Sort(want)
	slices.Sort(data.Delegated)
	if !slices.Equal(data.Delegated, want) {
		t.Errorf("delegated: %v, want %v", data.Delegated, want)
	}
	for _, name := range []string{"io", "cpuset"} {
		if lacking := strings.Contains(c.Detail, "limits of") && strings.Contains(c.Detail[strings.Index(c.Detail, "limits of"):], name); place != bare && lacking == slices.Contains(want, name) {
			t.Errorf("%s: %s", name, c.Detail)
		}
	}
}

// controllers lists those of a cgroup.
func controllers(t *testing.T, dir string) []string {
	t.Helper()
	data, err := os.ReadFile(dir + "/cgroup.controllers")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(data))
}
