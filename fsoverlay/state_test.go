package fsoverlay

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/rootless-sbx/sbx/internal/inroot"
	"github.com/rootless-sbx/sbx/internal/rmtree"
	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/internal/wire"
)

func TestHostsFile(t *testing.T) {
	b, err := HostsFile(HostsConfig{Own: []HostEntry{{netip.MustParseAddr("10.0.2.3"), []string{"box.example.org", "box"}}, {netip.MustParseAddr("fd00::3"), []string{"box"}}},
		Extra: []string{"db:10.1.1.1", "v6=[fd00::5]", "up:host-gateway"}, HostGateway: netip.MustParseAddr("10.0.2.1")})
	must(t, err)
	const want = `127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::	ip6-localnet
ff00::	ip6-mcastprefix
ff02::1	ip6-allnodes
ff02::2	ip6-allrouters
10.1.1.1	db
fd00::5	v6
10.0.2.1	up
10.0.2.3	box.example.org box
fd00::3	box
`
	if string(b) != want {
		t.Errorf("%s", b)
	}
	for _, bad := range []string{"x", ":1.2.3.4", "x:", "x:1.2.3", "a b:1.2.3.4", "x:fe80::1%eth0", "x\n:1.2.3.4", "up:host-gateway"} {
		if _, err := HostsFile(HostsConfig{Extra: []string{bad}}); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	if b, err := HostnameFile("box"); err != nil || string(b) != "box\n" {
		t.Errorf("%q %v", b, err)
	}
	for _, bad := range []string{"", "a\nb", "-x", strings.Repeat("x", 65)} {
		if _, err := HostnameFile(bad); err == nil {
			t.Errorf("host name %q was accepted", bad)
		}
	}
}

func TestReplaceHosts(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.2.3"), netip.MustParseAddr("10.0.2.4")
	old := []HostEntry{{a, []string{"box"}}, {b, []string{"box"}}}
	text, err := HostsFile(HostsConfig{Base: []byte("127.0.0.1\tlocalhost"), Own: old})
	must(t, err)
	text = append(text, "10.0.2.3\tmine\n# the end"...)
	const want = "127.0.0.1\tlocalhost\n10.0.2.3\tmine\n# the end\n10.0.2.4\tother box\n"
	if got := ReplaceHosts(text, old, []HostEntry{{b, []string{"other", "box"}}}); string(got) != want {
		t.Errorf("%q", got)
	}
}

func TestPlanIsData(t *testing.T) {
	p, err := BuildPlan(PlanConfig{Root: "/r", ReadOnly: true, TTY: true, Hosts: "/h", Mounts: []Mount{
		{Type: TypeTmpfs, Target: "/a/b/c", Size: 5}, {Type: TypeBind, Source: "/s", Target: "/a", ReadOnly: true},
		{Type: TypeVolume, DataDir: "/v/_data", Target: "/dev/shm"}}})
	must(t, err)
	b, err := json.Marshal(p)
	must(t, err)
	var q Plan
	must(t, json.Unmarshal(b, &q))
	if !reflect.DeepEqual(p, q) {
		t.Errorf("%s\nis not\n%s", q, p)
	}
	s := p.String()
	for i, want := range []string{"slave", "root      /r", "mount     proc on /proc [nosuid,nodev,noexec], else bind", "/dev/null on /dev/null",
		"bind      /s on /a [ro]", "copy-up   /v/_data on /dev/shm", "tmpfs on /a/b/c [size=5]", "/dev/console", "mask      /proc/kcore", "read-only /", "pivot"} {
		n := strings.Index(s, want)
		if n < 0 {
			t.Fatalf("%d: no %q in\n%s", i, want, p)
		}
		s = s[n:]
	}
	if strings.Contains(p.String(), "tmpfs on /dev/shm") {
		t.Error("the user's /dev/shm would be covered")
	}
	for _, bad := range []PlanConfig{
		{Root: "rel"},
		{Root: "/r", Mounts: []Mount{{Type: TypeTmpfs, Target: "/a"}, {Type: TypeTmpfs, Target: "/a/"}}},
		{Root: "/r", Mounts: []Mount{{Type: TypeTmpfs, Target: "/x/../"}}},
		{Root: "/r", Mounts: []Mount{{Type: TypeTmpfs, Target: "/proc"}}},
		{Root: "/r", Mounts: []Mount{{Type: TypeTmpfs, Target: "/proc/self"}}},
		{Root: "/r", Mounts: []Mount{{Type: "image", Target: "/x"}}},
		{Root: "/r", Mounts: []Mount{{Type: TypeVolume, Source: "v", Target: "/x"}}},
		{Root: "/r", Mounts: []Mount{{Type: TypeBind, Source: "rel", Target: "/x"}}},
		{Root: "/r", Mounts: make([]Mount, MaxMounts+1)},
	} {
		var we *wire.Error
		if _, err := BuildPlan(bad); !errors.As(err, &we) || we.Code == "" {
			t.Errorf("%.60v: %v", bad.Mounts, err)
		}
	}
}

func TestVolumes(t *testing.T) {
	before := openFDs(t)
	ctx := t.Context()
	v := &Volumes{Root: filepath.Join(t.TempDir(), "volumes")}
	if l, err := v.List(); err != nil || len(l) != 0 {
		t.Errorf("%v %v", l, err)
	}
	a, err := v.Create(ctx, "alpha", map[string]string{"k": "v"})
	must(t, err)
	write(t, a.DataDir+"/f", "x")
	if again, err := v.Create(ctx, "alpha", nil); !errors.Is(err, ErrVolumeExists) || again.Labels["k"] != "v" {
		t.Errorf("%v %v", again, err)
	}
	for _, bad := range []string{"a", "../x", "a/b", ".hidden", "a b", strings.Repeat("x", 256)} {
		if _, err := v.Create(ctx, bad, nil); !errors.Is(err, ErrVolumeName) {
			t.Errorf("%q: %v", bad, err)
		}
		if _, err := v.Get(bad); !errors.Is(err, ErrVolumeName) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := v.Remove(ctx, "nothere"); !errors.Is(err, ErrNoVolume) {
		t.Errorf("%v", err)
	}
	ms, made, hold, err := v.Resolve(ctx, []Mount{
		{Type: TypeVolume, Source: "alpha", Target: "/a"}, {Type: TypeVolume, Target: "/b"},
		{Type: TypeVolume, Source: "beta", Target: "/c", Labels: map[string]string{"x": "y"}}, {Type: TypeTmpfs, Target: "/d"}})
	must(t, err)
	if len(made) != 1 || len(made[0]) != 64 || ms[1].Source != made[0] || !ms[1].Anonymous || ms[0].Anonymous {
		t.Errorf("%q %+v", made, ms)
	}
	for _, m := range ms[:3] {
		if st, err := os.Stat(m.DataDir); err != nil || !st.IsDir() {
			t.Errorf("%s: %v", m.Source, err)
		}
		if err := v.Remove(ctx, m.Source); !errors.Is(err, ErrVolumeInUse) {
			t.Errorf("%s: %v", m.Source, err)
		}
	}
	l, err := v.List()
	if err != nil || len(l) != 3 {
		t.Errorf("%v %v", l, err)
	}
	must(t, hold.Close())
	// Removal fails half-way: the name is free, the rest goes next time.
	v.RemoveTree = func(context.Context, string) error { return unix.EIO }
	if err := v.Remove(ctx, "alpha"); !errors.Is(err, unix.EIO) {
		t.Errorf("%v", err)
	}
	if _, err := v.Get("alpha"); !errors.Is(err, ErrNoVolume) {
		t.Errorf("%v", err)
	}
	v.RemoveTree = nil
	must(t, v.Remove(ctx, "beta"))
	must(t, v.Remove(ctx, made[0]))
	wantNames(t, v.Root, storeLock)
	_, _, _, err = v.Resolve(ctx, []Mount{{Type: TypeVolume, Target: "/b"}, {Type: TypeVolume, Source: "../x", Target: "/c"}})
	if !errors.Is(err, ErrVolumeName) {
		t.Errorf("%v", err)
	}
	wantNames(t, v.Root, storeLock) // the anonymous one went again

	var wg sync.WaitGroup
	var count, exists sync.Map
	for i := range 8 {
		wg.Go(func() {
			w := &Volumes{Root: v.Root}
			_, err := w.Create(ctx, "race", nil)
			switch {
			case err == nil:
				count.Store(i, true)
			case errors.Is(err, ErrVolumeExists):
				exists.Store(i, true)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n := 0
	count.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d made the volume", n)
	}
	if n := openFDs(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

func TestFillVolume(t *testing.T) {
	if !inUserns(t, roleRange) {
		return
	}
	dir := scratch(t)
	v := &Volumes{Root: dir + "/volumes"}
	vol, err := v.Create(t.Context(), "vol", nil)
	must(t, err)
	src := dir + "/image"
	write(t, src+"/sub/f", "x")
	must(t, os.Chown(src, 33, 34))
	must(t, os.Chmod(src, 0o2750))
	must(t, os.Chown(src+"/sub/f", 7, 8))
	fd, err := inroot.OpenDir(src)
	must(t, err)
	defer unix.Close(fd)
	fill := func() {
		t.Helper()
		notes, err := fillVolume(t.Context(), vol.DataDir, fd)
		if must(t, err); len(notes) > 0 {
			t.Errorf("notes %q", notes)
		}
	}
	fill()
	if got, want := digest(t, vol.DataDir), digest(t, src); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	// It has contents: left alone.
	must(t, os.Remove(vol.DataDir+"/sub/f"))
	fill()
	wantGone(t, vol.DataDir+"/sub/f")
	// An attempt that broke off: done over.
	write(t, filepath.Join(filepath.Dir(vol.DataDir), fillMarker), "")
	write(t, vol.DataDir+"/half", "")
	fill()
	wantNames(t, vol.DataDir, "sub")
	wantFile(t, vol.DataDir+"/sub/f", "x")
	// A guest that has the volume mounted puts a link where the copy writes.
	must(t, rmtree.Empty(vol.DataDir))
	write(t, dir+"/outside/f", "safe")
	c := &treeCopy{src: &stack{roots: []int{fd}}, links: map[linkKey]string{}, skipped: map[string]int{}}
	c.dst, err = inroot.OpenDir(vol.DataDir)
	must(t, err)
	defer unix.Close(c.dst)
	top, err := c.src.root()
	must(t, err)
	sub, err := c.dir(t.Context(), top)
	must(t, err)
	must(t, os.Remove(vol.DataDir+"/sub"))
	must(t, os.Symlink(dir+"/outside", vol.DataDir+"/sub"))
	if _, err := c.dir(t.Context(), sub[0]); !errors.Is(err, unix.ELOOP) {
		t.Errorf("copied through a link: %v", err)
	}
	wantFile(t, dir+"/outside/f", "safe")
}

func TestInitLayer(t *testing.T) {
	if !inUserns(t, roleRange) {
		return
	}
	for _, driver := range Drivers {
		t.Run(driver, func(t *testing.T) {
			e := newEnv(t, driver)
			l := e.layer()
			write(t, l+"/etc/hosts", "image")
			must(t, os.Symlink("../run/systemd/resolve/stub-resolv.conf", l+"/etc/resolv.conf"))
			must(t, os.Symlink("/proc/sys/kernel/hostname", l+"/etc/hostname"))
			must(t, os.Mkdir(l+"/srv", 0o755))
			l = e.layer()
			must(t, os.Mkdir(l+"/run", 0o750))
			must(t, os.Chown(l+"/run", 5, 6))
			must(t, os.Mkdir(l+"/etc", 0o711))
			must(t, os.Symlink("/srv", l+"/data"))
			must(t, os.Symlink("loop", l+"/loop"))
			host := e.path("file")
			write(t, host, "f")
			before := lstat(t, l+"/run")
			layer := e.path("init")
			must(t, BuildInitLayer(layer, InitLayerConfig{Lowers: e.spec.Lowers, Mounts: []Mount{
				{Type: TypeBind, Source: host, Target: "/data/f"}, {Type: TypeTmpfs, Target: "/cache/x"},
				{Type: TypeTmpfs, Target: "/srv/t"}, {Type: TypeTmpfs, Target: "/srv/t/below"}, {Type: TypeTmpfs, Target: "/loop/x"}}}))
			if err := BuildInitLayer(layer, InitLayerConfig{}); !errors.Is(err, unix.ENOTEMPTY) {
				t.Errorf("a second time: %v", err)
			}
			e.spec.Lowers = append([]string{layer}, e.spec.Lowers...)
			m := e.mount()
			wantFile(t, m+"/etc/hosts", "image")
			wantFile(t, m+"/run/systemd/resolve/stub-resolv.conf", "")
			wantFile(t, m+"/etc/hostname", "") // the link into /proc was replaced
			if st := lstat(t, m+"/run"); st.Mode != before.Mode || st.Uid != 5 || st.Gid != 6 || st.Mtim != before.Mtim {
				t.Errorf("/run: mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
			}
			if st := lstat(t, m+"/etc"); st.Mode&0o7777 != 0o711 {
				t.Errorf("/etc: mode %o", st.Mode)
			}
			wantNames(t, m+"/srv", "f", "t")
			wantNames(t, m+"/srv/t")
			if st := lstat(t, m+"/cache/x"); st.Mode&0o7777 != 0o1777 {
				t.Errorf("/cache/x: mode %o", st.Mode)
			}
			wantNames(t, m, "cache", "data", "dev", "etc", "loop", "proc", "run", "srv", "sys")
			wantNames(t, m+"/etc", "hostname", "hosts", "mtab", "resolv.conf")
			if driver != DriverCopy {
				wantNames(t, e.spec.Upper) // nothing of it in the writable layer
			}
		})
	}
}

// TestMarksBeside: what a layer has beside a mark stays, in whichever order the two
// came, and does not merge with what is below.
func TestMarksBeside(t *testing.T) {
	dir := t.TempDir()
	low, high := dir+"/low", dir+"/high"
	for _, f := range []string{"file", "again/hidden", "file-to-dir", strings.Repeat("n", 255)} {
		write(t, low+"/"+f, "0")
	}
	for _, f := range []string{".wh.file", ".wh.again", ".wh.file-to-dir"} {
		write(t, high+"/"+f, "")
	}
	for _, f := range []string{"file", "again/shown", "file-to-dir/x"} {
		write(t, high+"/"+f, "1")
	}
	_, err := copyLayers(t.Context(), []string{high, low}, dir+"/out")
	must(t, err)
	wantNames(t, dir+"/out", "file", "again", "file-to-dir", strings.Repeat("n", 255))
	wantNames(t, dir+"/out/again", "shown")
	wantFile(t, dir+"/out/file", "1")
	wantFile(t, dir+"/out/file-to-dir/x", "1")
	// A directory that is no layer keeps such names.
	fd, err := inroot.OpenDir(high)
	must(t, err)
	defer unix.Close(fd)
	vol, err := (&Volumes{Root: dir + "/volumes"}).Create(t.Context(), "vol", nil)
	must(t, err)
	_, err = fillVolume(t.Context(), vol.DataDir, fd)
	must(t, err)
	wantNames(t, vol.DataDir, ".wh.again", ".wh.file", ".wh.file-to-dir", "again", "file", "file-to-dir")
}
