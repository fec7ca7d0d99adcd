package inroot

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func openFDs(t testing.TB) int {
	t.Helper()
	// The runtime's poller keeps two descriptors from its first use on.
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}

// The walk by single names must find what the kernel finds.
func TestWalkAgreesWithOpenat2(t *testing.T) {
	before := openFDs(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	names := []string{"a", "b", "c", "..", ".", "", "l", "missing"}
	path := func(n int) string {
		var p []string
		for range 1 + rnd.IntN(n) {
			p = append(p, names[rnd.IntN(len(names))])
		}
		return strings.Repeat("/", rnd.IntN(2)) + strings.Join(p, "/")
	}
	found, missing := 0, 0
	for range 60 {
		dir := t.TempDir()
		for range 25 {
			p := filepath.Join(dir, filepath.Join("/", path(4)))
			switch rnd.IntN(4) {
			case 0:
				os.WriteFile(p, nil, 0o644)
			case 1, 2:
				os.MkdirAll(p, 0o755)
			case 3:
				os.Symlink(path(5), p)
			}
		}
		root, err := OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for range 200 {
			p := path(6)
			l := Lookup{NoLinks: rnd.IntN(4) == 0}
			how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
			if l.NoLinks {
				how.Resolve |= unix.RESOLVE_NO_SYMLINKS
			}
			rel := strings.TrimLeft(p, "/")
			if rel == "" {
				rel = "."
			}
			want, werr := unix.Openat2(root, rel, &how)
			for errors.Is(werr, unix.EAGAIN) { // a rename elsewhere raced with ".."
				want, werr = unix.Openat2(root, rel, &how)
			}
			got, gerr := walk(root, p, l)
			switch {
			case werr == nil && gerr == nil:
				found++
				var a, b unix.Stat_t
				unix.Fstat(want, &a)
				unix.Fstat(got, &b)
				if a.Ino != b.Ino {
					t.Errorf("%q: inode %d, want %d", p, b.Ino, a.Ino)
				}
			case werr != nil && gerr != nil:
				missing++
			// The kernel insists that "f/." and "f/" are directories; the walk
			// drops "." and "".
			case errors.Is(werr, unix.ENOTDIR):
			// ".." after something that is missing or a file.
			default:
				t.Errorf("%q: %v, want %v", p, gerr, werr)
			}
			for _, fd := range []int{want, got} {
				if fd >= 0 {
					unix.Close(fd)
				}
			}
		}
		unix.Close(root)
	}
	if found < 500 || missing < 500 {
		t.Errorf("only %d found and %d missing", found, missing)
	}
	if n := openFDs(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

func TestOpenInCreates(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	dir, outside := t.TempDir(), t.TempDir()
	root, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	for link, target := range map[string]string{
		"abs": outside, "up": "../../../../" + outside, "dangling": "some/where", "loop": "loop", "file-link": "/x/y/z",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		path  string
		kind  Kind
		lands string
		err   error
	}{
		{"/new/dir", Dir, "new/dir", nil},
		{"/new/file", File, "new/file", nil},
		{"/abs/x", Dir, outside + "/x", nil},
		{"/up/y", File, outside + "/y", nil},
		{"/dangling/d", Dir, "some/where/d", nil},
		{"/dangling/../f", File, "some/f", nil},
		{"/file-link", File, "x/y/z", nil},
		{"/../../top", Dir, "top", nil},
		{"/loop/x", Dir, "", unix.ELOOP},
		{"/new/file/x", Dir, "", unix.ENOTDIR},
		{"/" + strings.Repeat("d/", 300), Dir, "", unix.ENAMETOOLONG},
		{"/" + strings.Repeat("n", 300), Dir, "", unix.ENAMETOOLONG},
	} {
		fd, err := Open(root, c.path, Lookup{Create: c.kind})
		if c.err != nil {
			if !errors.Is(err, c.err) {
				t.Errorf("%.20s: %v, want %v", c.path, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.path, err)
			continue
		}
		unix.Close(fd)
		st, err := os.Lstat(filepath.Join(dir, c.lands))
		if err != nil || st.IsDir() != (c.kind == Dir) {
			t.Errorf("%s did not land at %s: %v", c.path, c.lands, err)
			continue
		}
		if want := map[bool]os.FileMode{true: 0o755, false: 0o644}[st.IsDir()]; st.Mode().Perm() != want {
			t.Errorf("%s: mode %v, want %v", c.path, st.Mode(), want)
		}
	}
	if es, _ := os.ReadDir(outside); len(es) != 0 {
		t.Errorf("outside: %v", es)
	}
	if _, err := Open(root, "/abs", Lookup{Create: Dir, NoLinks: true}); !errors.Is(err, unix.ELOOP) {
		t.Errorf("NoLinks: %v", err)
	}
}
