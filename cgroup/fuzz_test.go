package cgroup

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
)

// FuzzFind looks for a group on machines whose files say anything. A container's may be
// whatever its maker liked: what is found lies in the tree that is mounted.
func FuzzFind(f *testing.F) {
	for _, files := range []map[string]string{stock, container} {
		f.Add(files["proc/self/cgroup"], files["proc/self/mountinfo"], "cpu memory", "1\n", "cpu\n")
	}
	f.Add("0::/../..\n1:cpu:/x", "24 22 0:22 / /a\\040b rw - cgroup2 cgroup2 rw\n", "", "", "")
	f.Add("0::\n", "1 1 0:0 / / rw master:1 - cgroup2 x rw", "cpu\x00", "", "")
	root := f.TempDir()
	f.Fuzz(func(t *testing.T, self, mountinfo, controllers, procs, subtree string) {
		dir := filepath.Join(root, "r")
		files := map[string]string{"proc/self/cgroup": self, "proc/self/mountinfo": mountinfo}
		for _, d := range []string{"sys/fs/cgroup/", "sys/fs/cgroup/init/"} {
			maps.Copy(files, map[string]string{d + "cgroup.controllers": controllers, d + "cgroup.procs": procs, d + "cgroup.subtree_control": subtree})
		}
		for name, text := range files {
			p := filepath.Join(dir, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o700), os.WriteFile(p, []byte(text), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		h := Find(Options{Root: dir, UID: 1000, RuntimeDir: "/run/user/1000"})
		switch h.Version {
		case "none", "v1", "hybrid", "v2":
		default:
			t.Fatalf("version %q", h.Version)
		}
		if h.Base != "" && h.Base != h.Mount && !strings.HasPrefix(h.Base, strings.TrimSuffix(h.Mount, "/")+"/") {
			t.Fatalf("%q is not in %q", h.Base, h.Mount)
		}
		h.Missing()
		for _, c := range h.Lacking(Controllers()).Controllers {
			if strings.Contains(c, "/") {
				t.Fatalf("controller %q", c)
			}
		}
	})
}

// FuzzStats reads a group's counters: what is no number is an error, or left out.
func FuzzStats(f *testing.F) {
	f.Add("usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 1\nnr_throttled 1\nthrottled_usec 9\n",
		"anon 1\nfile 2\ninactive_file 3\n", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n", "7\n", "max\n")
	f.Add("usage_usec -1\n", "anon\n", "8:0 rbytes=\n", "18446744073709551616", "0x10")
	f.Add("", "", "x:y =\n8:0", "\x00", "-1")
	cgroups.TestMode = true // reads where no cgroup is mounted
	dir := f.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "box"), 0o700); err != nil {
		f.Fatal(err)
	}
	g, err := Open(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, cpu, memory, io, current, limit string) {
		for name, text := range map[string]string{
			"cpu.stat": cpu, "memory.stat": memory, "io.stat": io, "memory.current": current, "memory.max": limit,
			"memory.swap.current": current, "memory.swap.max": limit, "pids.current": current, "pids.max": limit, "memory.peak": limit,
			"cgroup.controllers": "cpu memory io pids",
		} {
			if err := os.WriteFile(filepath.Join(g.box(), name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s, err := g.Stats()
		if err == nil && s.Memory.Used() > s.Memory.Current {
			t.Fatalf("%+v", s.Memory)
		}
	})
}
