package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/rootless-sbx/sbx/internal/rmtree"
)

var testTime = time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)

// ent is an entry of a test layer.
type ent struct {
	tar.Header
	body string
}

func file(name, body string) ent {
	return ent{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body)), ModTime: testTime}, body}
}
func dir(name string, mode int64) ent {
	return ent{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode, ModTime: testTime}, ""}
}
func symlink(name, to string) ent {
	return ent{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777, ModTime: testTime}, ""}
}
func hardlink(name, to string) ent {
	return ent{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to, ModTime: testTime}, ""}
}
func (e ent) own(uid, gid int) ent { e.Uid, e.Gid = uid, gid; return e }
func (e ent) mode(m int64) ent     { e.Mode = m; return e }
func (e ent) pax(k, v string) ent  { e.PAXRecords = map[string]string{k: v}; return e }
func special(name string, typ byte, maj, min int64) ent {
	return ent{tar.Header{Name: name, Typeflag: typ, Mode: 0o600, Devmajor: maj, Devminor: min, ModTime: testTime}, ""}
}

func tarOf(t testing.TB, entries ...ent) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatalf("%s: %v", e.Name, err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gz(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func zst(b []byte) []byte {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

// unpackHereT unpacks in this process: as real root or as an ordinary user.
func unpackT(t testing.TB, blob []byte, diffID string, job UnpackJob) (string, UnpackResult, error) {
	t.Helper()
	job.Blob = blobFile(t, blob)
	job.DiffID = diffID
	job.Single = os.Geteuid() != 0
	if job.Dest == "" {
		job.Dest = filepath.Join(t.TempDir(), "fs")
	}
	res, err := Unpack(context.Background(), job)
	if err == nil {
		t.Cleanup(func() { rmtree.Remove(job.Dest) })
	}
	return job.Dest, res, err
}

func blobFile(t testing.TB, b []byte) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "blob")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	return f
}

// testImage is an image with its blobs, for layouts and fake registries.
type testImage struct {
	manifest, config []byte
	layers           [][]byte
	id               string
	media            string
}

func (i testImage) digest() string { return digestOf(i.manifest) }

func (i testImage) blobs() map[string][]byte {
	out := map[string][]byte{i.digest(): i.manifest, i.id: i.config}
	for _, l := range i.layers {
		out[digestOf(l)] = l
	}
	return out
}

type compressor struct {
	fn    func([]byte) []byte
	media string
}

var (
	asGzip  = compressor{gz, string(types.DockerLayer)}
	asZstd  = compressor{zst, string(types.OCILayerZStd)}
	asPlain = compressor{bytes.Clone, string(types.OCIUncompressedLayer)}
)

// buildImage makes an image of layers given as tar archives.
func buildImage(t testing.TB, p Platform, comp compressor, tars ...[]byte) testImage {
	t.Helper()
	img := testImage{media: mtOCIManifest}
	conf := v1.ConfigFile{Architecture: p.Architecture, OS: p.OS, Variant: p.Variant, Created: v1.Time{Time: testTime},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{}},
		Config: v1.Config{Cmd: []string{"/bin/true"}, Env: []string{"A=b"}, ExposedPorts: map[string]struct{}{"80/tcp": {}}}}
	descs := []Descriptor{}
	for _, b := range tars {
		h, err := v1.NewHash(digestOf(b))
		if err != nil {
			t.Fatal(err)
		}
		conf.RootFS.DiffIDs = append(conf.RootFS.DiffIDs, h)
		c := comp.fn(b)
		img.layers = append(img.layers, c)
		descs = append(descs, Descriptor{MediaType: comp.media, Digest: digestOf(c), Size: int64(len(c))})
	}
	img.config = mustJSON(t, conf)
	img.id = digestOf(img.config)
	img.manifest = mustJSON(t, map[string]any{"schemaVersion": 2, "mediaType": img.media,
		"config": Descriptor{MediaType: mtOCIConfig, Digest: img.id, Size: int64(len(img.config))}, "layers": descs})
	return img
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// indexOf lists images for several platforms.
func indexOf(t testing.TB, imgs map[string]testImage) []byte {
	var list []map[string]any
	for _, name := range []string{"linux/amd64", "linux/arm64", "linux/arm/v7", "linux/s390x"} {
		i, ok := imgs[name]
		if !ok {
			continue
		}
		p, err := ParsePlatform(name)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, map[string]any{"mediaType": i.media, "digest": i.digest(), "size": len(i.manifest), "platform": p})
	}
	return mustJSON(t, map[string]any{"schemaVersion": 2, "mediaType": mtOCIIndex, "manifests": list})
}

