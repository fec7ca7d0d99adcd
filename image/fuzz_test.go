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
	"testing"

	"github.com/rootless-sbx/sbx/internal/rmtree"
	"github.com/rootless-sbx/sbx/internal/tarfuzz"
)

// FuzzUnpack: whatever the layer, nothing outside of Dest changes, a failure
// leaves nothing, and everything can be removed again.
func FuzzUnpack(f *testing.F) {
	for _, e := range [][]ent{
		{dir("d", 0), file("d/f", "x"), hardlink("h", "d/f")},
		{symlink("l", "../../.."), file("l/victim", "x")},
		{file(".wh.x", ""), dir("x", 0o700), file("x/.wh..wh..opq", "")},
		{file("d/f", "x"), file("d", "y"), symlink("d", "."), file("d/d", "z")},
		{file("d/victim", "x"), file("x/victim", "x"), hardlink("x/h", "d/victim"), file("d/.wh.victim", "")},
		{special("p", tar.TypeFifo, 0, 0), file("a", "b").pax(paxXattr+"user.a", "b")},
	} {
		f.Add(tarOf(f, e...), uint8(2))
	}
	for i, b := range tarfuzz.Seeds() {
		f.Add(b, uint8(i))
	}
	f.Fuzz(func(t *testing.T, blob []byte, form uint8) {
		switch form % 4 {
		case 1:
			blob = tarfuzz.Mend(bytes.Clone(blob))
		case 2:
			blob = gz(tarfuzz.Mend(bytes.Clone(blob)))
		case 3:
			blob = zst(tarfuzz.Mend(bytes.Clone(blob)))
		}
		outside := t.TempDir()
		victim := filepath.Join(outside, "victim")
		if err := os.WriteFile(victim, []byte("safe"), 0o640); err != nil {
			t.Fatal(err)
		}
		// The digest that it has, so that more than the comparison is tested.
		raw := blob
		if r, _, free, err := decompress(bytes.NewReader(blob)); err == nil {
			raw, _ = readLimited(r, 1<<20)
			free()
		}
		dest := filepath.Join(outside, "fs")
		job := UnpackJob{Blob: blobFile(t, blob), DiffID: digestOf(raw), Dest: dest, Single: true,
			Limits: Limits{Entries: 200, Bytes: 1 << 20, Depth: 20}}
		safe := func() {
			t.Helper()
			if b, rerr := os.ReadFile(victim); rerr != nil || string(b) != "safe" {
				t.Fatalf("a file outside was changed: %q, %v", b, rerr)
			}
		}
		_, err := Unpack(context.Background(), job)
		safe()
		if err != nil {
			if _, serr := os.Lstat(dest); !errors.Is(serr, fs.ErrNotExist) {
				t.Fatalf("failed with %v and left something", err)
			}
			return
		}
		// On top of itself and of links that lead out.
		below := filepath.Join(outside, "below")
		if err := errors.Join(os.Mkdir(below, 0o755), os.Symlink("..", filepath.Join(below, "d")), os.Symlink(outside, filepath.Join(below, "x"))); err != nil {
			t.Fatal(err)
		}
		job.Dest, job.Lowers = filepath.Join(outside, "fs2"), []string{dest, below}
		_, err = Unpack(context.Background(), job)
		safe()
		if got := names(t, below); strings.Join(got, " ") != "d x" {
			t.Fatalf("the layer below has %v", got)
		}
		if _, serr := os.Lstat(job.Dest); err != nil && !errors.Is(serr, fs.ErrNotExist) {
			t.Fatalf("failed with %v and left something", err)
		}
		if err := errors.Join(rmtree.Remove(dest), rmtree.Remove(job.Dest), rmtree.Remove(below)); err != nil {
			t.Fatal(err)
		}
		if got := names(t, outside); strings.Join(got, " ") != "victim" {
			t.Fatalf("outside there is %v", got)
		}
	})
}

func FuzzManifest(f *testing.F) {
	img := buildImage(f, DefaultPlatform(), asGzip, tarOf(f, file("a", "b")))
	f.Add(img.manifest, mtOCIManifest)
	f.Add(indexOf(f, map[string]testImage{"linux/amd64": img}), "")
	f.Add([]byte(`{"schemaVersion":1,"fsLayers":[]}`), "")
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"platform":null}]}`), mtDockerList)
	s := openStore(f, Config{})
	f.Fuzz(func(t *testing.T, b []byte, media string) {
		p, err := parseManifest(b, media)
		if err != nil {
			if !errors.Is(err, ErrManifest) && !errors.Is(err, ErrMediaType) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		if (p.manifest == nil) == (p.index == nil) {
			t.Fatal("neither or both")
		}
		if p.index != nil {
			if d, err := choose(p.index.Manifests, DefaultPlatform(), "x"); err == nil && len(p.index.Manifests) > 1 && d.Platform == nil {
				t.Fatal("chose a manifest without platform")
			}
			return
		}
		r, err := s.newRecord(p.manifest, Descriptor{Digest: digestOf(b)})
		if err != nil {
			return
		}
		for _, d := range r.blobs() {
			if !validDigest(d) || filepath.Dir(s.blobPath(d)) != filepath.Join(s.root, "blobs", "sha256") {
				t.Fatalf("digest %q", d)
			}
		}
		if _, err := r.setConfig([]byte(`{"rootfs":{"diff_ids":[]}}`)); err == nil && len(r.Layers) > 0 {
			t.Fatal("a configuration without layers fits a manifest with some")
		}
	})
}
