package e2e

import (
	"os"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// dockerCaps is Docker's default capability set as the kernel prints it.
const dockerCaps = "00000000a80425fb"

func TestCapabilities(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, c := range []struct {
		name  string
		flags []string
		want  string
	}{
		{"default", nil, "CapInh 0000000000000000\nCapEff " + dockerCaps + "\nCapBnd " + dockerCaps + "\nCapAmb 0000000000000000\n"},
		{"none", []string{"--cap-drop", "ALL"}, "CapInh 0000000000000000\nCapEff 0000000000000000\nCapBnd 0000000000000000\nCapAmb 0000000000000000\n"},
		{"one", []string{"--cap-drop", "all", "--cap-add", "net_bind_service"}, "CapInh 0000000000000000\nCapEff 0000000000000400\nCapBnd 0000000000000400\nCapAmb 0000000000000000\n"},
		{"one more", []string{"--cap-add", "CAP_SYS_ADMIN"}, "CapInh 0000000000000000\nCapEff 00000000a82425fb\nCapBnd 00000000a82425fb\nCapAmb 0000000000000000\n"},
		{"ordinary user", []string{"-u", "app"}, "CapInh 0000000000000000\nCapEff 0000000000000000\nCapBnd " + dockerCaps + "\nCapAmb 0000000000000000\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := e.In(t)
			args := append([]string{"run", "--rm"}, c.flags...)
			if got := e.Must(append(args, harness.BB, "/probe", "status", "CapInh", "CapEff", "CapBnd", "CapAmb")...); got != c.want {
				t.Errorf("got:\n%swant:\n%s", got, c.want)
			}
		})
	}
	e.Fails(125, []string{"no_such"}, "run", "--rm", "--cap-add", "NO_SUCH", harness.BB, "true")
}

func TestSystemCalls(t *testing.T) {
	e := harness.New(t, harness.BB)
	names := []string{"calls", "mount", "unshare", "sethost", "chown", "bpf", "keyctl", "reboot", "settime", "init_mod", "kexec", "open_by_fh", "rawsock", "mknod", "sysrq", "kcore", "sysctl", "sysfs", "low_port"}
	got := e.Must(append([]string{"run", "--rm", harness.BB, "/probe"}, names...)...)
	allowed := map[string]bool{"chown": true, "rawsock": true, "low_port": true}
	for line := range strings.Lines(got) {
		name, res, _ := strings.Cut(strings.TrimSpace(line), " ")
		if (res == "ok") != allowed[name] {
			t.Errorf("%s: %s", name, res)
		}
	}
	if got := e.Must("run", "--rm", harness.BB, "/probe", "status", "Seccomp", "NoNewPrivs"); got != "NoNewPrivs 0\nSeccomp 2\n" {
		t.Errorf("%q", got)
	}
	if got := e.Must("run", "--rm", "--security-opt", "seccomp=unconfined", "--security-opt", "no-new-privileges", harness.BB, "/probe", "status", "Seccomp", "NoNewPrivs"); got != "NoNewPrivs 1\nSeccomp 0\n" {
		t.Errorf("%q", got)
	}
	e.Fails(125, []string{"security-opt"}, "run", "--rm", "--security-opt", "bogus", harness.BB, "true")
}

// TestNamespaces: none of the host's namespaces is the sandbox's, and nothing of
// ours is inside: no descriptor, no process, no file of the host.
func TestNamespaces(t *testing.T) {
	e := harness.New(t, harness.BB)
	out := e.Must("run", "--rm", harness.BB, "sh", "-c", "cd /proc/self/ns; for n in user mnt pid net ipc uts cgroup; do readlink $n; done")
	for line := range strings.Lines(out) {
		kind, _, _ := strings.Cut(line, ":")
		if mine, err := os.Readlink("/proc/self/ns/" + kind); err != nil || mine == strings.TrimSpace(line) {
			t.Errorf("%s is shared: %v", kind, err)
		}
	}
	if n := strings.Count(out, "\n"); n != 7 {
		t.Errorf("%d namespaces: %s", n, out)
	}
	if got := e.Must("run", "--rm", harness.BB, "/probe", "fds"); got != "" {
		t.Errorf("descriptors leaked into the workload: %s", got)
	}
	if got := e.Must("run", "--rm", harness.BB, "sh", "-c", "ls /proc | grep -c '^[0-9]'; ls -d /proc/1"); !strings.HasSuffix(got, "/proc/1\n") {
		t.Errorf("%q", got)
	}
	if got := e.Must("run", "--rm", harness.BB, "cat", "/proc/self/mountinfo"); strings.Contains(got, e.Home) || strings.Contains(got, " /home") {
		t.Errorf("the host shows: %s", got)
	}
}