// layoutOf writes images as an OCI layout directory.
func layoutOf(t testing.TB, names []string, imgs ...testImage) string {
	t.Helper()
	root := t.TempDir()
	var list []map[string]any
	blobs := map[string][]byte{}
	for n, i := range imgs {
		d := map[string]any{"mediaType": i.media, "digest": i.digest(), "size": len(i.manifest)}
		if n < len(names) && names[n] != "" {
			d["annotations"] = map[string]string{annName: names[n]}
		}
		list = append(list, d)
		for k, v := range i.blobs() {
			blobs[k] = v
		}
	}
	write := func(name string, b []byte) {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	write("index.json", mustJSON(t, map[string]any{"schemaVersion": 2, "manifests": list}))
	for d, b := range blobs {
		write(blobName(d), b)
	}
	return root
}

// tarDir puts a directory into an archive.
func tarDir(t testing.TB, root string) []byte {
	t.Helper()
	var ents []ent
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		rel, _ := filepath.Rel(root, p)
		ents = append(ents, file(rel, string(b)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tarOf(t, ents...)
}

// dockerArchive makes what "docker save" made before version 25.
func dockerArchive(t testing.TB, tags []string, imgs ...testImage) []byte {
	t.Helper()
	var ents []ent
	var list []dockerEntry
	for n, i := range imgs {
		hex := strings.TrimPrefix(i.id, "sha256:")
		e := dockerEntry{Config: hex + ".json"}
		if n < len(tags) && tags[n] != "" {
			e.RepoTags = []string{tags[n]}
		}
		ents = append(ents, file(e.Config, string(i.config)))
		for k, l := range i.layers {
			name := hex[:8] + string(rune('a'+k)) + "/layer.tar"
			ents = append(ents, file(name, string(l)))
			e.Layers = append(e.Layers, name)
		}
		list = append(list, e)
	}
	return tarOf(t, append(ents, file("manifest.json", string(mustJSON(t, list))))...)
}

// checkConsistent asserts that the store has all that its index names, intact,
// and after a GC nothing else.
func checkConsistent(t testing.TB, root string) {
	t.Helper()
	s, err := Open(Config{Root: root, Remover: mappedRemover})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.GC(context.Background()); err != nil {
		t.Fatalf("GC: %v", err)
	}
	x, err := s.readIndex()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	layers := map[string]bool{places(nil)[0].shared(): true}
	for id, r := range x.Images {
		if _, err := s.Get(context.Background(), id); err != nil {
			t.Errorf("image %s: %v", id, err)
		}
		for _, d := range append([]Descriptor{r.Manifest, r.Config}, descriptors(r.Layers)...) {
			want[strings.TrimPrefix(d.Digest, "sha256:")] = true
			if ok, err := s.verifyBlob(context.Background(), d); !ok || err != nil {
				t.Errorf("blob %s of %s: sound %v, %v", d.Digest, id, ok, err)
			}
		}
		if r.Index != nil {
			want[strings.TrimPrefix(r.Index.Digest, "sha256:")] = true
		}
		for _, p := range places(r.Layers) {
			layers[p.shared()], layers[p.chained()] = true, true
		}
	}
	for _, n := range names(t, filepath.Join(root, "blobs", "sha256")) {
		if !want[n] {
			t.Errorf("blob %s belongs to no image", n)
		}
	}
	for _, key := range names(t, filepath.Join(root, "layers")) {
		for _, n := range names(t, filepath.Join(root, "layers", key)) {
			if !layers[n] {
				t.Errorf("layer %s/%s belongs to no image", key, n)
			}
			m, err := s.layerMeta(key, n)
			if err != nil {
				t.Errorf("layer %s/%s: %v", key, n, err)
				continue
			}
			_, err = os.Lstat(filepath.Join(s.layerDir(key, n), layerTree))
			if chained := strings.HasPrefix(n, "chain-"); m.NeedsLowers && !chained != (err != nil) {
				t.Errorf("layer %s/%s: needs lowers %v, tree %v", key, n, m.NeedsLowers, err)
			}
		}
	}
	if left := names(t, filepath.Join(root, "tmp")); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	e, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var out []string
	for _, x := range e {
		out = append(out, x.Name())
	}
	return out
}

// runTool runs a program of the system and returns what it prints.
func runTool(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, errs.String())
	}
	return out.Bytes()
}
