package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// eachWay runs a test with and without openat2.
func eachWay(t *testing.T, fn func(t *testing.T, job UnpackJob)) {
	t.Run("openat2", func(t *testing.T) { fn(t, UnpackJob{}) })
	t.Run("walk", func(t *testing.T) { fn(t, UnpackJob{noOpenat2: true}) })
}

func mustUnpack(t *testing.T, job UnpackJob, entries ...ent) (string, UnpackResult) {
	t.Helper()
	b := tarOf(t, entries...)
	root, res, err := unpackT(t, b, digestOf(b), job)
	if err != nil {
		t.Fatal(err)
	}
	return root, res
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func xattr(t *testing.T, path, name string) string {
	t.Helper()
	b := make([]byte, 256)
	n, err := unix.Lgetxattr(path, name, b)
	if err != nil {
		return ""
	}
	return string(b[:n])
}

func stat(t *testing.T, path string) *syscall.Stat_t {
	t.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t)
}

func TestUnpackKinds(t *testing.T) {
	long := strings.Repeat("long/", 60) + strings.Repeat("n", 200)
	eachWay(t, func(t *testing.T, job UnpackJob) {
		root, res := mustUnpack(t, job,
			dir("./", 0o750),
			dir("d", 0o555),
			file("d/in-readonly", "x"),
			dir("sticky", 0o1777),
			file("suid", "s").mode(0o4755),
			file("none", "n").mode(0),
			file(long, "deep"),
			file("/abs", "a"),
			file("a/../b", "b"),
			symlink("link", "/etc/passwd"),
			symlink("rel", "d"),
			file("rel/through", "t"),
			symlink("absdir", "/d"),
			file("absdir/through2", "t"),
			symlink("dangle", "not/there"),
			file("dangle/made", "m"),
			hardlink("hard", "d/in-readonly"),
			hardlink("hardabs", "/d/in-readonly"),
			hardlink("hardlink-to-link", "link"),
			special("fifo", tar.TypeFifo, 0, 0),
			special("chr", tar.TypeChar, 1, 3),
			special("raw-whiteout", tar.TypeChar, 0, 0),
			special("blk", tar.TypeBlock, 8, 0),
			ent{tar.Header{Name: "global", Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}, ""},
		)
		for path, want := range map[string]string{"d/in-readonly": "x", long: "deep", "abs": "a", "b": "b", "d/through": "t",
			"d/through2": "t", "not/there/made": "m", "hard": "x", "hardabs": "x"} {
			if got := content(t, filepath.Join(root, path)); got != want {
				t.Errorf("%s is %q, want %q", path, got, want)
			}
		}
		for path, want := range map[string]uint32{"": 0o40750, "d": 0o40555, "sticky": 0o41777, "suid": 0o104755, "none": 0o100000, "fifo": 0o10600, "not": 0o40755} {
			if got := stat(t, filepath.Join(root, path)).Mode; got != want {
				t.Errorf("%q has mode %o, want %o", path, got, want)
			}
		}
		for _, path := range []string{"", "d", "suid", "link", "fifo", "abs", "hard"} {
			if st := stat(t, filepath.Join(root, path)); time.Unix(st.Mtim.Unix()).UTC() != testTime {
				t.Errorf("%q has time %v", path, time.Unix(st.Mtim.Unix()).UTC())
			}
		}
		if got, _ := os.Readlink(filepath.Join(root, "hardlink-to-link")); got != "/etc/passwd" {
			t.Errorf("a hard link to a symlink is %q", got)
		}
		if a, b := stat(t, filepath.Join(root, "hard")), stat(t, filepath.Join(root, "d/in-readonly")); a.Ino != b.Ino || a.Nlink != 3 {
			t.Errorf("hard links: inodes %d and %d, %d links", a.Ino, b.Ino, a.Nlink)
		}
		for _, path := range []string{"chr", "blk", "raw-whiteout"} {
			if _, err := os.Lstat(filepath.Join(root, path)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("device %s was made", path)
			}
		}
		if len(res.Notes) < 3 {
			t.Errorf("notes: %q", res.Notes)
		}
		if !strings.Contains(strings.Join(res.Implied, " "), "not/there") {
			t.Errorf("implied directories: %q", res.Implied)
		}
	})
}

