package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLoadFormats(t *testing.T) {
	tars := sampleTars(t)
	a := buildImage(t, DefaultPlatform(), asGzip, tars...)
	z := buildImage(t, DefaultPlatform(), asZstd, tars[:2]...)
	p := buildImage(t, DefaultPlatform(), asPlain, tars[:1]...)
	layout := layoutOf(t, []string{"docker.io/library/a:v1", "ghcr.io/org/z:v2", "onlytag"}, a, z, p)
	ociArchive := tarDir(t, layout)
	docker := dockerArchive(t, []string{"a:v1", "ghcr.io/org/p:v2"}, buildImage(t, DefaultPlatform(), asPlain, tars...), p)
	dockerGz := dockerArchive(t, []string{"a:v1", "ghcr.io/org/p:v2"}, a, p) // layers compressed inside
	// Since version 25 "docker save" writes both, over the same blobs.
	bothDir := layoutOf(t, []string{"here"}, p)
	entry := dockerEntry{Config: blobName(p.id), RepoTags: []string{"named:here"}, Layers: []string{blobName(digestOf(p.layers[0]))}}
	if err := os.WriteFile(bothDir+"/manifest.json", mustJSON(t, []dockerEntry{entry}), 0o600); err != nil {
		t.Fatal(err)
	}
	both := tarDir(t, bothDir)
	ctx := context.Background()
	write := func(b []byte) string {
		path := filepath.Join(t.TempDir(), "archive")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tt := range []struct {
		name  string
		load  func(s *Store) ([]*Image, error)
		ids   []string
		names []string
	}{
		{"layout", func(s *Store) ([]*Image, error) { return s.Load(ctx, layout, LoadOptions{}) }, []string{a.id, z.id, p.id}, []string{"a:v1", "ghcr.io/org/z:v2"}},
		{"oci-archive", func(s *Store) ([]*Image, error) { return s.Load(ctx, write(ociArchive), LoadOptions{}) }, []string{a.id, z.id, p.id}, []string{"a:v1", "ghcr.io/org/z:v2"}},
		{"oci-archive, named", func(s *Store) ([]*Image, error) {
			return s.Load(ctx, write(ociArchive), LoadOptions{Name: "mine"})
		}, []string{a.id, z.id, p.id}, []string{"a:v1", "ghcr.io/org/z:v2", "mine:latest"}},
		{"oci-archive, zstd", func(s *Store) ([]*Image, error) { return s.Load(ctx, write(zst(ociArchive)), LoadOptions{}) }, []string{a.id, z.id, p.id}, []string{"a:v1", "ghcr.io/org/z:v2"}},
		{"docker-archive", func(s *Store) ([]*Image, error) { return s.Load(ctx, write(docker), LoadOptions{}) }, []string{a.id, p.id}, []string{"a:v1", "ghcr.io/org/p:v2"}},
		{"docker-archive, gzip", func(s *Store) ([]*Image, error) { return s.Load(ctx, write(gz(docker)), LoadOptions{}) }, []string{a.id, p.id}, []string{"a:v1", "ghcr.io/org/p:v2"}},
		{"docker-archive, compressed layers", func(s *Store) ([]*Image, error) { return s.Load(ctx, write(dockerGz), LoadOptions{}) }, []string{a.id, p.id}, []string{"a:v1", "ghcr.io/org/p:v2"}},
		{"docker-archive, stream", func(s *Store) ([]*Image, error) {
			return s.LoadFrom(ctx, io.MultiReader(bytes.NewReader(gz(docker))), LoadOptions{})
		}, []string{a.id, p.id}, []string{"a:v1", "ghcr.io/org/p:v2"}},
		{"both", func(s *Store) ([]*Image, error) { return s.LoadFrom(ctx, bytes.NewReader(both), LoadOptions{}) }, []string{p.id}, []string{"named:here"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t, Config{})
			imgs, err := tt.load(s)
			if err != nil {
				t.Fatal(err)
			}
			var ids, all []string
			for _, i := range imgs {
				ids, all = append(ids, i.ID), append(all, i.Names...)
				l, err := s.Acquire(ctx, i, "k")
				if err != nil {
					t.Fatal(err)
				}
				if got := content(t, filepath.Join(l.Layers[len(l.Layers)-1], "bin/sh")); got != "shell" {
					t.Errorf("bin/sh is %q", got)
				}
				if err := errors.Join(l.Close(), l.Close()); err != nil {
					t.Error(err)
				}
			}
			slices.Sort(all)
			if !slices.Equal(ids, tt.ids) || !slices.Equal(all, tt.names) {
				t.Errorf("got %v %v, want %v %v", ids, all, tt.ids, tt.names)
			}
			checkConsistent(t, s.root)
		})
	}
}

