package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/rootless-sbx/sbx/internal/rmtree"
	"github.com/rootless-sbx/sbx/internal/tarfuzz"
	"golang.org/x/sys/unix"
)

// unpackIn unpacks into a new directory, as the ordinary user that runs the test.
func unpackIn(t *testing.T, r io.Reader, change func(*Target)) (string, Stats, error) {
	t.Helper()
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	target := Target{Root: fd, NoChown: true}
	if change != nil {
		change(&target)
	}
	st, err := Unpack(t.Context(), r, target)
	return dir, st, err
}

// stream is a tar archive of the headers; a regular file's content is its Uname.
func stream(t *testing.T, hs ...tar.Header) *bytes.Buffer {
	t.Helper()
	b := &bytes.Buffer{}
	w := tar.NewWriter(b)
	for _, h := range hs {
		text := h.Uname
		h.Uname = ""
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(text))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text[:h.Size]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b
}

func reg(name, text string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Uname: text}
}

// packFile packs one file of a directory.
func packFile(t *testing.T, p *Packer, dir, name, as string) {
	t.Helper()
	path := filepath.Join(dir, name)
	f := File{Name: as}
	if err := unix.Lstat(path, &f.Stat); err != nil {
		t.Fatal(err)
	}
	f.Open = func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) }
	f.Readlink = func() (string, error) { return os.Readlink(path) }
	if err := p.Add(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}

// What is packed comes out the same: names of any bytes, times, modes, attributes,
// links, holes.
func TestRoundTrip(t *testing.T) {
	src := t.TempDir()
	join := func(n string) string { return filepath.Join(src, n) }
	when := time.Unix(1234567890, 123456789)
	odd := "new\nline \xff\xfe =x"
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.WriteFile(join(odd), []byte("odd"), 0o640))
	check(os.Link(join(odd), join("second")))
	check(os.Symlink("../outside/\xff", join("link")))
	check(unix.Mkfifo(join("fifo"), 0o600))
	check(os.Mkdir(join("dir"), 0o750))
	xattr := unix.Setxattr(join(odd), "user.note", []byte("a\x00b\nc"), 0) == nil
	big, err := os.Create(join("big"))
	check(err)
	const size = 3<<30 + 17
	check(big.Truncate(size))
	for _, off := range []int64{1 << 20, 2 << 30} {
		_, err := big.WriteAt([]byte("data"), off)
		check(err)
	}
	check(big.Close())
	check(os.Mkdir(join("closed"), 0o500))
	for _, n := range []string{odd, "big", "dir", "closed"} {
		check(os.Chtimes(join(n), when, when))
	}
	for _, sparse := range []bool{true, false} {
		names := []string{odd, "second", "link", "fifo", "dir", "closed"}
		if sparse {
			names = append(names, "big")
		}
		b := &bytes.Buffer{}
		p := NewPacker(b)
		p.Sparse = sparse
		for _, n := range names {
			packFile(t, p, src, n, n)
		}
		check(p.Close())
		if b.Len() > 64<<10 {
			t.Errorf("the stream has %d bytes", b.Len())
		}
		dst, st, err := unpackIn(t, b, nil)
		check(err)
		if len(st.Notes) > 0 || st.Entries != int64(len(names)) {
			t.Errorf("%+v", st)
		}
		for _, n := range names {
			var a, c unix.Stat_t
			check(unix.Lstat(join(n), &a))
			check(unix.Lstat(filepath.Join(dst, n), &c))
			if a.Mode != c.Mode || a.Mtim != c.Mtim || n != "dir" && n != "closed" && (a.Size != c.Size || a.Nlink != c.Nlink) {
				t.Errorf("%q: %+v, was %+v", n, c, a)
			}
		}
		if l, _ := os.Readlink(filepath.Join(dst, "link")); l != "../outside/\xff" {
			t.Errorf("link to %q", l)
		}
		if xattr {
			v := make([]byte, 16)
			n, err := unix.Getxattr(filepath.Join(dst, odd), "user.note", v)
			if err != nil || string(v[:n]) != "a\x00b\nc" {
				t.Errorf("attribute %q, %v", v[:max(n, 0)], err)
			}
		}
		if sparse {
			var c unix.Stat_t
			check(unix.Stat(filepath.Join(dst, "big"), &c))
			if c.Blocks*512 > 1<<20 {
				t.Errorf("the sparse file has %d blocks", c.Blocks)
			}
			f, err := os.Open(filepath.Join(dst, "big"))
			check(err)
			defer f.Close()
			for _, off := range []int64{1 << 20, 2 << 30} {
				got := make([]byte, 4)
				if _, err := f.ReadAt(got, off); err != nil || string(got) != "data" {
					t.Errorf("at %d: %q %v", off, got, err)
				}
			}
		}
		os.Chmod(filepath.Join(dst, "closed"), 0o700)
	}
	os.Chmod(join("closed"), 0o700)
}