func TestUnpackWhiteouts(t *testing.T) {
	eachWay(t, func(t *testing.T, job UnpackJob) {
		root, res := mustUnpack(t, job,
			dir("etc", 0o755),
			file("etc/.wh.gone", ""),
			dir("op", 0o755),
			file("op/before", "b"),
			file("op/.wh..wh..opq", ""),
			file("op/after", "a"),
			// This layer's own file stays, whichever comes first.
			file("kept1", "k"), file(".wh.kept1", ""),
			file(".wh.kept2", ""), file("kept2", "k"),
			// A directory that replaces one below hides that one's content.
			file(".wh.dir1", ""), dir("dir1", 0o755), file("dir1/f", "f"),
			dir("dir2", 0o755), file("dir2/f", "f"), file(".wh.dir2", ""),
			file(".wh.dir3", ""), file("dir3/f", "f"),
			file(".wh..wh.plnk/1.2", ""), file(".wh..wh.aufs", ""),
		)
		for _, w := range []string{"etc/gone"} {
			if st := stat(t, filepath.Join(root, w)); st.Mode&syscall.S_IFMT != syscall.S_IFCHR || st.Rdev != 0 {
				t.Errorf("%s is no whiteout: mode %o", w, st.Mode)
			}
		}
		for _, o := range []string{"op", "dir1", "dir2", "dir3"} {
			if got := xattr(t, filepath.Join(root, o), xattrOpaque); got != "y" {
				t.Errorf("%s: opaque is %q", o, got)
			}
		}
		if got := xattr(t, filepath.Join(root, "etc"), xattrOpaque); got != "" {
			t.Errorf("etc is opaque: %q", got)
		}
		for path, want := range map[string]string{"op/before": "b", "op/after": "a", "kept1": "k", "kept2": "k", "dir1/f": "f", "dir2/f": "f", "dir3/f": "f"} {
			if got := content(t, filepath.Join(root, path)); got != want {
				t.Errorf("%s is %q", path, got)
			}
		}
		for _, n := range names(t, root) {
			if strings.HasPrefix(n, ".wh.") {
				t.Errorf("%s was made as a file", n)
			}
		}
		if res.OpaqueRoot || res.WhiteoutFiles {
			t.Errorf("result %+v", res)
		}
		_, res = mustUnpack(t, job, file(".wh..wh..opq", ""), file("x", "y"))
		if !res.OpaqueRoot {
			t.Error("the opaque mark of the root was lost")
		}
	})
}

func TestUnpackReplaces(t *testing.T) {
	eachWay(t, func(t *testing.T, job UnpackJob) {
		root, _ := mustUnpack(t, job,
			file("twice", "1"), file("twice", "second").mode(0o600),
			dir("d2f", 0o755), file("d2f/a/b/c", "x"), file("d2f", "now a file"),
			file("f2d", "x"), dir("f2d", 0o700), file("f2d/in", "i"),
			symlink("l2d", "d"), dir("d", 0o755), dir("l2d", 0o755), file("l2d/in", "i"),
			symlink("l2f", "d"), file("l2f", "f"),
			dir("meta", 0o700), file("meta/x", "x"), dir("meta", 0o711),
			file("self", "self"), hardlink("self", "self"),
			// The cached parent must not outlive the link it went through.
			dir("one", 0o755), dir("two", 0o755), symlink("via", "one"), file("via/x", "1"),
			symlink("via", "two"), file("via/y", "2"),
			symlink("loop", "."), file("loop/loop", "no longer a link"),
		)
		for path, want := range map[string]string{"twice": "second", "d2f": "now a file", "f2d/in": "i", "l2d/in": "i", "l2f": "f", "self": "self", "one/x": "1", "two/y": "2", "loop": "no longer a link"} {
			if got := content(t, filepath.Join(root, path)); got != want {
				t.Errorf("%s is %q, want %q", path, got, want)
			}
		}
		if got := names(t, filepath.Join(root, "d")); len(got) > 0 {
			t.Errorf("d has %v", got)
		}
		if m := stat(t, filepath.Join(root, "meta")).Mode; m != 0o40711 {
			t.Errorf("meta has mode %o", m)
		}
	})
}