// TestLoadDamaged: cut anywhere and with bits flipped, an archive is refused
// and nothing is left of it.
func TestLoadDamaged(t *testing.T) {
	tars := sampleTars(t)[:2]
	i := buildImage(t, DefaultPlatform(), asPlain, tars...)
	docker := dockerArchive(t, []string{"a:v1"}, i)
	oci := tarDir(t, layoutOf(t, []string{"docker.io/library/a:v1"}, i))
	ctx := context.Background()
	for name, whole := range map[string][]byte{"docker": docker, "oci": oci, "docker.gz": gz(docker), "oci.zst": zst(oci)} {
		s := openStore(t, Config{})
		try := func(what string, b []byte) error {
			t.Helper()
			path := filepath.Join(t.TempDir(), "a")
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			imgs, err := s.Load(ctx, path, LoadOptions{})
			if err == nil {
				for _, img := range imgs { // then it must be whole
					if img.ID != i.id {
						t.Errorf("%s, %s: another image %s", name, what, img.ID)
					}
				}
				if _, err := s.Prune(ctx, nil); err != nil {
					t.Fatal(err)
				}
				return nil
			}
			if !errors.Is(err, ErrArchive) && !errors.Is(err, ErrDigest) && !errors.Is(err, ErrManifest) && !errors.Is(err, ErrMediaType) && !errors.Is(err, ErrPlatform) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
			for _, d := range []string{"tmp", "blobs/sha256"} {
				if left := names(t, filepath.Join(s.root, d)); len(left) > 0 {
					t.Fatalf("%s, %s: left in %s: %v", name, what, d, left)
				}
			}
			return err
		}
		for _, cut := range []int{0, 3, 300, len(whole) / 4, len(whole) / 2, len(whole) * 3 / 4} {
			if err := try(fmt.Sprint("cut at ", cut), whole[:cut]); err == nil {
				t.Errorf("%s: cut at %d, and nobody noticed", name, cut)
			}
		}
		step := max(len(whole)/40, 1)
		for at := step / 2; at < len(whole); at += step {
			b := bytes.Clone(whole)
			b[at] ^= 4
			try(fmt.Sprint("flip at ", at), b)
		}
	}
	// The message says which part it is.
	s := openStore(t, Config{})
	at := bytes.Index(docker, []byte("root:x:0:0"))
	b := bytes.Clone(docker)
	b[at] ^= 4
	if _, err := s.LoadFrom(ctx, bytes.NewReader(b), LoadOptions{}); !errors.Is(err, ErrDigest) || !strings.Contains(err.Error(), "layer.tar") || !strings.Contains(err.Error(), digestOf(tars[0])) {
		t.Errorf("flipped layer: %v", err)
	}
	if _, err := s.LoadFrom(ctx, bytes.NewReader(docker[:at]), LoadOptions{}); !errors.Is(err, ErrArchive) || !strings.Contains(err.Error(), fmt.Sprint(at)) {
		t.Errorf("cut archive: %v", err)
	}
	if _, err := s.LoadFrom(ctx, bytes.NewReader(tarOf(t, file("bin/sh", "x"))), LoadOptions{}); !errors.Is(err, ErrArchive) {
		t.Errorf("a root file system: %v", err)
	}
}

