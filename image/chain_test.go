package image

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// chainInputs are two bases, a layer that lists no directories, and one that
// needs nothing from below.
func chainInputs(t *testing.T) (base1, base2, implied, plain []byte) {
	return tarOf(t, dir("tmp", 0o1777), dir("usr", 0o755), dir("usr/bin", 0o755), symlink("bin", "usr/bin")),
		tarOf(t, dir("tmp", 0o700).own(3, 4), dir("bin", 0o711)),
		tarOf(t, file("tmp/x", "x"), file("bin/app", "app")),
		tarOf(t, dir("etc", 0o755), file("etc/conf", "c"))
}

// counting notes the jobs of a store: "DIFFID alone|LOWERS".
func counting(inner Unpacker, note func(job string)) Unpacker {
	return func(ctx context.Context, j UnpackJob) (UnpackResult, error) {
		how := " on " + strings.Repeat("|", len(j.Lowers))
		if j.Alone {
			how = " alone"
		}
		note(j.DiffID + how)
		return inner(ctx, j)
	}
}

func TestChainedLayers(t *testing.T) {
	ctx := context.Background()
	var mu sync.Mutex
	var jobs []string
	s := openStore(t, Config{Remover: mappedRemover, Unpack: counting(mappedUnpacker(false), func(j string) {
		mu.Lock()
		defer mu.Unlock()
		jobs = append(jobs, j)
	})})
	base1, base2, implied, plain := chainInputs(t)
	acquire := func(i *Image) []string {
		t.Helper()
		l, err := s.Acquire(ctx, i, "k")
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		return l.Layers
	}
	expect := func(what string, want ...string) {
		t.Helper()
		slices.Sort(jobs)
		slices.Sort(want)
		if !slices.Equal(jobs, want) {
			t.Errorf("%s: jobs %q, want %q", what, jobs, want)
		}
		jobs = nil
	}
	d := digestOf
	a := loadOne(t, s, "docker.io/library/a:v1", base1, implied, plain)
	b := loadOne(t, s, "docker.io/library/b:v1", base2, implied, plain)
	c := loadOne(t, s, "docker.io/library/c:v1", implied, base2, implied)
	la := acquire(a)
	expect("the first", d(base1)+" on ", d(implied)+" alone", d(plain)+" alone", d(implied)+" on |")
	lb := acquire(b)
	expect("another base", d(base2)+" on ", d(implied)+" on |")
	lc := acquire(c)
	expect("the same twice", d(implied)+" on ", d(implied)+" on ||")
	for _, i := range []*Image{a, b, c} {
		acquire(i)
	}
	expect("again")
	if la[0] != lb[0] || la[1] == lb[1] || len(lc) != 3 || lc[0] == lc[2] || lc[1] != lb[2] {
		t.Errorf("layers\n%q\n%q\n%q", la, lb, lc)
	}
	for i, r := range runStacks(t, stackCase{Layers: la}, stackCase{Layers: lb}, stackCase{Layers: lc}) {
		want := []map[string]string{
			{"tmp": "dir 1777 0:0 ", "tmp/x": "file 644 0:0 x", "bin": "link usr/bin", "usr/bin/app": "file 644 0:0 app", "etc/conf": "file 644 0:0 c"},
			{"tmp": "dir 700 3:4 ", "bin": "dir 711 0:0 ", "bin/app": "file 644 0:0 app", "usr": ""},
			{"tmp": "dir 700 3:4 ", "bin": "dir 711 0:0 ", "bin/app": "file 644 0:0 app"},
		}[i]
		for path, w := range want {
			if got := r.Overlay[path]; got != w {
				t.Errorf("image %d: %s is %q, want %q", i, path, got, w)
			}
		}
	}
	checkConsistent(t, s.root)
	for _, step := range []struct {
		remove string
		left   int // directories of layers, the mark of the dependent one included
	}{{"c:v1", 6}, {"a:v1", 4}, {"b:v1", 0}} {
		if _, err := s.Remove(ctx, step.remove, false); err != nil {
			t.Fatal(err)
		}
		if got := names(t, filepath.Join(s.root, "layers/k")); len(got) != step.left {
			t.Errorf("without %s: layers %q", step.remove, got)
		}
		checkConsistent(t, s.root)
	}
}

