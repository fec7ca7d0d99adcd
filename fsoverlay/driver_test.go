package fsoverlay

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func TestDriversRange(t *testing.T) {
	if inUserns(t, roleRange) {
		conformance(t, false)
	}
}

func TestDriversSingleID(t *testing.T) {
	if inUserns(t, roleSingle) {
		conformance(t, true)
	}
}

func conformance(t *testing.T, single bool) {
	for _, r := range Probe(t.Context(), os.Getenv(envDir)) {
		t.Run(r.Driver, func(t *testing.T) {
			if !r.OK {
				t.Fatalf("not available: %s (%s)", r.Reason, r.Fix)
			}
			for _, c := range conformanceTests {
				if c.manyIDs && single {
					continue
				}
				t.Run(c.name, func(t *testing.T) {
					e := newEnv(t, r.Driver)
					c.run(t, e)
				})
			}
		})
	}
}

// env is a root under test.
type env struct {
	t      *testing.T
	dir    string
	spec   RootSpec
	prep   *Prepared
	mounts int
}

func newEnv(t *testing.T, driver string) *env {
	e := &env{t: t, dir: scratch(t)}
	e.spec = RootSpec{Driver: driver, Upper: e.path("upper"), Work: e.path("work"), Merged: e.path("merged")}
	return e
}

func (e *env) path(s ...string) string { return filepath.Join(append([]string{e.dir}, s...)...) }

// layer adds a layer on top of those there are and returns its directory.
func (e *env) layer() string {
	e.t.Helper()
	l := e.path(fmt.Sprintf("layer%d", len(e.spec.Lowers)))
	must(e.t, os.Mkdir(l, 0o755))
	e.spec.Lowers = slices.Insert(e.spec.Lowers, 0, l)
	return l
}

// mount makes the root appear and returns its path. It goes at the end of the
// test, with a check that nothing stays behind.
func (e *env) mount() string {
	t := e.t
	t.Helper()
	d, err := NewDriver(e.spec.Driver, nil)
	must(t, err)
	before := mountCount(t)
	e.prep, err = d.Prepare(t.Context(), e.spec)
	must(t, err)
	if len(e.prep.Notes) > 0 {
		t.Logf("notes: %q", e.prep.Notes)
	}
	must(t, d.Mount(e.spec))
	e.mounts++
	t.Cleanup(func() {
		e.unmount()
		if n := mountCount(t); n != before {
			t.Errorf("%d mounts, %d before the test", n, before)
		}
	})
	return e.spec.Merged
}

func (e *env) unmount() {
	e.t.Helper()
	if e.mounts == 0 {
		return
	}
	e.mounts--
	if e.spec.Driver != DriverFuse {
		must(e.t, unix.Unmount(e.spec.Merged, 0))
	}
	must(e.t, e.prep.Detach())
	if p := e.prep.Process; p != nil {
		select {
		case <-p.Done():
			if err := p.Wait(); err != nil {
				e.t.Errorf("end of the process: %v", err)
			}
		case <-time.After(5 * time.Second):
			e.t.Error("fuse-overlayfs does not end with its last mount")
		}
	}
	must(e.t, e.prep.Close())
}

func mountCount(t *testing.T) int {
	t.Helper()
	m, err := mountinfo.GetMounts(nil)
	must(t, err)
	return len(m)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(text), 0o644))
}

func wantFile(t *testing.T, path, text string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || string(b) != text {
		t.Errorf("%s: %q, %v; want %q", path, b, err, text)
	}
}

func wantGone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v; want it not to exist", path, err)
	}
}

func wantNames(t *testing.T, dir string, names ...string) {
	t.Helper()
	es, err := os.ReadDir(dir)
	must(t, err)
	var got []string
	for _, e := range es {
		got = append(got, e.Name())
	}
	slices.Sort(names)
	if !slices.Equal(got, names) {
		t.Errorf("%s holds %q, want %q", dir, got, names)
	}
}

func lstat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	return st
}

func whiteout(t *testing.T, path string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, unix.Mknod(path, unix.S_IFCHR, 0))
}

func opaque(t *testing.T, path string) {
	t.Helper()
	must(t, os.MkdirAll(path, 0o755))
	must(t, unix.Setxattr(path, opaqueXattr, []byte("y"), 0))
}