// TestUnpackConfined: what an attack would write lies beside the root.
func TestUnpackConfined(t *testing.T) {
	up := strings.Repeat("../", 20)
	for _, tt := range []struct {
		name    string
		entries func(outside string) []ent
		err     error // nil: harmless
	}{
		{"dotdot", func(o string) []ent { return []ent{file("../evil", "x")} }, ErrBreakout},
		{"dotdot inside", func(o string) []ent { return []ent{file("a/../../evil", "x")} }, ErrBreakout},
		{"absolute", func(o string) []ent { return []ent{file(o+"/evil", "x")} }, nil},
		{"absolute dotdot", func(o string) []ent { return []ent{file("/../../"+o+"/evil", "x")} }, nil},
		{"link up", func(o string) []ent { return []ent{symlink("l", ".."), file("l/evil", "x")} }, nil},
		{"link far up", func(o string) []ent { return []ent{symlink("l", up+o), file("l/evil", "x")} }, nil},
		{"link absolute", func(o string) []ent { return []ent{symlink("l", o), file("l/evil", "x")} }, nil},
		{"link chain", func(o string) []ent {
			return []ent{symlink("a", "b"), symlink("b", ".."), symlink("c", "a/.."), file("c/evil", "x")}
		}, nil},
		{"link then dir", func(o string) []ent { return []ent{symlink("l", o), dir("l/evil", 0o777)} }, nil},
		{"link overwritten", func(o string) []ent { return []ent{symlink("evil", o+"/evil"), file("evil", "x")} }, nil},
		{"dir over link", func(o string) []ent { return []ent{symlink("l", o), dir("l", 0o777), file("l/evil", "x")} }, nil},
		{"mode through link", func(o string) []ent { return []ent{symlink("l", o+"/victim"), hardlink("h", "l"), file("h2", "")} }, nil},
		{"hard link out", func(o string) []ent { return []ent{hardlink("h", o+"/victim"), file("h", "x")} }, ErrArchive},
		{"hard link dotdot", func(o string) []ent { return []ent{hardlink("h", "../victim")} }, ErrBreakout},
		{"hard link through link", func(o string) []ent { return []ent{symlink("l", o), hardlink("h", "l/victim")} }, ErrArchive},
		{"hard link to proc", func(o string) []ent { return []ent{symlink("l", "/proc/self/root"), hardlink("h", "l/etc/passwd")} }, ErrArchive},
		{"whiteout out", func(o string) []ent { return []ent{file("../.wh.victim", "")} }, ErrBreakout},
		{"whiteout dotdot", func(o string) []ent { return []ent{file(".wh...", "")} }, ErrArchive},
		{"whiteout dot", func(o string) []ent { return []ent{file(".wh..", "")} }, ErrArchive},
		{"whiteout empty", func(o string) []ent { return []ent{file(".wh.", "")} }, ErrArchive},
		{"whiteout as dir", func(o string) []ent { return []ent{file(".wh.x/y", "")} }, ErrArchive},
		{"whiteout through link", func(o string) []ent { return []ent{symlink("l", o), file("l/.wh.victim", "")} }, nil},
		{"opaque through link", func(o string) []ent { return []ent{symlink("l", o), file("l/.wh..wh..opq", "")} }, nil},
		{"link loop", func(o string) []ent { return []ent{symlink("a", "b"), symlink("b", "a"), file("a/x", "x")} }, ErrArchive},
		{"root as file", func(o string) []ent { return []ent{file(".", "x").mode(0o777)} }, ErrArchive},
		{"root as link", func(o string) []ent { return []ent{symlink(".", o)} }, ErrArchive},
		{"root as hard link", func(o string) []ent { return []ent{hardlink("h", "/")} }, ErrArchive},
		{"through a file", func(o string) []ent { return []ent{file("f", "x"), file("f/x", "x")} }, ErrArchive},
		{"unknown type", func(o string) []ent { return []ent{{tar.Header{Name: "M", Typeflag: 'M'}, ""}} }, ErrArchive},
		{"hard link to dir", func(o string) []ent { return []ent{dir("d", 0o755), hardlink("h", "d")} }, ErrArchive},
		{"hard link to nothing", func(o string) []ent { return []ent{hardlink("h", "nothing")} }, ErrArchive},
		{"hard link to whiteout", func(o string) []ent { return []ent{file(".wh.w", ""), hardlink("h", "w")} }, ErrArchive},
	} {
		eachWay(t, func(t *testing.T, job UnpackJob) {
			t.Run(tt.name, func(t *testing.T) {
				outside := t.TempDir()
				victim := filepath.Join(outside, "victim")
				if err := os.WriteFile(victim, []byte("safe"), 0o640); err != nil {
					t.Fatal(err)
				}
				job.Dest = filepath.Join(outside, "fs")
				b := tarOf(t, tt.entries(outside)...)
				_, _, err := unpackT(t, b, digestOf(b), job)
				if !errors.Is(err, tt.err) {
					t.Errorf("error %v, want %v", err, tt.err)
				}
				if content(t, victim) != "safe" || stat(t, victim).Mode != 0o100640 || stat(t, victim).Nlink != 1 {
					t.Error("a file outside was changed")
				}
				want := []string{"fs", "victim"}
				if err != nil {
					want = want[1:]
				}
				if got := names(t, outside); strings.Join(got, " ") != strings.Join(want, " ") {
					t.Errorf("outside there is %v, want %v", got, want)
				}
			})
		})
	}
}