// TestChainedWithLowersThere: on a base that is there, a layer is unpacked once,
// without trying.
func TestChainedWithLowersThere(t *testing.T) {
	ctx := context.Background()
	var jobs []string
	s := openStore(t, Config{})
	s.unpack = counting(s.unpack, func(j string) { jobs = append(jobs, j) })
	base1, _, implied, _ := chainInputs(t)
	for name, tars := range map[string][][]byte{"base:v1": {base1}, "app:v1": {base1, implied}} {
		loadOne(t, s, "docker.io/library/"+name, tars...)
	}
	for _, name := range []string{"base:v1", "app:v1"} {
		i, err := s.Get(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		l, err := s.Acquire(ctx, i, "k")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
	if want := []string{digestOf(base1) + " on ", digestOf(implied) + " on |"}; !slices.Equal(jobs, want) {
		t.Errorf("jobs %q, want %q", jobs, want)
	}
}

// TestChainedHidden: what an opaque root hides gives nothing.
func TestChainedHidden(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, Config{Unpack: mappedUnpacker(false), Remover: mappedRemover})
	i := loadOne(t, s, "docker.io/library/a:v1", tarOf(t, dir("tmp", 0o1777), dir("d", 0o700)),
		tarOf(t, file(whOpaque, ""), dir("d", 0o711)), tarOf(t, file("tmp/x", ""), file("d/x", "")))
	l, err := s.Acquire(ctx, i, "k")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if len(l.Layers) != 2 {
		t.Errorf("layers %q", l.Layers)
	}
	for path, mode := range map[string]uint32{"tmp": 0o40755, "d": 0o40711} {
		if got := stat(t, filepath.Join(l.Layers[0], path)).Mode; got != mode {
			t.Errorf("%s has mode %o", path, got)
		}
	}
	t.Cleanup(func() { mappedRemover(ctx, s.root) })
}

// TestFalseMark: a damaged image says of another one's layer that it needs those
// below. That one is not harmed.
func TestFalseMark(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, Config{})
	base1, _, implied, plain := chainInputs(t)
	lie := buildImage(t, DefaultPlatform(), asGzip, base1, plain)
	lie.layers[1] = gz(implied)
	lie.manifest = mustJSON(t, map[string]any{"schemaVersion": 2, "mediaType": mtOCIManifest,
		"config": Descriptor{mtOCIConfig, lie.id, int64(len(lie.config))},
		"layers": []Descriptor{{asGzip.media, digestOf(lie.layers[0]), int64(len(lie.layers[0]))}, {asGzip.media, digestOf(lie.layers[1]), int64(len(lie.layers[1]))}}})
	imgs, err := s.Load(ctx, layoutOf(t, nil, lie), LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Acquire(ctx, imgs[0], "k"); !errors.Is(err, ErrDigest) {
		t.Errorf("a layer that is not what its DiffID says: %v", err)
	}
	good := loadOne(t, s, "docker.io/library/good:v1", plain, base1, plain)
	for range 2 {
		l, err := s.Acquire(ctx, good, "k")
		if err != nil {
			t.Fatal(err)
		}
		if len(l.Layers) != 2 || strings.Contains(l.Layers[0], "chain-") || content(t, filepath.Join(l.Layers[0], "etc/conf")) != "c" {
			t.Errorf("layers %q", l.Layers)
		}
		l.Close()
	}
	checkConsistent(t, s.root)
}

// TestFiveProcesses unpack two images that share a dependent layer, at once: all
// get everything, and nothing is unpacked twice.
func TestFiveProcesses(t *testing.T) {
	base1, base2, implied, plain := chainInputs(t)
	tmp := t.TempDir()
	archive := func(name string, tars ...[]byte) string {
		path := filepath.Join(tmp, name)
		if err := os.WriteFile(path, dockerArchive(t, []string{name + ":v1"}, buildImage(t, DefaultPlatform(), asPlain, tars...)), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	a, b := archive("a", base1, implied, plain), archive("b", base2, plain, implied)
	root, log := filepath.Join(tmp, "images"), filepath.Join(tmp, "jobs")
	var cmds []*exec.Cmd
	for i := range 5 {
		c := child(t, "load", root, []string{a, b}[i%2], "SBX_JOBS="+log)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, c)
	}
	for _, c := range cmds {
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
	}
	times := map[string]int{}
	for j := range strings.Lines(content(t, log)) {
		times[strings.TrimSpace(j)]++
	}
	d := digestOf
	for _, j := range []string{d(base1) + " on ", d(base2) + " on ", d(implied) + " on |", d(implied) + " on ||"} {
		if j = strings.TrimSpace(j); times[j] != 1 {
			t.Errorf("%d times %q", times[j], j)
		}
	}
	for j, n := range times {
		if n != 1 {
			t.Errorf("%d times %q", n, j)
		}
	}
	checkConsistent(t, root)
}

// TestInherit looks at the tree itself: times, the xattr that stands for owner
// and mode with Single, and, as root, owners without a user namespace.
func TestInherit(t *testing.T) {
	base := tarOf(t, dir("a", 0o755), dir("a/b", 0o2750).own(1000, 1001).pax(paxXattr+"user.k", "v"))
	upper := tarOf(t, file("a/b/c/f", "f"))
	for _, single := range []bool{true, false} {
		if !single && os.Getuid() != 0 {
			continue // only with a user namespace: TestImplied
		}
		lower, dest := filepath.Join(t.TempDir(), "fs"), filepath.Join(t.TempDir(), "fs")
		job := UnpackJob{Blob: blobFile(t, base), DiffID: digestOf(base), Dest: lower, Single: single}
		if _, err := Unpack(context.Background(), job); err != nil {
			t.Fatal(err)
		}
		job = UnpackJob{Blob: blobFile(t, upper), DiffID: digestOf(upper), Dest: dest, Single: single, Lowers: []string{lower}}
		res, err := Unpack(context.Background(), job)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(res.Implied, []string{"a", "a/b", "a/b/c"}) || len(res.Notes) > 0 {
			t.Errorf("result %+v", res)
		}
		for _, p := range []string{"a", "a/b"} {
			if st := stat(t, filepath.Join(dest, p)); time.Unix(st.Mtim.Unix()).UTC() != testTime || time.Unix(st.Atim.Unix()).UTC() != testTime {
				t.Errorf("%s has times %v %v", p, st.Atim, st.Mtim)
			}
		}
		b := filepath.Join(dest, "a/b")
		if got := xattr(t, b, "user.k"); got != "v" {
			t.Errorf("user.k is %q", got)
		}
		if st := stat(t, b); !single && (st.Uid != 1000 || st.Gid != 1001) || st.Mode != 0o42750 {
			t.Errorf("a/b is of %d:%d, mode %o", st.Uid, st.Gid, st.Mode)
		}
	}
}

// TestInheritNotTheOverlay: marks of the overlay stay where they are, and those
// that are files count too.
func TestInheritNotTheOverlay(t *testing.T) {
	make := func(dirs ...string) string {
		root := t.TempDir()
		for _, d := range dirs {
			p := filepath.Join(root, d)
			if err := errors.Join(os.MkdirAll(p, 0o755), os.Chmod(p, 0o711), unix.Setxattr(p, "user.k", []byte(d), 0)); err != nil {
				t.Fatal(err)
			}
		}
		return root
	}
	bottom, middle, top := make("gone", "opq/in", "opaque/in", "stays"), make("opq", "opaque"), make()
	err := errors.Join(os.WriteFile(filepath.Join(top, ".wh.gone"), nil, 0o600), os.WriteFile(filepath.Join(middle, "opq", whOpaque), nil, 0o600),
		unix.Setxattr(filepath.Join(middle, "opaque"), xattrOpaque, []byte("y"), 0))
	if err != nil {
		t.Fatal(err)
	}
	b := tarOf(t, file("gone/f", ""), file("opq/in/f", ""), file("opaque/in/f", ""), file("stays/f", ""))
	dest := filepath.Join(t.TempDir(), "fs")
	job := UnpackJob{Blob: blobFile(t, b), DiffID: digestOf(b), Dest: dest, Single: true, Lowers: []string{top, middle, bottom}}
	if _, err := Unpack(context.Background(), job); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{"gone": "", "opq": "opq", "opq/in": "", "opaque": "opaque", "opaque/in": "", "stays": "stays"} {
		p = filepath.Join(dest, p)
		if got := xattr(t, p, "user.k"); got != want {
			t.Errorf("%s: user.k is %q, want %q", p, got, want)
		}
		if got := xattr(t, p, xattrOpaque); got != "" {
			t.Errorf("%s is opaque: %q", p, got)
		}
	}
}

func TestLowersRefused(t *testing.T) {
	b := tarOf(t, file("a/f", ""))
	job := UnpackJob{Blob: blobFile(t, b), DiffID: digestOf(b), Dest: filepath.Join(t.TempDir(), "fs"), Single: true, Lowers: []string{t.TempDir(), t.TempDir() + "/none"}}
	if _, err := Unpack(context.Background(), job); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("layers that are not there: %v", err)
	}
	job.Limits.Layers = 1
	var le *LimitError
	if _, err := Unpack(context.Background(), job); !errors.As(err, &le) || le.What != "Layers" {
		t.Errorf("too many layers: %v", err)
	}
	job.Lowers, job.Alone = nil, true
	if res, err := Unpack(context.Background(), job); err != nil || !res.NeedsLowers {
		t.Errorf("alone: %+v %v", res, err)
	}
	loop := t.TempDir()
	if err := os.Symlink("a", filepath.Join(loop, "a")); err != nil {
		t.Fatal(err)
	}
	job.Lowers, job.Alone = []string{loop}, false
	if _, err := Unpack(context.Background(), job); !errors.Is(err, ErrArchive) {
		t.Errorf("a link that leads to itself: %v", err)
	}
	if _, err := os.Lstat(job.Dest); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was left: %v", err)
	}
}
