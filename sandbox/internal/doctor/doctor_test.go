package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/userns"
)

var names = []string{
	"kernel", "user-namespaces", "max-user-namespaces", "apparmor", "subordinate-ids", "newuidmap",
	"tun", "fuse", "fuse-overlayfs", "ping", "low-ports", "cgroup", "seccomp", "landlock", "runtime-dir", "linger", "container",
}

const selfMounts = `22 1 254:1 / / rw - ext4 /dev/vda1 rw
23 22 0:21 / /proc rw - proc proc rw
24 22 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
25 23 0:35 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw
`

// laptop is a stock Debian 12 seen by user 1000 in a login shell.
func laptop() map[string]string {
	return map[string]string{
		"proc/sys/kernel/osrelease":                    "6.1.0-18-amd64\n",
		"proc/sys/user/max_user_namespaces":            "63432\n",
		"proc/sys/kernel/seccomp/actions_avail":        "kill_process kill_thread trap errno user_notif trace log allow\n",
		"proc/sys/net/ipv4/ping_group_range":           "0\t2147483647\n",
		"proc/sys/net/ipv4/ip_unprivileged_port_start": "1024\n",
		"proc/self/cgroup":                             "0::/user.slice/user-1000.slice/session-1.scope\n",
		"proc/self/mountinfo":                          selfMounts,
		"proc/self/uid_map":                            "         0          0 4294967295\n",
		"sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/cgroup.controllers": "cpu cpuset io memory pids\n",
		"run/user/1000/bus":          "",
		"run/systemd/system/x":       "",
		"var/lib/systemd/linger/dev": "",
		"etc/subuid":                 "dev:100000:65536\n",
		"etc/subgid":                 "dev:100000:65536\n1000:100000:65536\n",
		"usr/bin/fuse-overlayfs":     "#!/bin/sh\necho 'fuse-overlayfs: version 1.10'\necho 'FUSE library version 3.14.0'\n",
	}
}