func TestFileSystems(t *testing.T) {
	e := harness.New(t, harness.BB)
	got := e.Must("run", "--rm", harness.BB, "sh", "-c", strings.Join([]string{
		"for d in null zero full random urandom tty; do test -c /dev/$d || echo no /dev/$d; done",
		"echo x >/dev/null && head -c 4 /dev/zero | wc -c",
		"for l in fd stdin stdout stderr ptmx; do test -L /dev/$l -o -c /dev/$l || echo no /dev/$l; done",
		"test -d /dev/pts -a -d /dev/shm -a -d /dev/mqueue || echo no directories",
		"df -k /dev/shm | tail -n1 | awk '{print $2}'",
		"ls /dev/sda /dev/kmsg /dev/mem 2>/dev/null",
		"head -c 10 /proc/kcore 2>/dev/null | wc -c",
		"touch /sys/x 2>/dev/null && echo sys is writable; touch /proc/sys/x 2>/dev/null && echo sysctl is writable; true",
	}, "\n"))
	if got != "4\n65536\n0\n" {
		t.Errorf("%q", got)
	}
	if got := e.Must("run", "--rm", "--shm-size", "1m", harness.BB, "sh", "-c", "df -k /dev/shm | tail -n1 | awk '{print $2}'"); got != "1024\n" {
		t.Errorf("--shm-size: %q", got)
	}
}

func TestLimitsAndSysctls(t *testing.T) {
	e := harness.New(t, harness.BB)
	if got := e.Must("run", "--rm", "--ulimit", "nofile=100:200", harness.BB, "sh", "-c", "ulimit -Sn; ulimit -Hn"); got != "100\n200\n" {
		t.Errorf("%q", got)
	}
	if got := e.Must("run", "--rm", "--sysctl", "net.ipv4.ip_unprivileged_port_start=0", "-u", "app", harness.BB, "/probe", "calls", "low_port"); got != "low_port ok\n" {
		t.Errorf("%q", got)
	}
	// As Docker's, but that it can only be raised: a session of systemd's may have begun above 0.
	for _, flags := range [][]string{nil, {"--init"}} {
		args := append([]string{"run", "--rm", "--network", "none", "--oom-score-adj", "900"}, flags...)
		if got := e.Must(append(args, harness.BB, "cat", "/proc/self/oom_score_adj")...); got != "900\n" {
			t.Errorf("%v: %q", args, got)
		}
	}
	detached(t, e, "adjusted", "--network", "none", "--oom-score-adj", "800", harness.BB, "sleep", "1000")
	if got := e.Must("exec", "adjusted", "cat", "/proc/self/oom_score_adj") + e.Must("inspect", "-f", "{{.HostConfig.OomScoreAdj}}", "adjusted"); got != "800\n800\n" {
		t.Errorf("exec, inspect: %q", got)
	}
	e.Fails(125, []string{"protect"}, "run", "--rm", "--oom-score-adj", "-1", harness.BB, "true")
	e.Fails(125, []string{"1000"}, "run", "--rm", "--oom-score-adj", "1001", harness.BB, "true")
	e.Fails(125, []string{"ulimit"}, "run", "--rm", "--ulimit", "bogus=1", harness.BB, "true")
	e.Fails(125, []string{"kernel.panic"}, "run", "--rm", "--sysctl", "kernel.panic=1", harness.BB, "true")
}
