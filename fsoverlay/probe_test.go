package fsoverlay

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/internal/wire"
)

func TestChoose(t *testing.T) {
	rs := []ProbeResult{{Driver: DriverNative, Reason: "old kernel", Fix: "a new one"}, {Driver: DriverFuse, OK: true}, {Driver: DriverCopy, OK: true}}
	for _, c := range []struct{ forced, want, err string }{
		{"", DriverFuse, ""}, {DriverCopy, DriverCopy, ""}, {DriverNative, "", "old kernel"}, {"btrfs", "", "no such driver"},
	} {
		got, err := Choose(rs, c.forced)
		var de *DriverError
		if got != c.want || c.err != "" && (!errors.As(err, &de) || !strings.Contains(err.Error(), c.err)) || c.err == "" && err != nil {
			t.Errorf("%q: %q, %v", c.forced, got, err)
		}
	}
	_, err := Choose(rs, DriverNative)
	if w := wire.ToError("start", err); w.Code != CodeDriver || w.Fix != "a new one" || w.Msg != "old kernel" {
		t.Errorf("across processes: %#v", w)
	}
	_, err = Choose(rs[:1], "")
	var de *DriverError
	if !errors.As(err, &de) || !strings.HasPrefix(err.Error(), "no storage driver works here: native: old kernel") || de.Fix != "a new one" {
		t.Errorf("none: %v", err)
	}
	if w := wire.ToError("start", err); w.Code != CodeDriver || w.Step != "start: choose a storage driver" {
		t.Errorf("none, across processes: %#v", w)
	}
}

func TestProbeReasons(t *testing.T) {
	if !inUserns(t, roleSingle) {
		return
	}
	dir := scratch(t)
	before := mountCount(t)
	reason := func(p Prober, dir, driver string) ProbeResult {
		for _, r := range p.Probe(t.Context(), dir) {
			if r.Driver == driver {
				return r
			}
		}
		t.Fatalf("no result for %s", driver)
		return ProbeResult{}
	}
	want := func(r ProbeResult, text, fix string) {
		t.Helper()
		if r.OK || !strings.Contains(r.Reason, text) || !strings.Contains(r.Fix, fix) {
			t.Errorf("%+v, want %q and %q", r, text, fix)
		}
	}
	want(reason(Prober{FuseOverlayfs: "/nonexistent"}, dir, DriverFuse), "not installed", "install")
	old := filepath.Join(dir, "old")
	must(t, os.WriteFile(old, []byte("#!/bin/sh\necho fuse-overlayfs: version 1.4.0\n"), 0o755))
	want(reason(Prober{FuseOverlayfs: old}, dir, DriverFuse), "version 1.4", "newer")
	broken := filepath.Join(dir, "broken")
	must(t, os.WriteFile(broken, []byte("#!/bin/sh\n[ $1 = --version ] && echo fuse-overlayfs: version 1.14 && exit\necho went wrong >&2; exit 3\n"), 0o755))
	want(reason(Prober{FuseOverlayfs: broken}, dir, DriverFuse), "went wrong", "")

	// An overlay on an overlay.
	e := newEnv(t, DriverNative)
	write(t, e.layer()+"/f", "x")
	m := e.mount()
	want(reason(Prober{}, m, DriverNative), "is on an overlay itself", "volume")
	if err := unix.Mknod(m+"/whiteout", unix.S_IFCHR, 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("an overlay takes a whiteout: %v", err)
	}
	for _, d := range []string{DriverFuse, DriverCopy} {
		if r := reason(Prober{}, m, d); !r.OK {
			t.Errorf("on an overlay: %+v", r)
		}
	}
	e.unmount()

	// A read-only directory, and no /dev/fuse.
	must(t, unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY, ""))
	for _, d := range Drivers {
		want(reason(Prober{}, dir, d), "read-only", "writable")
	}
	must(t, unix.Unmount(dir, 0))
	must(t, unix.Mount("tmpfs", "/dev", "tmpfs", 0, ""))
	r := reason(Prober{}, dir, DriverFuse)
	must(t, unix.Unmount("/dev", 0))
	want(r, "no /dev/fuse", "--device")
	if n := mountCount(t); n != before {
		t.Errorf("%d mounts, %d before", n, before)
	}
	wantNames(t, dir, "broken", "old")
}