// tree writes files to a new root directory and returns the Env of user 1000 there.
func tree(t *testing.T, files map[string]string) Env {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(name, "usr/bin/") {
			mode = 0o755
		}
		if err := os.WriteFile(p, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	return Env{
		Root: root, UID: 1000, GID: 1000, Groups: []int{1000, 27}, UserName: "dev", RuntimeDir: "/run/user/1000",
		LookPath: func(name string) (string, error) {
			p := filepath.Join(root, "usr/bin", name)
			_, err := os.Stat(p)
			return p, err
		},
		Probe:    func(context.Context) error { return nil },
		Landlock: func() (int, error) { return 2, nil },
	}
}

// TestChecks breaks one thing at a time.
func TestChecks(t *testing.T) {
	const gone = "\x00" // the file is not there
	for _, tc := range []struct {
		name, check string
		files       map[string]string
		env         func(*Env)
		status      Status
		detail, fix string
	}{
		{name: "kernel", check: "kernel", status: OK, detail: "6.1.0-18-amd64"},
		{name: "kernel without overlay", check: "kernel", files: map[string]string{"proc/sys/kernel/osrelease": "5.10.0-28-amd64"}, status: Degraded, detail: "fuse-overlayfs", fix: "5.11"},
		{name: "ancient kernel", check: "kernel", files: map[string]string{"proc/sys/kernel/osrelease": "4.19.0"}, status: Missing, fix: "5.4"},
		{name: "odd kernel", check: "kernel", files: map[string]string{"proc/sys/kernel/osrelease": "unknown"}, status: Degraded, detail: "not understood"},
		{name: "no /proc", check: "kernel", files: map[string]string{"proc/sys/kernel/osrelease": gone}, status: Degraded, fix: "mount /proc"},

		{name: "userns", check: "user-namespaces", status: OK},
		{name: "userns forbidden", check: "user-namespaces", env: func(e *Env) {
			e.Probe = func(context.Context) error {
				return &userns.Error{Kind: userns.ErrForbidden, Step: "create namespaces", Msg: "sysctl x", Fix: "set x", Errno: syscall.ENOSPC}
			}
		}, status: Missing, detail: "sysctl x: no space left", fix: "set x"},

		{name: "max", check: "max-user-namespaces", status: OK, detail: "63432"},
		{name: "max 0", check: "max-user-namespaces", files: map[string]string{"proc/sys/user/max_user_namespaces": "0"}, status: Missing, fix: "sysctl -w user.max_user_namespaces=10000"},
		{name: "max few", check: "max-user-namespaces", files: map[string]string{"proc/sys/user/max_user_namespaces": "5"}, status: Degraded, fix: "sysctl"},
		{name: "max none", check: "max-user-namespaces", files: map[string]string{"proc/sys/user/max_user_namespaces": gone}, status: Degraded, fix: "CONFIG_USER_NS"},

		{name: "no apparmor", check: "apparmor", status: OK},
		{name: "apparmor off", check: "apparmor", files: map[string]string{"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "0"}, status: OK, detail: "is 0"},
		{name: "apparmor on", check: "apparmor", files: map[string]string{"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1", "proc/self/attr/apparmor/current": "unconfined\n"},
			env: func(e *Env) { e.Executable = "/opt/sbx/bin/sbx" }, status: Degraded, fix: `profile sbx "/opt/sbx/bin/sbx" flags=(unconfined)`},
		{name: "apparmor with profile", check: "apparmor", files: map[string]string{"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1", "proc/self/attr/apparmor/current": "sbx (unconfined)\n"},
			status: OK, detail: "profile sbx (unconfined)"},
		{name: "old Debian", check: "apparmor", files: map[string]string{"proc/sys/kernel/unprivileged_userns_clone": "0"}, status: Missing, fix: "unprivileged_userns_clone=1"},

		{name: "no tun", check: "tun", status: Degraded, detail: "no such file", fix: "modprobe tun"},
		{name: "tun is a file", check: "tun", files: map[string]string{"dev/net/tun": ""}, status: Degraded, detail: "not a device"},
		{name: "no fuse", check: "fuse", status: Degraded, fix: "--device /dev/fuse"},

		{name: "fuse-overlayfs", check: "fuse-overlayfs", status: OK, detail: "version 1.10"},
		{name: "no fuse-overlayfs", check: "fuse-overlayfs", files: map[string]string{"usr/bin/fuse-overlayfs": gone}, status: Degraded, fix: "apt install fuse-overlayfs"},
		{name: "old fuse-overlayfs", check: "fuse-overlayfs", files: map[string]string{"usr/bin/fuse-overlayfs": "#!/bin/sh\necho 'fuse-overlayfs: version 1.9'\n"}, status: Degraded, detail: "1.10 or later"},
		{name: "newer fuse-overlayfs", check: "fuse-overlayfs", files: map[string]string{"usr/bin/fuse-overlayfs": "#!/bin/sh\necho 'fuse-overlayfs: version 2.0-dev'\n"}, status: OK, detail: "2.0-dev"},
		{name: "mute fuse-overlayfs", check: "fuse-overlayfs", files: map[string]string{"usr/bin/fuse-overlayfs": "#!/bin/sh\n"}, status: Degraded, detail: "does not say"},
		{name: "broken fuse-overlayfs", check: "fuse-overlayfs", files: map[string]string{"usr/bin/fuse-overlayfs": "#!/bin/sh\nexit 127\n"}, status: Degraded, detail: "127"},

		{name: "ping", check: "ping", status: OK, detail: "0 2147483647"},
		{name: "ping by another group", check: "ping", files: map[string]string{"proc/sys/net/ipv4/ping_group_range": "27 27"}, status: OK},
		{name: "no ping", check: "ping", files: map[string]string{"proc/sys/net/ipv4/ping_group_range": "1\t0"}, status: Degraded, detail: "is 1 0", fix: `net.ipv4.ping_group_range="0 2147483647"`},
		{name: "ping unreadable", check: "ping", files: map[string]string{"proc/sys/net/ipv4/ping_group_range": "x"}, status: Degraded, detail: "cannot be read"},

		{name: "ports", check: "low-ports", status: OK, detail: "from 1024 on", fix: "ip_unprivileged_port_start=80"},
		{name: "all ports", check: "low-ports", files: map[string]string{"proc/sys/net/ipv4/ip_unprivileged_port_start": "0"}, status: OK, detail: "all ports"},
		{name: "ports unknown", check: "low-ports", files: map[string]string{"proc/sys/net/ipv4/ip_unprivileged_port_start": gone}, status: OK, detail: "1024"},

		{name: "cgroup", check: "cgroup", status: OK, detail: "cgroup v2, cpu cpuset io memory pids from the user's systemd"},
		{name: "stock delegation", check: "cgroup", files: map[string]string{"sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/cgroup.controllers": "cpu memory pids"},
			status: Degraded, detail: "limits of io and cpuset cannot be set", fix: "delegate.conf"},
		{name: "no such controller", check: "cgroup", files: map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpu io memory pids",
			"sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/cgroup.controllers": "cpu io memory pids"},
			status: Degraded, detail: "limits of cpuset cannot be set: the kernel has no", fix: "/sys/fs/cgroup/cgroup.controllers"},
		{name: "nothing delegated", check: "cgroup", files: map[string]string{
			"sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/cgroup.controllers": "",
			"sys/fs/cgroup/user.slice/user-1000.slice/session-1.scope/cgroup.procs":         "", "sys/fs/cgroup/user.slice/user-1000.slice/session-1.scope/cgroup.controllers": ""},
			status: Degraded, detail: "no controller", fix: "Delegate="},
		{name: "no bus", check: "cgroup", files: map[string]string{"run/user/1000/bus": gone}, status: Degraded, detail: "neither", fix: "log in"},
		{name: "own subtree", check: "cgroup", files: map[string]string{"run/user/1000/bus": gone, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cgroup.procs": "", "sys/fs/cgroup/cgroup.subtree_control": "", "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids"},
			status: OK, detail: "from the group /sys/fs/cgroup"},
		{name: "hybrid", check: "cgroup", files: map[string]string{"proc/self/cgroup": "4:memory:/\n1:name=systemd:/\n0::/\n", "sys/fs/cgroup/cgroup.procs": "", "sys/fs/cgroup/cgroup.subtree_control": "", "sys/fs/cgroup/cgroup.controllers": "", "run/user/1000/bus": gone},
			status: Degraded, detail: "in version 1", fix: "systemd.unified_cgroup_hierarchy=1"},
		{name: "v1", check: "cgroup", files: map[string]string{"proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/\n"}, status: Degraded, detail: "not mounted", fix: "unified"},
		{name: "no cgroups", check: "cgroup", files: map[string]string{"proc/self/cgroup": gone}, status: Degraded},

		{name: "seccomp", check: "seccomp", status: OK},
		{name: "no seccomp", check: "seccomp", files: map[string]string{"proc/sys/kernel/seccomp/actions_avail": gone}, status: Missing, fix: "CONFIG_SECCOMP"},
		{name: "landlock", check: "landlock", status: OK, detail: "2"},
		{name: "landlock off", check: "landlock", env: func(e *Env) { e.Landlock = func() (int, error) { return 0, syscall.EOPNOTSUPP } }, status: Degraded, fix: "lsm="},
		{name: "no landlock", check: "landlock", env: func(e *Env) { e.Landlock = func() (int, error) { return 0, syscall.ENOSYS } }, status: Degraded, fix: "CONFIG_SECURITY_LANDLOCK"},

		{name: "runtime dir unset", check: "runtime-dir", env: func(e *Env) { e.RuntimeDir = "" }, status: Degraded, detail: "not set", fix: "linger"},
		{name: "runtime dir relative", check: "runtime-dir", env: func(e *Env) { e.RuntimeDir = "run" }, status: Degraded, detail: "not absolute"},
		{name: "runtime dir gone", check: "runtime-dir", env: func(e *Env) { e.RuntimeDir = "/run/user/7" }, status: Degraded, detail: "no such file"},
		{name: "runtime dir a file", check: "runtime-dir", env: func(e *Env) { e.RuntimeDir = "/run/user/1000/bus" }, status: Degraded, detail: "not a directory"},

		{name: "linger", check: "linger", status: OK, detail: "on"},
		{name: "no linger", check: "linger", files: map[string]string{"var/lib/systemd/linger/dev": gone}, status: Degraded, fix: "loginctl enable-linger dev"},
		{name: "no systemd", check: "linger", files: map[string]string{"run/systemd/system/x": gone}, status: OK, detail: "does not run here"},
		{name: "no name", check: "linger", env: func(e *Env) { e.UserName = "../../../etc" }, status: OK, detail: "not known"},

		{name: "no container", check: "container", status: OK, detail: "not inside"},
		{name: "docker", check: "container", files: map[string]string{".dockerenv": ""}, status: OK, detail: "/.dockerenv"},
		{name: "podman", check: "container", files: map[string]string{"run/.containerenv": "", "proc/self/uid_map": "0 1000 1\n1 100000 65536\n"}, status: OK, detail: "/run/.containerenv, a user namespace"},
		{name: "masked", check: "container", files: map[string]string{".dockerenv": "", "proc/self/mountinfo": selfMounts +
			"30 23 0:5 /null /proc/kcore rw - tmpfs tmpfs rw\n31 23 0:5 / /proc/a\\040b ro - tmpfs tmpfs ro\n32 23 0:5 / /proc/scsi ro - tmpfs t ro\n33 23 0:5 / /proc/sys ro - proc proc ro\nbroken line\n"},
			status: Degraded, detail: "/proc/kcore, /proc/a b, /proc/scsi...", fix: "unmask=ALL"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			files := laptop()
			maps.Copy(files, tc.files)
			maps.DeleteFunc(files, func(_, v string) bool { return v == gone })
			e := tree(t, files)
			if tc.env != nil {
				tc.env(&e)
			}
			c := find(t, Run(t.Context(), e), tc.check)
			if c.Status != tc.status || !strings.Contains(c.Detail, tc.detail) || tc.fix == "" && c.Fix != "" && tc.status == OK || !strings.Contains(c.Fix, tc.fix) {
				t.Errorf("got %+v", c)
			}
			if c.Status != OK && c.Fix == "" {
				t.Errorf("no fix: %+v", c)
			}
		})
	}
}

// The owner of the runtime directory is the one who runs the test.
func TestRuntimeDir(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	run := func(path string, mode os.FileMode, uid int) Check {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		return checkRuntimeDir(t.Context(), Env{RuntimeDir: path, UID: uid})
	}
	uid := os.Getuid()
	for _, p := range []string{dir, link} {
		if c := run(p, 0o700, uid); c.Status != OK || c.Detail != p {
			t.Errorf("%s: %+v", p, c)
		}
	}
	if c := run(dir, 0o755, uid); c.Status != Degraded || c.Fix != "chmod 0700 "+dir {
		t.Errorf("%+v", c)
	}
	if c := run(dir, 0o700, uid+1); c.Status != Degraded || !strings.Contains(c.Detail, "belongs to uid") {
		t.Errorf("%+v", c)
	}
}

func TestSubIDs(t *testing.T) {
	files := laptop()
	files["etc/subuid"], files["etc/subgid"] = "1000:100000:65536\n", "1000:100000:65536\n"
	if c := find(t, Run(t.Context(), tree(t, files)), "subordinate-ids"); c.Status != OK || !strings.Contains(c.Detail, "65536 uids and 65536 gids") {
		t.Errorf("%+v", c)
	}
	files["etc/subgid"] = "1000:100000:1000\n"
	if c := find(t, Run(t.Context(), tree(t, files)), "subordinate-ids"); c.Status != Degraded || !strings.Contains(c.Fix, "usermod --add-subuids") {
		t.Errorf("%+v", c)
	}
	delete(files, "etc/subgid")
	if c := find(t, Run(t.Context(), tree(t, files)), "subordinate-ids"); c.Status != Degraded || !strings.Contains(c.Detail, "no subordinate gids") || !strings.Contains(c.Fix, "usermod") {
		t.Errorf("%+v", c)
	}
	e := tree(t, files)
	e.Mapping.NewUIDMap = "/no/such/newuidmap"
	c := find(t, Run(t.Context(), e), "newuidmap")
	if s, err := userns.Inspect(userns.MappingConfig{}); err != nil {
		t.Fatal(err)
	} else if s.Direct {
		if c.Status != OK {
			t.Errorf("%+v", c)
		}
	} else if c.Status != Degraded || !strings.Contains(c.Fix, "apt install uidmap") {
		t.Errorf("%+v", c)
	}
}

// TestRealMachine runs against the machine itself, whatever it has.
func TestRealMachine(t *testing.T) {
	t0 := time.Now()
	checks := Run(t.Context(), Env{RuntimeDir: os.Getenv("XDG_RUNTIME_DIR"), UserName: os.Getenv("USER")})
	t.Logf("%v", time.Since(t0))
	var got []string
	for _, c := range checks {
		got = append(got, c.Name)
		t.Logf("%-20s %-9s %s [%s]", c.Name, c.Status, c.Detail, c.Fix)
		if c.Detail == "" || c.Status != OK && c.Fix == "" || !slices.Contains([]Status{OK, Degraded, Missing}, c.Status) {
			t.Errorf("incomplete: %+v", c)
		}
	}
	if !slices.Equal(got, names) {
		t.Errorf("checks %v, want %v", got, names)
	}
	b, err := json.Marshal(checks)
	if err != nil {
		t.Fatal(err)
	}
	var back []Check
	if err := json.Unmarshal(b, &back); err != nil || len(back) != len(checks) {
		t.Errorf("%v, %d checks", err, len(back))
	}
	// The other tests of this module make user namespaces here.
	if c := find(t, checks, "user-namespaces"); c.Status != OK {
		t.Errorf("%+v", c)
	}
}

func TestRunCancelled(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	if got := Run(ctx, Env{}); len(got) != 0 {
		t.Errorf("%d checks", len(got))
	}
}

func find(t *testing.T, checks []Check, name string) Check {
	t.Helper()
	i := slices.IndexFunc(checks, func(c Check) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("no check %q in %v", name, checks)
	}
	return checks[i]
}

func FuzzMounts(f *testing.F) {
	f.Add(selfMounts)
	f.Add("1 2 3 4 5 - \n - \n\\040")
	dir := f.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "proc/self"), 0o755); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if err := os.WriteFile(filepath.Join(dir, "proc/self/mountinfo"), []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, m := range (Env{Root: dir}).mounts() {
			if m.target == "" || m.fstype == "" {
				t.Errorf("%+v of %q", m, s)
			}
		}
		parseRelease(s)
		numbers(s)
		fuseOverlayVersion(s)
	})
}