// No stream reaches anything outside, or replaces what it must not.
func TestHostile(t *testing.T) {
	long := strings.Repeat("n", 5000)
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	hard := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
	}
	dir := tar.Header{Typeflag: tar.TypeDir, Name: "d/"}
	for _, c := range []struct {
		name   string
		in     []tar.Header
		follow bool
		err    error
		there  string // a file that has "x" in it
		absent string
	}{
		{"plain", []tar.Header{reg("a", "x")}, false, nil, "a", ""},
		{"implied directory", []tar.Header{reg("p/q/a", "x")}, false, nil, "p/q/a", ""},
		{"absolute", []tar.Header{reg("/a", "x")}, false, nil, "a", ""},
		{"inner dots", []tar.Header{reg("p/../a", "x")}, false, nil, "a", "p"},
		{"dots", []tar.Header{reg("../a", "x")}, false, ErrBreakout, "", "a"},
		{"deeper dots", []tar.Header{reg("p/../../a", "x")}, false, ErrBreakout, "", "a"},
		{"through a link out", []tar.Header{link("l", "/OUT"), reg("l/a", "x")}, false, unix.ELOOP, "", "l/a"},
		{"through a relative link out", []tar.Header{link("l", "../../../../OUT"), reg("l/a", "x")}, false, unix.ELOOP, "", ""},
		{"through a link, inside", []tar.Header{link("l", "/OUT"), reg("l/a", "x")}, true, nil, "OUT/a", ""},
		{"link, then file", []tar.Header{link("a", "/OUT/a"), reg("a", "x")}, false, nil, "a", ""},
		{"hard link out", []tar.Header{hard("a", "../OUT/secret")}, false, ErrBreakout, "", "a"},
		{"hard link to nothing", []tar.Header{hard("a", "/OUT/secret")}, false, unix.ENOENT, "", "a"},
		{"hard link through a link", []tar.Header{link("l", "/OUT"), hard("a", "l/secret")}, false, unix.ELOOP, "", "a"},
		{"hard link to a directory", []tar.Header{dir, hard("a", "d")}, false, ErrKind, "", "a"},
		{"hard link to itself", []tar.Header{reg("a", "x"), hard("a", "a")}, false, nil, "a", ""},
		{"file over directory", []tar.Header{dir, reg("d", "x")}, false, ErrKind, "", ""},
		{"directory over file", []tar.Header{reg("d", "x"), dir}, false, ErrKind, "d", ""},
		{"link over directory", []tar.Header{dir, link("d", "/")}, false, ErrKind, "", ""},
		{"the last one wins", []tar.Header{reg("a", "1"), reg("a", "x")}, false, nil, "a", ""},
		{"the directory itself", []tar.Header{{Typeflag: tar.TypeDir, Name: "./", Mode: 0o700}, reg("./a", "x")}, false, nil, "a", ""},
		{"the directory as a file", []tar.Header{reg(".", "x")}, false, ErrKind, "", ""},
		{"device", []tar.Header{{Typeflag: tar.TypeChar, Name: "dev", Devmajor: 1, Devminor: 3}, reg("a", "x")}, false, nil, "a", "dev"},
		{"long name", []tar.Header{reg(long, "x")}, false, ErrLimit, "", ""},
		{"deep", []tar.Header{reg(strings.Repeat("d/", 300)+"a", "x")}, false, ErrLimit, "", "d"},
		{"a long link", []tar.Header{link("l", long)}, false, ErrDamaged, "", "l"},
		{"an attribute of the overlay", []tar.Header{{Typeflag: tar.TypeReg, Name: "a", Uname: "x",
			PAXRecords: map[string]string{"SCHILY.xattr.user.overlay.opaque": "y"}}}, false, nil, "a", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			outside := t.TempDir()
			if err := os.WriteFile(filepath.Join(outside, "secret"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			for i := range c.in {
				if !c.follow {
					c.in[i].Linkname = strings.Replace(c.in[i].Linkname, "/OUT", outside, 1)
				}
			}
			dir, _, err := unpackIn(t, stream(t, c.in...), func(u *Target) {
				u.FollowLinks = c.follow
			})
			if !errors.Is(err, c.err) {
				t.Errorf("%v, want %v", err, c.err)
			}
			if es, _ := os.ReadDir(outside); len(es) != 1 {
				t.Errorf("outside: %v", es)
			}
			if c.there != "" {
				if b, err := os.ReadFile(filepath.Join(dir, c.there)); string(b) != "x" {
					t.Errorf("%s: %q %v", c.there, b, err)
				}
			}
			if c.absent != "" {
				if _, err := os.Lstat(filepath.Join(dir, c.absent)); err == nil {
					t.Errorf("%s is there", c.absent)
				}
			}
		})
	}
}

