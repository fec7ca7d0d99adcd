package cgroup

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/internal/wire"
)

const (
	mounts  = "24 22 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
	manager = "sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/"
	session = "sys/fs/cgroup/user.slice/user-1000.slice/session-1.scope/"
	gone    = "\x00" // not a file of this case
)

// stock is a login session on a stock Debian, as far as files tell.
var stock = map[string]string{
	"proc/self/cgroup":              "0::/user.slice/user-1000.slice/session-1.scope\n",
	"proc/self/mountinfo":           mounts,
	"run/user/1000/bus":             "",
	"run/user/1000/systemd/private": "",
	manager + "cgroup.controllers":  "cpu memory pids\n",
	session + "cgroup.controllers":  "cpu memory pids\n",
	session + "cgroup.procs":        "1\n2\n",
	"sys/fs/cgroup/cgroup.procs":    "1\n",
}

// container is one that has a tree of its own, with its processes in a leaf.
var container = map[string]string{
	"proc/self/cgroup":                      "0::/init\n",
	"proc/self/mountinfo":                   mounts,
	"sys/fs/cgroup/cgroup.procs":            "",
	"sys/fs/cgroup/cgroup.type":             "domain\n",
	"sys/fs/cgroup/cgroup.subtree_control":  "",
	"sys/fs/cgroup/cgroup.controllers":      "cpuset cpu io memory pids\n",
	"sys/fs/cgroup/init/cgroup.procs":       "1\n",
	"sys/fs/cgroup/init/cgroup.type":        "domain\n",
	"sys/fs/cgroup/init/cgroup.controllers": "cpu\n",
}