func TestUnpackSparse(t *testing.T) {
	data := append(append(bytes.Repeat([]byte{1}, 5000), make([]byte, 8<<20)...), 2)
	data = append(data, make([]byte, 100000)...)
	root, res := mustUnpack(t, UnpackJob{}, file("s", string(data)), file("zero", string(make([]byte, 1<<20))), file("empty", ""))
	got, err := os.ReadFile(filepath.Join(root, "s"))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("content differs: %d bytes, %v", len(got), err)
	}
	if st := stat(t, filepath.Join(root, "s")); st.Blocks*512 > 64<<10 {
		t.Errorf("it takes %d bytes", st.Blocks*512)
	}
	if st := stat(t, filepath.Join(root, "zero")); st.Size != 1<<20 || st.Blocks > 8 {
		t.Errorf("zeros: size %d, blocks %d", st.Size, st.Blocks)
	}
	if res.Bytes != int64(len(data))+1<<20 {
		t.Errorf("counted %d bytes", res.Bytes)
	}
	// What GNU tar makes of a sparse file.
	img := filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(img)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("end"), 5<<20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, format := range []string{"gnu", "pax"} {
		out := runTool(t, "tar", "--format="+format, "--sparse", "-C", filepath.Dir(img), "-cf", "-", "sparse")
		if len(out) > 1<<20 {
			t.Fatalf("tar made no sparse archive: %d bytes", len(out))
		}
		root, _, err := unpackT(t, out, digestOf(out), UnpackJob{})
		if err != nil {
			t.Fatal(err)
		}
		st := stat(t, filepath.Join(root, "sparse"))
		if b := content(t, filepath.Join(root, "sparse")); !strings.HasSuffix(b, "\x00end") || len(b) != 5<<20+3 || st.Blocks > 64 {
			t.Errorf("%s: %d bytes, %d blocks", format, len(b), st.Blocks)
		}
	}
}