// digest is a tree as text: what a user sees of it.
func digest(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st := lstat(t, p)
		rel, _ := filepath.Rel(root, p)
		fmt.Fprintf(&b, "%s %o %d:%d %d", rel, st.Mode, st.Uid, st.Gid, st.Mtim.Sec)
		switch {
		case d.Type().IsRegular():
			c, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %q", c)
		case d.Type()&fs.ModeSymlink != 0:
			l, _ := os.Readlink(p)
			b.WriteString(" -> " + l)
		}
		b.WriteByte('\n')
		return nil
	})
	must(t, err)
	return b.String()
}

var conformanceTests = []struct {
	name    string
	manyIDs bool
	run     func(*testing.T, *env)
}{
	{"copy up", false, func(t *testing.T, e *env) {
		write(t, e.layer()+"/etc/conf", "old")
		m := e.mount()
		f, err := os.OpenFile(m+"/etc/conf", os.O_APPEND|os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteString("+new")
		must(t, errors.Join(err, f.Close()))
		wantFile(t, m+"/etc/conf", "old+new")
		wantFile(t, e.spec.Lowers[0]+"/etc/conf", "old")
	}},
	{"layers merge", false, func(t *testing.T, e *env) {
		l := e.layer()
		write(t, l+"/a", "0")
		write(t, l+"/d/low", "0")
		write(t, l+"/d/both", "0")
		write(t, l+"/gone", "0")
		write(t, l+"/dir/sub/file", "0")
		write(t, l+"/o/hidden", "0")
		write(t, l+"/file-to-dir", "0")
		write(t, l+"/dir-to-file/x", "0")
		l = e.layer()
		write(t, l+"/d/both", "1")
		write(t, l+"/d/high", "1")
		whiteout(t, l+"/gone")
		whiteout(t, l+"/dir/sub")
		opaque(t, l+"/o")
		write(t, l+"/o/shown", "1")
		write(t, l+"/file-to-dir/x", "1")
		write(t, l+"/dir-to-file", "1")
		l = e.layer()
		write(t, l+"/dir/sub/again", "2")
		m := e.mount()
		wantNames(t, m, "a", "d", "dir", "o", "file-to-dir", "dir-to-file")
		wantNames(t, m+"/d", "low", "both", "high")
		wantFile(t, m+"/d/both", "1")
		wantNames(t, m+"/o", "shown")
		wantGone(t, m+"/o/hidden")
		wantNames(t, m+"/dir/sub", "again")
		wantFile(t, m+"/file-to-dir/x", "1")
		wantFile(t, m+"/dir-to-file", "1")
	}},
	{"whiteout files", false, func(t *testing.T, e *env) {
		if e.spec.Driver == DriverNative {
			t.Log("the kernel's overlay takes them for files; Probe and image keep them away from it")
			return
		}
		l := e.layer()
		for _, f := range []string{"gone", "dir/sub/file", "dir/kept", "o/hidden", "o/deep/hidden"} {
			write(t, l+"/"+f, "0")
		}
		l = e.layer()
		for _, f := range []string{".wh.gone", "dir/.wh.sub", ".wh.nothing"} {
			write(t, l+"/"+f, "")
		}
		if e.spec.Driver == DriverFuse {
			opaque(t, l+"/o") // the file is forgotten after the first listing, see probeRoot
		} else {
			write(t, l+"/o/.wh..wh..opq", "")
		}
		write(t, l+"/o/shown", "1")
		l = e.layer()
		write(t, l+"/dir/sub/again", "2")
		m := e.mount()
		wantNames(t, m, "dir", "o")
		wantNames(t, m+"/dir", "kept", "sub")
		wantNames(t, m+"/dir/sub", "again")
		wantNames(t, m+"/o", "shown")
		for _, f := range []string{"gone", "nothing", ".wh.gone", "o/deep"} {
			wantGone(t, m+"/"+f)
		}
		write(t, m+"/gone", "new")
		must(t, os.RemoveAll(m+"/o"))
		wantNames(t, m, "dir", "gone")
	}},
	{"remove and make anew", false, func(t *testing.T, e *env) {
		l := e.layer()
		write(t, l+"/f", "0")
		write(t, l+"/d/x", "0")
		m := e.mount()
		must(t, os.Remove(m+"/f"))
		must(t, os.RemoveAll(m+"/d"))
		wantNames(t, m)
		must(t, os.Mkdir(m+"/d", 0o700))
		wantNames(t, m+"/d")
		write(t, m+"/f", "new")
		wantFile(t, m+"/f", "new")
		wantFile(t, l+"/d/x", "0")
	}},
	{"upper survives", false, func(t *testing.T, e *env) {
		l := e.layer()
		write(t, l+"/f", "0")
		write(t, l+"/keep", "0")
		write(t, l+"/d/x", "0")
		m := e.mount()
		must(t, os.Remove(m+"/f"))
		must(t, os.RemoveAll(m+"/d"))
		must(t, os.Mkdir(m+"/d", 0o755))
		write(t, m+"/keep", "1")
		write(t, m+"/new", "1")
		before := digest(t, m)
		e.unmount()
		m = e.mount()
		if after := digest(t, m); after != before {
			t.Errorf("after a second mount:\n%s\nbefore:\n%s", after, before)
		}
	}},
	{"rename", false, func(t *testing.T, e *env) {
		l := e.layer()
		write(t, l+"/f", "0")
		write(t, l+"/d/x", "0")
		write(t, e.layer()+"/d/y", "1")
		m := e.mount()
		must(t, os.Rename(m+"/f", m+"/g"))
		wantFile(t, m+"/g", "0")
		must(t, os.Mkdir(m+"/mine", 0o755))
		must(t, os.Rename(m+"/mine", m+"/yours"))
		// A directory of lower layers: the overlay may refuse, as across devices,
		// and mv then copies.
		err := os.Rename(m+"/d", m+"/e")
		if errors.Is(err, unix.EXDEV) && e.spec.Driver != DriverCopy {
			wantNames(t, m, "d", "g", "yours")
			wantNames(t, m+"/d", "x", "y")
			return
		}
		must(t, err)
		wantNames(t, m, "e", "g", "yours")
		wantNames(t, m+"/e", "x", "y")
	}},
	{"hard links", false, func(t *testing.T, e *env) {
		l := e.layer()
		write(t, l+"/a", "x")
		must(t, os.Mkdir(l+"/d", 0o755))
		must(t, os.Link(l+"/a", l+"/d/b"))
		m := e.mount()
		wantFile(t, m+"/d/b", "x")
		if a, b := lstat(t, m+"/a"), lstat(t, m+"/d/b"); a.Nlink != 2 || a.Ino != b.Ino {
			t.Errorf("links %d, inodes %d %d", a.Nlink, a.Ino, b.Ino)
		}
		write(t, m+"/n", "y")
		must(t, os.Link(m+"/n", m+"/d/n"))
		write(t, m+"/n", "z")
		wantFile(t, m+"/d/n", "z")
	}},
	{"attributes", false, func(t *testing.T, e *env) {
		l := e.layer()
		write(t, l+"/f", "x")
		must(t, unix.Setxattr(l+"/f", "user.colour", []byte("blue"), 0))
		m := e.mount()
		var b [16]byte
		n, err := unix.Getxattr(m+"/f", "user.colour", b[:])
		if err != nil || string(b[:n]) != "blue" {
			t.Errorf("%q, %v", b[:n], err)
		}
		must(t, unix.Setxattr(m+"/f", "user.colour", []byte("red"), 0))
		n, err = unix.Getxattr(m+"/f", "user.colour", b[:])
		if err != nil || string(b[:n]) != "red" {
			t.Errorf("%q, %v", b[:n], err)
		}
	}},
	{"modes and times", false, func(t *testing.T, e *env) {
		l := e.layer()
		write(t, l+"/suid", "x")
		write(t, l+"/d/x", "x")
		must(t, os.Chmod(l+"/suid", 0o755|fs.ModeSetuid))
		must(t, os.Chmod(l+"/d", 0o700|fs.ModeSticky|fs.ModeSetgid))
		old := time.Unix(1e9, 0)
		must(t, os.Chtimes(l+"/suid", old, old))
		must(t, os.Chtimes(l+"/d", old, old))
		m := e.mount()
		if st := lstat(t, m+"/suid"); st.Mode != unix.S_IFREG|0o4755 || st.Mtim.Sec != 1e9 {
			t.Errorf("suid: mode %o, time %d", st.Mode, st.Mtim.Sec)
		}
		if st := lstat(t, m+"/d"); st.Mode != unix.S_IFDIR|0o3700 || st.Mtim.Sec != 1e9 {
			t.Errorf("d: mode %o, time %d", st.Mode, st.Mtim.Sec)
		}
		must(t, os.Chmod(m+"/suid", 0o640|fs.ModeSetgid))
		if st := lstat(t, m+"/suid"); st.Mode != unix.S_IFREG|0o2640 {
			t.Errorf("after chmod: mode %o", st.Mode)
		}
	}},
	{"owners", true, func(t *testing.T, e *env) {
		l := e.layer()
		write(t, l+"/f", "x")
		write(t, l+"/d/x", "x")
		must(t, os.Chown(l+"/f", 33, 34))
		must(t, os.Chown(l+"/d", 1000, 65534))
		m := e.mount()
		if st := lstat(t, m+"/f"); st.Uid != 33 || st.Gid != 34 {
			t.Errorf("f: %d:%d", st.Uid, st.Gid)
		}
		if st := lstat(t, m+"/d"); st.Uid != 1000 || st.Gid != 65534 {
			t.Errorf("d: %d:%d", st.Uid, st.Gid)
		}
		must(t, os.Chown(m+"/f", 65534, 1))
		must(t, os.Chown(m+"/d/x", 7, 8))
		if st := lstat(t, m+"/f"); st.Uid != 65534 || st.Gid != 1 {
			t.Errorf("f after chown: %d:%d", st.Uid, st.Gid)
		}
		if st := lstat(t, m+"/d/x"); st.Uid != 7 || st.Gid != 8 {
			t.Errorf("x after chown: %d:%d", st.Uid, st.Gid)
		}
	}},
	{"owners that are not mapped", false, func(t *testing.T, e *env) {
		write(t, e.layer()+"/f", "x")
		m := e.mount()
		if err := os.Chown(m+"/f", 1<<20, 1<<20); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%v", err)
		}
		wantFile(t, m+"/f", "x")
	}},
	{"file capabilities", true, func(t *testing.T, e *env) {
		l := e.layer()
		write(t, l+"/ping", "x")
		must(t, os.Chown(l+"/ping", 0, 5))
		// VFS_CAP_REVISION_2 with the effective bit, CAP_NET_RAW permitted.
		cap := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		must(t, unix.Setxattr(l+"/ping", "security.capability", cap, 0))
		m := e.mount()
		var b [32]byte
		n, err := unix.Getxattr(m+"/ping", "security.capability", b[:])
		if err != nil || !bytes.Equal(b[:n], cap) {
			t.Errorf("% x, %v", b[:n], err)
		}
	}},
	{"mmap", false, func(t *testing.T, e *env) {
		write(t, e.layer()+"/f", strings.Repeat("a", 8192))
		m := e.mount()
		f, err := os.OpenFile(m+"/f", os.O_RDWR, 0)
		must(t, err)
		defer f.Close()
		b, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		must(t, err)
		b[5000] = 'b'
		must(t, unix.Msync(b, unix.MS_SYNC))
		must(t, unix.Munmap(b))
		c, err := os.ReadFile(m + "/f")
		if err != nil || c[5000] != 'b' || c[4999] != 'a' {
			t.Errorf("%v", err)
		}
	}},
	{"big sparse file", false, func(t *testing.T, e *env) {
		l := e.layer()
		f, err := os.Create(l + "/big")
		must(t, err)
		_, err = f.WriteAt([]byte("end"), 1<<28)
		must(t, err)
		_, err = f.WriteAt(bytes.Repeat([]byte("m"), 1<<20), 128<<20)
		must(t, errors.Join(err, f.Close()))
		m := e.mount()
		must(t, os.Chmod(m+"/big", 0o600))
		f, err = os.OpenFile(m+"/big", os.O_RDWR, 0)
		must(t, err)
		defer f.Close()
		b := make([]byte, 3)
		if _, err := f.ReadAt(b, 1<<28); err != nil || string(b) != "end" {
			t.Errorf("%q, %v", b, err)
		}
		if _, err := f.ReadAt(b, 129<<20-3); err != nil || string(b) != "mmm" {
			t.Errorf("%q, %v", b, err)
		}
		if st := lstat(t, m+"/big"); st.Size != 1<<28+3 || st.Blocks*512 > 64<<20 && e.spec.Driver != DriverFuse /* fills holes when it copies up */ {
			t.Errorf("%d bytes use %d", st.Size, st.Blocks*512)
		}
	}},
	{"fifty layers", false, func(t *testing.T, e *env) {
		for i := range 50 {
			l := e.layer()
			write(t, fmt.Sprintf("%s/d/f%d", l, i), "x")
			write(t, l+"/top", fmt.Sprint(i))
		}
		m := e.mount()
		wantFile(t, m+"/top", "49")
		es, err := os.ReadDir(m + "/d")
		if err != nil || len(es) != 50 {
			t.Errorf("%d names, %v", len(es), err)
		}
	}},
	{"names", false, func(t *testing.T, e *env) {
		odd := []string{strings.Repeat("n", 250), "a b", "c:d", "e,f", "g\\h", "i=j", "k\nl", "ü", "\xff\xfe", "'\"$(x)"}
		// The directories themselves have such names too.
		plain := e.dir
		e.dir = e.path("a:b,c\\d e" + strings.Repeat("x", 200))
		must(t, os.Mkdir(e.dir, 0o755))
		e.spec.Upper, e.spec.Work, e.spec.Merged = e.path("up:per"), e.path("wo,rk"), e.path("mer\\ged")
		l := e.layer()
		if e.spec.Driver == DriverFuse {
			_, err := fuseDriver{}.Prepare(t.Context(), e.spec)
			var de *DriverError
			if !errors.As(err, &de) || !strings.Contains(de.Reason, "colon") {
				t.Errorf("upper with a colon: %v", err)
			}
			e.spec.Upper = plain + "/up,p\\er x"
			e.spec.Work = plain + "/wo,rk"
		}
		for _, n := range odd {
			write(t, l+"/"+n, n)
		}
		l2 := e.layer()
		whiteout(t, l2+"/"+odd[3])
		m := e.mount()
		wantNames(t, m, slices.Delete(slices.Clone(odd), 3, 4)...)
		for i, n := range odd {
			if i != 3 {
				wantFile(t, m+"/"+n, n)
			}
		}
		must(t, os.Rename(m+"/a b", m+"/b:a"))
	}},
	{"links", false, func(t *testing.T, e *env) {
		l := e.layer()
		write(t, l+"/f", "x")
		must(t, os.Symlink("f", l+"/rel"))
		must(t, os.Symlink("/nowhere", l+"/abs"))
		must(t, os.Symlink(strings.Repeat("y", 1000), l+"/long"))
		must(t, unix.Mkfifo(l+"/fifo", 0o640))
		m := e.mount()
		wantFile(t, m+"/rel", "x")
		for n, want := range map[string]string{"abs": "/nowhere", "long": strings.Repeat("y", 1000)} {
			if got, err := os.Readlink(m + "/" + n); err != nil || got != want {
				t.Errorf("%s: %q, %v", n, got, err)
			}
		}
		if st := lstat(t, m+"/fifo"); st.Mode != unix.S_IFIFO|0o640 {
			t.Errorf("fifo: %o", st.Mode)
		}
		must(t, os.Remove(m+"/rel"))
		must(t, os.Symlink("abs", m+"/rel"))
		wantNames(t, m, "f", "rel", "abs", "long", "fifo")
	}},
	{"another user writes", true, func(t *testing.T, e *env) {
		l := e.layer()
		must(t, os.Mkdir(l+"/tmp", 0o777))
		must(t, os.Chmod(l+"/tmp", 0o777|fs.ModeSticky))
		write(t, l+"/secret", "x")
		must(t, os.Chmod(l+"/secret", 0o600))
		m := e.mount()
		asUser(t, 1000, func() error {
			if err := os.WriteFile(m+"/tmp/mine", []byte("x"), 0o600); err != nil {
				return err
			}
			if _, err := os.ReadFile(m + "/secret"); !errors.Is(err, fs.ErrPermission) {
				return fmt.Errorf("a file of root could be read: %v", err)
			}
			return nil
		})
		if st := lstat(t, m+"/tmp/mine"); st.Uid != 1000 {
			t.Errorf("owner %d", st.Uid)
		}
	}},
	{"read-only view", false, func(t *testing.T, e *env) {
		write(t, e.layer()+"/f", "x")
		e.spec.ReadOnly = true
		m := e.mount()
		wantFile(t, m+"/f", "x")
		if err := os.WriteFile(m+"/f", nil, 0o644); !errors.Is(err, unix.EROFS) {
			t.Errorf("write: %v", err)
		}
		e.unmount()
		write(t, e.layer()+"/g", "y")
		if e.spec.Driver == DriverCopy {
			return // its tree is there already
		}
		m = e.mount()
		wantFile(t, m+"/g", "y")
		if err := os.Remove(m + "/f"); !errors.Is(err, unix.EROFS) {
			t.Errorf("remove: %v", err)
		}
	}},
	{"changes", false, testChanges},
	{"export", false, testExport},
	{"owners from outside", true, testOwners},
}
