package rmtree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(text), 0o644))
}

func wantFile(t testing.TB, path, text string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != text {
		t.Errorf("%s: %q, %v", path, b, err)
	}
}

func wantGone(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", path, err)
	}
}

func openFDs(t testing.TB) int {
	t.Helper()
	// The runtime's poller keeps two descriptors from its first use on.
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	es, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(es)
}

func TestRemove(t *testing.T) {
	before := openFDs(t)
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	write(t, outside+"/keep", "x")
	top := filepath.Join(dir, "tree")
	must(t, os.Mkdir(top, 0o755))
	must(t, os.Symlink(outside, top+"/link"))
	must(t, unix.Mkfifo(top+"/fifo", 0))
	write(t, top+"/locked/in/f", "x")
	must(t, os.Chmod(top+"/locked/in", 0))
	must(t, os.Chmod(top+"/locked", 0o500))
	// Deeper than any path can say.
	fd, err := unix.Open(top, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	const name = "a-name-that-makes-the-path-longer-than-the-kernel-accepts"
	for i := range 1500 {
		must(t, unix.Mkdirat(fd, name, 0o755))
		if i%100 == 0 {
			must(t, unix.Symlinkat(outside, fd, "out"))
			must(t, unix.Mkdirat(fd, ".sbx-removed-1", 0o755))
		}
		sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		unix.Close(fd)
		fd = sub
	}
	unix.Close(fd)
	must(t, os.Mkdir(top+"/wide", 0o755))
	for i := range 3000 {
		must(t, os.WriteFile(fmt.Sprintf("%s/wide/%d", top, i), nil, 0))
	}
	// No more descriptors than promised.
	var lim unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &lim))
	low := lim
	low.Cur = uint64(before + 2*maxDepth + 16)
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	err = Remove(top)
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &lim))
	must(t, err)
	wantGone(t, top)
	wantFile(t, outside+"/keep", "x")
	must(t, Remove(top)) // again
	must(t, Remove(dir+"/no/such"))
	must(t, os.Symlink(outside, top))
	must(t, Remove(top))
	wantFile(t, outside+"/keep", "x")
	if n := openFDs(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

func TestAt(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/tree/a/b/f", "x")
	must(t, os.Mkdir(dir+"/tree/empty", 0o755))
	var want []uint64
	for _, p := range []string{"tree", "tree/a", "tree/a/b", "tree/empty"} {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(dir, p), &st))
		want = append(want, st.Ino)
	}
	d, err := os.Open(dir)
	must(t, err)
	defer d.Close()
	seen := map[uint64]int{}
	must(t, At(int(d.Fd()), "tree", func(ino uint64) { seen[ino]++ }))
	wantGone(t, dir+"/tree")
	for _, ino := range want {
		if seen[ino] != 1 {
			t.Errorf("inode %d seen %d times", ino, seen[ino])
		}
	}
	if len(seen) != len(want) {
		t.Errorf("%d directories seen, want %d", len(seen), len(want))
	}
}

func TestEmpty(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a/b", "x")
	write(t, dir+"/c", "x")
	must(t, Empty(dir))
	es, err := os.ReadDir(dir)
	must(t, err)
	if len(es) != 0 {
		t.Errorf("left: %v", es)
	}
	if err := Empty(dir + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}