func TestUnpackCompressions(t *testing.T) {
	b := tarOf(t, file("a", strings.Repeat("text ", 10000)))
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}, zst(b)...)
	for name, blob := range map[string][]byte{"plain": b, "gzip": gz(b), "zstd": zst(b), "zstd with skippable frame": skippable,
		"two gzip members": append(gz(b[:700]), gz(b[700:])...)} {
		root, _, err := unpackT(t, blob, digestOf(b), UnpackJob{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(content(t, filepath.Join(root, "a"))) != 50000 {
			t.Errorf("%s: wrong content", name)
		}
	}
	// The padding counts.
	padded := append(bytes.Clone(b), make([]byte, 10240)...)
	if _, _, err := unpackT(t, gz(padded), digestOf(padded), UnpackJob{}); err != nil {
		t.Error(err)
	}
	if _, _, err := unpackT(t, gz(padded), digestOf(b), UnpackJob{}); !errors.Is(err, ErrDigest) {
		t.Errorf("other padding: %v", err)
	}
}

func TestUnpackDamaged(t *testing.T) {
	b := tarOf(t, dir("d", 0o755), file("d/a", strings.Repeat("some text, ", 3000)), file("z", "end"))
	for name, comp := range map[string]compressor{"plain": asPlain, "gzip": asGzip, "zstd": asZstd} {
		blob := comp.fn(b)
		check := func(what string, damaged []byte) (noticed bool) {
			t.Helper()
			dest, _, err := unpackT(t, damaged, digestOf(b), UnpackJob{})
			if err == nil {
				return false
			}
			if !errors.Is(err, ErrArchive) && !errors.Is(err, ErrDigest) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
			if _, err := os.Lstat(dest); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s, %s: something was left: %v", name, what, err)
			}
			return true
		}
		for _, cut := range []int{0, 1, 5, len(blob) / 3, len(blob) / 2, len(blob) - 1} {
			if !check("cut", blob[:cut]) {
				t.Errorf("%s: cut at %d, and nobody noticed", name, cut)
			}
		}
		missed := 0
		for i := 0; i < len(blob); i += max(len(blob)/60, 1) {
			flipped := bytes.Clone(blob)
			flipped[i] ^= 0x10
			if !check("flip", flipped) {
				missed++
			}
		}
		// Some bits of the compressed formats mean nothing, such as the time
		// in a gzip header; then the content is right, by its digest.
		if limit := map[string]int{"plain": 0, "gzip": 6, "zstd": 6}[name]; missed > limit {
			t.Errorf("%s: %d flipped bits went unnoticed", name, missed)
		}
	}
}

func TestUnpackLimits(t *testing.T) {
	many := make([]ent, 20)
	for i := range many {
		many[i] = file(strings.Repeat("x", i+1), "")
	}
	huge := ent{tar.Header{Name: "huge", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1 << 20}, string(make([]byte, 1<<20))}
	for _, tt := range []struct {
		what    string
		limits  Limits
		entries []ent
	}{
		{"Entries", Limits{Entries: 10}, many},
		{"Entries", Limits{Entries: 10}, []ent{file(strings.Repeat("d/", 12)+"f", "")}},
		{"Bytes", Limits{Bytes: 1 << 19}, []ent{huge}},
		{"Depth", Limits{Depth: 5}, []ent{dir(strings.Repeat("d/", 6), 0o755)}},
		{"Depth", Limits{Depth: 5}, []ent{symlink("l", "a/b/c/d"), file("l/e/f/g", "")}},
		{"PathLen", Limits{PathLen: 100}, []ent{file(strings.Repeat("d/", 60)+"f", "")}},
		{"PathLen", Limits{PathLen: 100}, []ent{symlink("l", strings.Repeat("x", 101))}},
	} {
		b := tarOf(t, tt.entries...)
		_, _, err := unpackT(t, gz(b), digestOf(b), UnpackJob{Limits: tt.limits})
		var le *LimitError
		if !errors.As(err, &le) || le.What != tt.what {
			t.Errorf("%s: %v", tt.what, err)
		}
	}
	m := &meter{r: strings.NewReader("x"), n: ratioFloor, in: &meter{n: 1 << 20}, ratio: 1000}
	var le *LimitError
	if _, err := m.Read(make([]byte, 1)); !errors.As(err, &le) || le.What != "Ratio" {
		t.Errorf("ratio: %v", err)
	}
}

