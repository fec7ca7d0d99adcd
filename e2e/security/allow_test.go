package security

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
	"golang.org/x/sys/unix"
)

var allowWords = words("read", "write", "create", "mkdir", "remove", "symlink", "special", "exec")

// without is what is left of the words without one. To execute a file is to read it.
func without(word string) []string {
	return slices.DeleteFunc(slices.Clone(allowWords), func(w string) bool { return w == word || word == "read" && w == "exec" })
}

// spoilable is a directory with all that probe.Spoil wants.
func spoilable(t *testing.T, dir string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	for name := range probe.Spoil {
		sub := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Join(sub, "dir"), 0o755))
		must(t, os.WriteFile(filepath.Join(sub, "file"), []byte(canaryText), 0o644))
		must(t, os.WriteFile(filepath.Join(sub, "program"), []byte("#!/bin/sh\n"), 0o755))
	}
}

// files are all that is below a directory, but for directories' times.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	seen := map[string]string{}
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		rel, err := filepath.Rel(dir, p)
		seen[rel] = fmt.Sprint(fi.Mode(), st.Ino)
		if fi.Mode().IsRegular() {
			seen[rel] += fmt.Sprint(fi.Size(), fi.ModTime())
		}
		return err
	}))
	return seen
}

// needLandlock says whether the kernel's can do what a volume wants of it: that of Linux
// 5.19, and without write that of 6.2. Where it cannot the sandbox is refused.
func needLandlock(t *testing.T, e *harness.Env, spec string) bool {
	t.Helper()
	need := uintptr(2)
	if _, allow, _ := strings.Cut(spec, "allow="); !strings.Contains(allow, "write") {
		need = 3
	}
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno == 0 && abi >= need {
		return true
	}
	e.Fails(125, []string{"Landlock", "fix: "}, "run", "--rm", "--network", "none", "-v", spec, harness.BB, "true")
	return false
}

// TestAllow: without each of the words nothing is refused but what needs it, and
// that leaves the files as they are.
func TestAllow(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, word := range append(allowWords, "nothing") {
		t.Run(word, func(t *testing.T) {
			e := e.In(t)
			dir := filepath.Join(e.Dir(), "no-"+word)
			allow := without(word)
			spec := dir + ":/work:allow=" + strings.Join(allow, "+")
			spoilable(t, dir)
			if word != "exec" && word != "nothing" && !needLandlock(t, e, spec) {
				return
			}
			before := files(t, dir)
			out := e.Must("run", "--rm", "--network", "none", "-v", spec, harness.BB, "/probe", "spoil", "/work")
			after := files(t, dir)
			results := map[string]string{}
			for line := range strings.Lines(out) {
				name, result, _ := strings.Cut(strings.TrimSpace(line), " ")
				results[name] = result
			}
			for name, s := range probe.Spoil {
				got := results[name]
				refused := slices.ContainsFunc(s.Needs, func(w string) bool { return !slices.Contains(allow, w) })
				if refused != (got == "EACCES" || got == "EXDEV") || !refused && got != "ok" {
					t.Errorf("%s: %s", name, got)
				}
				for f := range before {
					if refused && strings.HasPrefix(f, name+"/") && after[f] != before[f] {
						t.Errorf("%s: %s was %s, is %s", name, f, before[f], after[f])
					}
				}
				// Who may create and not write can make an empty file.
				if n, made := after[name+"/new"]; refused && made && (name != "create" || word != "write") {
					t.Errorf("%s: there is something new, %s", name, n)
				}
			}
		})
	}
}