// find runs Find over files in a new directory; those of edit replace those of base.
func find(t *testing.T, base, edit map[string]string) *Host {
	t.Helper()
	root := t.TempDir()
	files := maps.Clone(base)
	maps.Copy(files, edit)
	for name, text := range files {
		if text == gone {
			continue
		}
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o700), os.WriteFile(p, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return Find(Options{Root: root, UID: 1000, RuntimeDir: "/run/user/1000"})
}

func TestFind(t *testing.T) {
	type files = map[string]string
	all := []string{"cpuset", "cpu", "io", "memory", "pids"}
	for _, tc := range []struct {
		name      string
		base      files
		edit      files
		version   string
		sockets   int
		base2     string
		available []string
		missing   string // in Missing's reason
		fix       string // of it, or of what lacks for --cpuset-cpus
	}{
		{name: "login session", base: stock, version: "v2", sockets: 2, available: []string{"cpu", "memory", "pids"}, fix: "user@.service.d/delegate.conf"},
		{name: "without a bus", base: stock, edit: files{"run/user/1000/bus": gone}, version: "v2", sockets: 1, available: []string{"cpu", "memory", "pids"}, fix: "delegate.conf"},
		{name: "all delegated", base: stock, edit: files{manager + "cgroup.controllers": strings.Join(all, " ")}, version: "v2", sockets: 2, available: all},
		{name: "su", base: stock, edit: files{"run/user/1000/bus": gone, "run/user/1000/systemd/private": gone}, version: "v2", missing: "neither", fix: "linger"},
		{name: "container", base: container, version: "v2", base2: "/sys/fs/cgroup", available: all},
		{name: "its root has processes", base: container, edit: files{"sys/fs/cgroup/cgroup.procs": "7\n"}, version: "v2", missing: "neither", fix: "without processes"},
		{name: "but passes on", base: container, edit: files{"sys/fs/cgroup/cgroup.procs": "7\n", "sys/fs/cgroup/cgroup.subtree_control": "memory\n"},
			version: "v2", base2: "/sys/fs/cgroup", available: []string{"memory"}, fix: "subtree_control"},
		{name: "the tree's root", base: container, edit: files{"sys/fs/cgroup/cgroup.procs": "7\n", "sys/fs/cgroup/cgroup.type": gone},
			version: "v2", base2: "/sys/fs/cgroup", available: all},
		{name: "which has little", base: container, edit: files{"sys/fs/cgroup/cgroup.controllers": "memory\n"},
			version: "v2", base2: "/sys/fs/cgroup", available: []string{"memory"}, fix: "the container must be given"},
		{name: "hybrid", base: container, edit: files{"proc/self/cgroup": "4:memory:/x\n1:name=systemd:/x\n0::/init\n", "sys/fs/cgroup/cgroup.controllers": ""},
			version: "hybrid", base2: "/sys/fs/cgroup", available: []string{}, fix: "unified_cgroup_hierarchy"},
		{name: "v1", base: container, edit: files{"proc/self/mountinfo": ""}, version: "v1", missing: "not mounted", fix: "unified_cgroup_hierarchy"},
		{name: "the first mount is hidden", base: container, edit: files{"proc/self/mountinfo": "22 1 0:9 / / rw - ext4 disk rw\n" +
			"23 22 0:20 / /run/cgroup rw - cgroup2 cgroup2 rw\n24 22 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n25 22 0:23 / /run rw - tmpfs tmpfs rw\n"},
			version: "v2", base2: "/sys/fs/cgroup", available: all},
		{name: "mounted twice", base: container, edit: files{"proc/self/mountinfo": "22 22 0:9 / / rw - ext4 disk rw\n" +
			"24 22 0:22 /part /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n25 24 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"},
			version: "v2", base2: "/sys/fs/cgroup", available: all},
		{name: "under a tmpfs", base: container, edit: files{"proc/self/mountinfo": mounts + "25 22 0:23 / /sys/fs rw - tmpfs tmpfs rw\n"},
			version: "v1", missing: "not mounted", fix: "unified_cgroup_hierarchy"},
		{name: "none", version: "none", missing: "no cgroups", fix: "mount"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := find(t, tc.base, tc.edit)
			if h.Version != tc.version || len(h.Sockets) != tc.sockets || h.Base != tc.base2 {
				t.Errorf("%+v", h)
			}
			have, _, known := h.Available()
			if !known || !slices.Equal(have, tc.available) {
				t.Errorf("available %v (%v), want %v", have, known, tc.available)
			}
			if reason, _ := h.Missing(); !strings.Contains(reason, tc.missing) || (reason == "") != (tc.missing == "") {
				t.Errorf("missing: %q", reason)
			}
			err := h.Check(Limits{CpusetCPUs: "0"})
			if (err != nil) != (tc.fix != "") {
				t.Fatalf("--cpuset-cpus: %v", err)
			}
			var we *wire.Error
			if err != nil && (!errors.As(err, &we) || we.Step != "--cpuset-cpus" || !strings.Contains(we.Fix, tc.fix)) {
				t.Errorf("--cpuset-cpus: %v, fix %q", err, we.Fix)
			}
			if err := h.Check(Limits{}); err != nil {
				t.Errorf("no limit: %v", err)
			}
		})
	}
}

// What the user's systemd may hand out cannot be seen from a container: only trying tells.
func TestUnknownDelegation(t *testing.T) {
	h := find(t, stock, map[string]string{manager + "cgroup.controllers": gone})
	if _, _, known := h.Available(); known {
		t.Error("known")
	}
	if err := h.Check(Limits{Memory: 64 << 20}); err != nil {
		t.Error(err)
	}
}

func TestList(t *testing.T) {
	const id = "0123"
	h := find(t, stock, map[string]string{
		manager + "app.slice/sbx-0123.scope/box/cgroup.procs":           "",
		manager + "app.slice/app-x.slice/sbx-0123.scope/cgroup.procs":   "",
		manager + "app.slice/other.service/sbx-0123.scope/cgroup.procs": "",
		manager + "app.slice/sbx-01234.scope/cgroup.procs":              "",
	})
	h.Mount = h.real(h.Mount) // List looks where the kernel is
	groups, err := h.List(id)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, g := range groups {
		rel, err := filepath.Rel(h.managerDir(), g.Dir())
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, rel)
	}
	slices.Sort(got)
	if want := []string{"app.slice/app-x.slice/sbx-0123.scope", "app.slice/sbx-0123.scope"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