func TestUnpackXattrs(t *testing.T) {
	root, res := mustUnpack(t, UnpackJob{},
		file("a", "x").pax(paxXattr+"user.mine", "value").mode(0o444),
		file("b", "x").pax(paxXattr+"user.overlay.redirect", "/etc"),
		file("c", "x").pax(paxXattr+"user.containers.override_stat", "0:0:0777"),
		dir("d", 0o755).pax(paxXattr+"user.overlay.opaque", "y"),
		dir("e", 0o555).pax(paxXattr+"user.mine", "dir"),
		file("f", "x").pax(paxXattr+"trusted.overlay.metacopy", ""),
	)
	if got := xattr(t, filepath.Join(root, "a"), "user.mine"); got != "value" {
		t.Errorf("user.mine is %q", got)
	}
	if got := xattr(t, filepath.Join(root, "e"), "user.mine"); got != "dir" {
		t.Errorf("user.mine of a directory is %q", got)
	}
	for path, name := range map[string]string{"b": "user.overlay.redirect", "d": xattrOpaque, "f": "trusted.overlay.metacopy"} {
		if got := xattr(t, filepath.Join(root, path), name); got != "" {
			t.Errorf("%s has %s %q", path, name, got)
		}
	}
	if got := xattr(t, filepath.Join(root, "c"), "user.containers.override_stat"); got == "0:0:0777" {
		t.Error("the layer chose its own override_stat")
	}
	if len(res.Notes) != 4 {
		t.Errorf("notes %q", res.Notes)
	}
}

func TestUnpackCancelled(t *testing.T) {
	b := tarOf(t, file("a", "x"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	dest := filepath.Join(t.TempDir(), "fs")
	_, err := Unpack(ctx, UnpackJob{Blob: blobFile(t, b), DiffID: digestOf(b), Dest: dest, Single: true})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Lstat(dest); err == nil {
		t.Error("something was left")
	}
}

// TestWhiteoutFallback: where no device can be made, whiteouts are files that
// fuse-overlayfs and the copy driver understand, and the result says so.
func TestWhiteoutFallback(t *testing.T) {
	b := tarOf(t, dir("etc", 0o755), file("etc/.wh.gone", ""), file(".wh.x", ""), file("x", "kept"))
	job := UnpackJob{Blob: blobFile(t, b), DiffID: digestOf(b), Dest: filepath.Join(t.TempDir(), "fs"), Single: true}
	u := &unpacker{job: job, limits: Limits{}.withDefaults(), dirs: map[uint64]*dirMeta{}, buf: make([]byte, 4096), noWhiteout: true}
	var err error
	if u.tree, err = newTree(job.Dest, u); err != nil {
		t.Fatal(err)
	}
	defer u.tree.close()
	if err := errors.Join(u.layer(context.Background()), u.finish(context.Background())); err != nil {
		t.Fatal(err)
	}
	if !u.res.WhiteoutFiles {
		t.Error("the result does not say so")
	}
	if st := stat(t, filepath.Join(job.Dest, "etc/.wh.gone")); st.Mode&syscall.S_IFMT != syscall.S_IFREG || st.Size != 0 {
		t.Errorf("etc/.wh.gone has mode %o, size %d", st.Mode, st.Size)
	}
	if got := content(t, filepath.Join(job.Dest, "x")); got != "kept" {
		t.Errorf("x is %q", got)
	}
}