func loadOne(t testing.TB, s *Store, name string, tars ...[]byte) *Image {
	t.Helper()
	i := buildImage(t, DefaultPlatform(), asGzip, tars...)
	imgs, err := s.Load(context.Background(), layoutOf(t, []string{name}, i), LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return imgs[0]
}

func TestNamesAndRemoval(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, Config{})
	tars := sampleTars(t)
	a := loadOne(t, s, "docker.io/library/a:v1", tars[0], tars[1])
	b := loadOne(t, s, "docker.io/library/b:v1", tars[0])
	short := strings.TrimPrefix(a.ID, "sha256:")[:12]
	for _, ref := range []string{"a:v1", "docker.io/library/a:v1", a.ID, short, "sha256:" + short} {
		if i, err := s.Get(ctx, ref); err != nil || i.ID != a.ID {
			t.Errorf("get %s: %v", ref, err)
		}
	}
	for ref, want := range map[string]error{"a": ErrNotFound, "c:v1": ErrNotFound, "ffffffffffff": ErrNotFound, "Bad": ErrReference, "sha256:": ErrReference} {
		if _, err := s.Get(ctx, ref); !errors.Is(err, want) {
			t.Errorf("get %s: %v", ref, err)
		}
	}
	if err := s.Tag(ctx, "a:v1", "other/name"); err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(ctx, "a:v1", "demo"); !errors.Is(err, ErrReference) {
		t.Errorf("tag as demo: %v", err)
	}
	if err := s.Tag(ctx, "nothing", "x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("tag of nothing: %v", err)
	}
	if _, err := s.Remove(ctx, a.ID, false); !errors.Is(err, ErrConflict) {
		t.Errorf("remove by id of two names: %v", err)
	}
	lease, err := s.Acquire(ctx, a, "k")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := s.Remove(ctx, "a:v1", false); err != nil || len(out) != 1 || out[0] != "Untagged: a:v1" {
		t.Errorf("untag: %v %v", out, err)
	}
	for _, force := range []bool{false, true} {
		if _, err := s.Remove(ctx, "other/name", force); !errors.Is(err, ErrInUse) {
			t.Errorf("remove in use, force %v: %v", force, err)
		}
	}
	if left, err := s.Prune(ctx, nil); err != nil || len(left) != 2 { // b only
		t.Errorf("prune: %v %v", left, err)
	}
	if _, err := os.Stat(lease.Layers[0]); err != nil {
		t.Errorf("a leased layer is gone: %v", err)
	}
	if err := lease.Close(); err != nil {
		t.Fatal(err)
	}
	s.cfg.Users = func(context.Context) (map[string]string, error) { return map[string]string{a.ID: "box"}, nil }
	for _, force := range []bool{false, true} {
		if _, err := s.Remove(ctx, "other/name", force); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "box") {
			t.Errorf("remove what a sandbox was made of, force %v: %v", force, err)
		}
	}
	s.cfg.Users = nil
	out, err := s.Remove(ctx, "other/name", false)
	if err != nil || !slices.Equal(out, []string{"Untagged: other/name:latest", "Deleted: " + a.ID}) {
		t.Errorf("remove: %v %v", out, err)
	}
	if _, err := s.Acquire(ctx, a, "k"); !errors.Is(err, ErrNotFound) {
		t.Errorf("acquire what is removed: %v", err)
	}
	if _, err := s.Get(ctx, b.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("b: %v", err)
	}
	checkConsistent(t, s.root)
	for _, d := range []string{"blobs/sha256", "layers/k", "tmp", "locks"} {
		if left := names(t, filepath.Join(s.root, d)); len(left) > 0 {
			t.Errorf("left in %s: %v", d, left)
		}
	}
}

// TestLayersAreShared: a layer is unpacked once per key, and stays while one
// image has it.
func TestLayersAreShared(t *testing.T) {
	ctx := context.Background()
	var jobs []string
	s := openStore(t, Config{})
	inner := s.unpack
	ch := make(chan string, 100)
	s.unpack = func(ctx context.Context, j UnpackJob) (UnpackResult, error) {
		ch <- j.MapKey + " " + j.DiffID
		return inner(ctx, j)
	}
	tars := sampleTars(t)
	// The same layer twice in one image counts once, the topmost place.
	a := loadOne(t, s, "docker.io/library/a:v1", tars[0], tars[1], tars[0])
	b := loadOne(t, s, "docker.io/library/b:v1", tars[0], tars[2])
	for _, key := range []string{"k1", "k2", "k1"} {
		for _, i := range []*Image{a, b} {
			l, err := s.Acquire(ctx, i, key)
			if err != nil {
				t.Fatal(err)
			}
			if len(l.Layers) != 2 {
				t.Errorf("layers %v", l.Layers)
			}
			l.Close()
		}
	}
	close(ch)
	for j := range ch {
		jobs = append(jobs, j)
	}
	if slices.Sort(jobs); len(slices.Compact(jobs)) != 6 || len(jobs) != 6 {
		t.Errorf("unpacked %v", jobs)
	}
	l, err := s.Acquire(ctx, a, "k1")
	if err != nil {
		t.Fatal(err)
	}
	if got := content(t, filepath.Join(l.Layers[0], "bin/sh")); got != "shell" {
		t.Error("the repeated layer is not on top")
	}
	l.Close()
	if _, err := s.Remove(ctx, "a:v1", false); err != nil {
		t.Fatal(err)
	}
	if got := names(t, s.root+"/layers/k1"); len(got) != 2 {
		t.Errorf("layers left: %v", got)
	}
	checkConsistent(t, s.root)
	for _, key := range []string{"", "../x", ".x", "a/b"} {
		if _, err := s.Acquire(ctx, b, key); err == nil {
			t.Errorf("key %q was taken", key)
		}
	}
}