// TestAllowAlways: each run, one with an init, and what is executed beside the workload
// keep to it, wherever the workload has moved the mount to meanwhile.
func TestAllowAlways(t *testing.T) {
	e := harness.New(t, harness.BB)
	dir := filepath.Join(e.Dir(), "work")
	spoilable(t, dir)
	spec := dir + ":/h/user/work:allow=" + strings.Join(without("symlink"), "+")
	if !needLandlock(t, e, spec) {
		return
	}
	const script = `
		rename() { echo "rename $1 $2 $(/probe try rename $1 $2)"; }
		rename /h/user /h/other
		rename /h /tmp/h; rename /h/other /tmp/other; rename /h/other/work /h/work; rename /h/other/work /tmp/work
		for at in /h/user /h/other /tmp/h/other /tmp/other /h /tmp; do
			for root in "" /proc/1/root; do
				if [ -d $root$at/work/symlink ]; then /probe spoil $root$at/work symlink; fi
			done
		done`
	refused := func(what, out string, moved bool) {
		t.Helper()
		if !strings.Contains(out, "symlink EACCES") || strings.Contains(out, "symlink ok") || strings.Contains(out, "rename /h/user /h/other ok") != moved {
			t.Errorf("%s: %s", what, out)
		}
	}
	before := files(t, dir)
	e.AtEnd("rm", "-f", "box")
	run := func(args ...string) {
		t.Helper()
		e.Must(slices.Concat(words("run", "-d", "--name", "box", "--network", "none", "--storage-driver", "copy", "-v", spec), args)...)
	}
	run("--restart", "on-failure:1", harness.BB, "sh", "-c", script+"\nexit 1")
	e.Must("wait", "box")
	first, second, _ := strings.Cut(e.Must("logs", "box"), "symlink EACCES\n")
	refused("a run", first+"symlink EACCES", true)
	refused("another", second, false)
	e.Must("rm", "box")

	run("--init", harness.BB, "sleep", "1000")
	if got := e.Must("inspect", "-f", "{{range .Mounts}}{{.RW}} {{.Allow}}{{end}} {{.HostConfig.Binds}}", "box"); got != fmt.Sprintf("true %v [%s]\n", without("symlink"), spec) {
		t.Errorf("inspect says %s", got)
	}
	refused("a program beside the workload", e.Run("exec", "box", "sh", "-c", script).Stdout, true)
	refused("another", e.Run("exec", "box", "sh", "-c", script).Stdout, false)
	e.Must("rm", "-f", "box")
	if after := files(t, dir); !maps.Equal(before, after) {
		t.Errorf("it was %v, is %v", before, after)
	}
}

// TestAllowCapable: with every capability and without a filter nothing is mounted, and
// nothing that is mounted is changed. Where no mount has allow=, it is.
func TestAllowCapable(t *testing.T) {
	e := harness.New(t, harness.BB)
	dir := filepath.Join(e.Dir(), "capable")
	spoilable(t, dir)
	spec := dir + ":/work"
	if !needLandlock(t, e, spec+":allow=read+write+create") {
		return
	}
	must(t, os.MkdirAll(filepath.Join(dir, "upper"), 0o755))
	must(t, os.MkdirAll(filepath.Join(dir, "work/work/inside"), 0o755))
	before := files(t, dir)
	const script = `
		try() { echo "$*: $(/probe try "$@")"; }
		try open_tree; try fsopen; try setattr /work; try remount /work; try mount; try bind
		try overlay /work; try nested_proc; try pivot_root; try umount /work`
	run := func(spec string) (results []string) {
		t.Helper()
		out := e.Must(slices.Concat(words("run", "--rm", "--network", "none", "-v", spec), everyCap, words(harness.BB, "sh", "-c", script))...)
		return strings.Split(strings.TrimSpace(out), "\n")
	}
	for _, r := range run(spec + ":allow=read+write+create") {
		if !strings.HasSuffix(r, ": EPERM") {
			t.Error(r)
		}
	}
	if after := files(t, dir); !maps.Equal(before, after) {
		t.Errorf("it was %v, is %v", before, after)
	}
	for _, r := range run(spec) {
		if !strings.HasSuffix(r, ": ok") && !strings.HasPrefix(r, "pivot_root") {
			t.Errorf("without allow=: %s", r)
		}
	}
}