// A stream that ends too early leaves nothing of the file it ends in, and what was
// there before stays.
func TestCutOff(t *testing.T) {
	whole := stream(t, reg("a", "x"), reg("b", strings.Repeat("y", 5000))).Bytes()
	for _, n := range []int{0, 100, 512, 1024, 1536, 2000, 4000} {
		for _, noTmpfile := range []bool{false, true} {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "b"), []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
			if err != nil {
				t.Fatal(err)
			}
			u := &unpacker{t: Target{Root: fd, NoChown: true}, made: map[string]int{}, buf: make([]byte, 100), noTmpfile: noTmpfile}
			err = u.all(tar.NewReader(bytes.NewReader(whole[:n])))
			unix.Close(fd)
			if n > 0 && n != 1024 && !errors.Is(err, ErrDamaged) {
				t.Errorf("%d bytes: %v", n, err)
			}
			b, err := os.ReadFile(filepath.Join(dir, "b"))
			if string(b) != "old" {
				t.Errorf("%d bytes: the file has %d bytes, %v", n, len(b), err)
			}
			if others, err := filepath.Glob(filepath.Join(dir, ".sbx-*")); len(others) > 0 || err != nil {
				t.Errorf("%d bytes: left %v, %v", n, others, err)
			}
		}
	}
	_, _, err := unpackIn(t, strings.NewReader("this is no archive, whatever it is; it is longer than a header"+strings.Repeat(" ", 512)), nil)
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("no archive: %v", err)
	}
	if _, _, err = unpackIn(t, strings.NewReader(""), nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("empty: %v", err)
	}
	if _, _, err = unpackIn(t, iotest.ErrReader(unix.EIO), nil); !errors.Is(err, unix.EIO) {
		t.Errorf("a source that fails: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	cancel(cause)
	if _, err := Unpack(ctx, bytes.NewReader(whole), Target{}); !errors.Is(err, cause) {
		t.Errorf("cancelled: %v", err)
	}
}

// A file of which the stream only says that it is huge is refused at once.
func TestHugeSize(t *testing.T) {
	b := &bytes.Buffer{}
	w := tar.NewWriter(b)
	if err := w.WriteHeader(&tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: "huge", Size: 1 << 62}); err != nil {
		t.Fatal(err)
	}
	dir, _, err := unpackIn(t, io.MultiReader(b, strings.NewReader(strings.Repeat("z", 4096))), nil)
	if err == nil {
		t.Error("it was unpacked")
	}
	if es, _ := os.ReadDir(dir); len(es) != 0 {
		t.Errorf("left: %v", es)
	}
}

// Set-id bits go only with the owner that they are of.
func TestSetID(t *testing.T) {
	h := reg("prog", "x")
	h.Mode, h.Uid, h.Gid = 0o6755, os.Geteuid()+1, os.Getegid()
	own := reg("own", "x")
	own.Mode, own.Uid, own.Gid = 0o6755, os.Geteuid(), os.Getegid()
	dir, _, err := unpackIn(t, stream(t, h, own), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint32{"prog": 0o755, "own": 0o6755} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &st); err != nil || st.Mode&0o7777 != want {
			t.Errorf("%s: %o %v", name, st.Mode&0o7777, err)
		}
	}
}

// Files that shrink while they are packed keep the stream in order.
func TestShrinks(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	b := &bytes.Buffer{}
	p := NewPacker(writerFunc(func(d []byte) (int, error) {
		if len(d) > 1<<16 {
			os.Truncate(path, 1000)
		}
		return b.Write(d)
	}))
	packFile(t, p, dir, "f", "f")
	packFile(t, p, dir, ".", "d")
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if len(p.Notes) == 0 {
		t.Error("no note")
	}
	out, st, err := unpackIn(t, b, nil)
	if err != nil || st.Entries != 2 {
		t.Errorf("%+v %v", st, err)
	}
	if fi, err := os.Stat(filepath.Join(out, "f")); err != nil || fi.Size() != 1<<20 {
		t.Errorf("%v %v", fi, err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// Whatever bytes come, nothing outside is made or changed, and nothing panics.
func FuzzUnpack(f *testing.F) {
	f.Add([]byte("x"), false)
	for i, b := range tarfuzz.Seeds() {
		f.Add(b, i%2 == 0)
	}
	f.Fuzz(func(t *testing.T, data []byte, follow bool) {
		outer := t.TempDir()
		dir, victim := filepath.Join(outer, "in"), filepath.Join(outer, "victim")
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(victim, []byte("safe"), 0o640), os.Symlink("..", filepath.Join(dir, "up"))); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second) // a sparse file may say that it is huge
		defer cancel()
		Unpack(ctx, bytes.NewReader(tarfuzz.Mend(bytes.Clone(data))), Target{Root: fd, NoChown: true, FollowLinks: follow})
		if es, _ := os.ReadDir(outer); len(es) != 2 {
			t.Errorf("outside: %v", es)
		}
		var st unix.Stat_t
		if err := unix.Lstat(victim, &st); err != nil || st.Mode != unix.S_IFREG|0o640 || st.Nlink != 1 {
			t.Errorf("a file outside has mode %#o and %d names, %v", st.Mode, st.Nlink, err)
		}
		if b, err := os.ReadFile(victim); string(b) != "safe" {
			t.Errorf("a file outside has %q, %v", b, err)
		}
		if err := rmtree.Remove(dir); err != nil {
			t.Error(err)
		}
	})
}