func TestAcquireSpecialLayers(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, Config{})
	none := loadOne(t, s, "docker.io/library/none:v1")
	l, err := s.Acquire(ctx, none, "k")
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Layers) != 1 || len(names(t, l.Layers[0])) != 0 {
		t.Errorf("an image without layers: %v", l.Layers)
	}
	l.Close()
	opq := loadOne(t, s, "docker.io/library/opq:v1", tarOf(t, file("hidden", "x")), tarOf(t, file(".wh..wh..opq", ""), file("mine", "x")), tarOf(t, file("top", "x")))
	if l, err = s.Acquire(ctx, opq, "k"); err != nil {
		t.Fatal(err)
	}
	if len(l.Layers) != 2 || content(t, filepath.Join(l.Layers[1], "mine")) != "x" {
		t.Errorf("an opaque root: %v", l.Layers)
	}
	l.Close()
	// Published with a wrong DiffID.
	lie := buildImage(t, DefaultPlatform(), asGzip, tarOf(t, file("a", "b")))
	lie.layers[0] = gz(tarOf(t, file("a", "c")))
	lie.manifest = mustJSON(t, map[string]any{"schemaVersion": 2, "mediaType": mtOCIManifest,
		"config": Descriptor{mtOCIConfig, lie.id, int64(len(lie.config))},
		"layers": []Descriptor{{asGzip.media, digestOf(lie.layers[0]), int64(len(lie.layers[0]))}}})
	imgs, err := s.Load(ctx, layoutOf(t, nil, lie), LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Acquire(ctx, imgs[0], "k"); !errors.Is(err, ErrDigest) {
		t.Errorf("wrong DiffID: %v", err)
	}
	// Damaged by the disk: dropped, so that it can be fetched again.
	blob := s.blobPath(opq.Layers[2].Digest)
	b, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(blob, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Acquire(ctx, opq, "k2"); !errors.Is(err, ErrDigest) || !strings.Contains(err.Error(), "the disk") {
		t.Errorf("damaged blob: %v", err)
	}
	if _, err := os.Stat(blob); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the damaged blob stays")
	}
	if left := names(t, s.root+"/tmp"); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
}

func TestInspect(t *testing.T) {
	s := openStore(t, Config{})
	i := loadOne(t, s, "docker.io/library/a:v1", sampleTars(t)...)
	ins, err := s.Inspect(context.Background(), "a:v1")
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(mustJSON(t, ins), &m); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"Id", "RepoTags", "RepoDigests", "Created", "Architecture", "Os", "Size", "Config", "RootFS"} {
		if _, ok := m[k]; !ok {
			t.Errorf("no %s", k)
		}
	}
	if ins.ID != i.ID || ins.RepoTags[0] != "a:v1" || len(ins.RootFS.Layers) != 3 || ins.RootFS.Type != "layers" || ins.Config.Cmd[0] != "/bin/true" ||
		ins.Created != "2001-02-03T04:05:06Z" || ins.Size <= 0 || ins.RepoDigests == nil {
		t.Errorf("%+v", ins)
	}
}

func TestDemo(t *testing.T) {
	ctx := context.Background()
	bin := filepath.Join(t.TempDir(), "sbx")
	if err := os.WriteFile(bin, []byte("#!not really"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, Config{})
	a, err := s.Demo(ctx, bin)
	if err != nil {
		t.Fatal(err)
	}
	b, err := openStore(t, Config{}).Demo(ctx, bin)
	if err != nil {
		t.Fatal(err)
	}
	if a.ID != b.ID || a.Manifest != b.Manifest {
		t.Errorf("the same binary gave %s and %s", a.ID, b.ID)
	}
	if !slices.Equal(a.Names, []string{"demo"}) || !slices.Equal(a.Config.Config.Entrypoint, []string{"/bin/sbx-demo"}) {
		t.Errorf("image %+v", a)
	}
	l, err := s.Acquire(ctx, a, "k")
	if err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]uint32{"tmp": 0o41777, "bin/sbx-demo": 0o100755, "etc/ssl/certs": 0o40755, "etc/passwd": 0o100644, "root": 0o40700} {
		if got := stat(t, filepath.Join(l.Layers[0], path)).Mode; got != mode {
			t.Errorf("%s has mode %o", path, got)
		}
	}
	if got := content(t, filepath.Join(l.Layers[0], "bin/sbx-demo")); got != "#!not really" {
		t.Errorf("bin/sbx-demo is %q", got)
	}
	if c, err := s.Demo(ctx, bin); err != nil || !c.rec.Added.Equal(a.rec.Added) {
		t.Errorf("an unchanged binary made the image again: %v", err)
	}
	change := func(text string) *Image {
		t.Helper()
		if err := os.WriteFile(bin, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		c, err := s.Demo(ctx, bin)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := change("changed, and longer")
	if c.ID == a.ID {
		t.Error("a changed binary gave the same image")
	}
	if _, err := s.Get(ctx, a.ID); err != nil {
		t.Errorf("the former image is in use and gone: %v", err)
	}
	l.Close()
	d := change("changed again")
	if _, err := s.Get(ctx, c.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("the former image stays: %v", err)
	}
	if err := os.Chtimes(bin, time.Now(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if e, err := s.Demo(ctx, bin); err != nil || e.ID != d.ID {
		t.Errorf("touched only: %v", err)
	}
	checkConsistent(t, s.root)
}