func TestProbeKey(t *testing.T) {
	dir := t.TempDir()
	prog := filepath.Join(dir, "prog")
	must(t, os.WriteFile(prog, nil, 0o755))
	p := Prober{FuseOverlayfs: prog}
	k1, err := p.ProbeKey(dir)
	must(t, err)
	k2, err := p.ProbeKey(dir)
	must(t, err)
	if k1 != k2 || !strings.Contains(k1, kernelRelease()) {
		t.Errorf("%s and %s", k1, k2)
	}
	must(t, os.Chtimes(prog, time.Unix(1, 0), time.Unix(1, 0)))
	k3, err := p.ProbeKey(dir)
	must(t, err)
	if k3 == k1 {
		t.Error("a new program has the same key")
	}
	if k4, err := p.ProbeKey("/proc"); err != nil || k4 == k3 {
		t.Errorf("another file system has the same key, %v", err)
	}
	c := &ProbeCache{Key: k1, Results: []ProbeResult{{Driver: "a"}, {Driver: "b"}, {Driver: "c", OK: true}}}
	b, err := json.Marshal(c)
	must(t, err)
	var d ProbeCache
	must(t, json.Unmarshal(b, &d))
	none := ProbeCache{Key: k1, Results: []ProbeResult{{Driver: "a"}, {Driver: "b"}, {Driver: "c"}}}
	if none.Valid(k1) {
		t.Error("the memory of a failure is kept")
	}
	if !d.Valid(k1) || d.Valid(k3) || (*ProbeCache)(nil).Valid(k1) {
		t.Errorf("%+v", d)
	}
}

func TestVersions(t *testing.T) {
	for _, c := range []struct {
		out          string
		major, minor int
		ok           bool
	}{
		{"fusermount3 version: 3.14.0\nfuse-overlayfs: version 1.10\nFUSE library", 1, 10, true},
		{"fuse-overlayfs: version 1.15-dev\n", 1, 15, true}, {"fuse-overlayfs: version x", 0, 0, false}, {"", 0, 0, false},
		{"fuse-overlayfs: version 99999999999999999999.1", 0, 0, false},
	} {
		a, b, ok := parseFuseVersion(c.out)
		if ok != c.ok || ok && (a != c.major || b != c.minor) {
			t.Errorf("%q: %d.%d %v", c.out, a, b, ok)
		}
	}
	if kernelAtLeast("5.10.0-8-amd64", 5, 11) || !kernelAtLeast("6.1.0", 5, 11) || !kernelAtLeast("5.11", 5, 11) {
		t.Error("kernelAtLeast")
	}
}

// The ways of older kernels.
func TestOverlayMount(t *testing.T) {
	if !inUserns(t, roleRange) {
		return
	}
	e := newEnv(t, DriverNative)
	for range MaxLowers {
		write(t, e.layer()+"/d/"+e.spec.Lowers[0][len(e.dir)+1:], "x")
	}
	_, err := nativeDriver{}.Prepare(t.Context(), e.spec)
	must(t, err)
	must(t, overlayMount(&e.spec))
	es, err := os.ReadDir(e.spec.Merged + "/d")
	if err != nil || len(es) != MaxLowers {
		t.Errorf("%d names, %v", len(es), err)
	}
	write(t, e.spec.Merged+"/d/new", "x")
	must(t, unix.Unmount(e.spec.Merged, 0))
	// The same through the new calls, with what was written.
	m := e.mount()
	if es, err := os.ReadDir(m + "/d"); err != nil || len(es) != MaxLowers+1 {
		t.Errorf("%d names, %v", len(es), err)
	}
	e.spec.Lowers = append(e.spec.Lowers, e.spec.Lowers[0])
	if _, err := (nativeDriver{}).Prepare(t.Context(), e.spec); err == nil {
		t.Error("too many layers were accepted")
	}
}

func TestFuseProcess(t *testing.T) {
	if !inUserns(t, roleRange) {
		return
	}
	before := openFDs(t)
	mounts := mountCount(t)
	e := newEnv(t, DriverFuse)
	write(t, e.layer()+"/f", "x")
	prep, err := fuseDriver{}.Prepare(t.Context(), e.spec)
	must(t, err)
	must(t, fuseDriver{}.Mount(e.spec))
	// Its death is seen, and closing afterwards is fine.
	must(t, unix.Kill(prep.Process.PID, unix.SIGKILL))
	select {
	case <-prep.Process.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("death not seen")
	}
	if err := prep.Process.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("%v", err)
	}
	must(t, prep.Close())
	must(t, prep.Close())
	if err := (fuseDriver{}).Mount(e.spec); err == nil {
		t.Error("mounted without a process")
	}
	// A file keeps the mount busy: Close still ends the process.
	prep, err = fuseDriver{}.Prepare(t.Context(), e.spec)
	must(t, err)
	f, err := os.Open(e.spec.Merged + "/f")
	must(t, err)
	must(t, prep.Close())
	if err := syscall.Kill(prep.Process.PID, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the process is still there: %v", err)
	}
	f.Close()
	if n := openFDs(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
	if n := mountCount(t); n != mounts {
		t.Errorf("%d mounts, %d before", n, mounts)
	}
}

func TestPrepareSources(t *testing.T) {
	dir := t.TempDir()
	must(t, PrepareSources([]Mount{{Type: TypeBind, Source: dir + "/a/b", CreateSource: true}, {Type: TypeBind, Source: dir}, {Type: TypeTmpfs}}))
	if st, err := os.Stat(dir + "/a/b"); err != nil || !st.IsDir() {
		t.Error(err)
	}
	if err := PrepareSources([]Mount{{Type: TypeBind, Source: dir + "/c"}}); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("%v", err)
	}
}
