package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// zeros is a file of more than 1 GiB that compresses 10,000 times: frames of zstd that
// say the same 64 MiB again and again.
func zeros(t *testing.T) []byte {
	const frame, count = 64 << 20, ratioFloor>>26 + 2
	var head bytes.Buffer
	if err := tar.NewWriter(&head).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Mode: 0o644, Size: frame * count}); err != nil {
		t.Fatal(err)
	}
	b := append(zst(head.Bytes()), bytes.Repeat(zst(make([]byte, frame)), count)...)
	if len(b) > 1<<20 {
		t.Fatalf("the bomb has %d bytes", len(b))
	}
	return b
}

// TestBomb: a layer that says too much with few bytes is given up, and nothing of it stays.
func TestBomb(t *testing.T) {
	bomb := zeros(t)
	var le *LimitError
	dest, _, err := unpackT(t, bomb, digestOf(bomb), UnpackJob{})
	if !errors.As(err, &le) || le.What != "Ratio" {
		t.Errorf("layer: %v", err)
	}
	if got := names(t, filepath.Dir(dest)); len(got) > 0 {
		t.Errorf("left: %v", got)
	}
}

// TestArchiveLimits: an archive whose parts are too many, too large or nested too
// deeply leaves nothing.
func TestArchiveLimits(t *testing.T) {
	layer := tarOf(t, file("a", "b"))
	good := buildImage(t, DefaultPlatform(), asPlain, layer)
	layout := func(doc []byte, blobs ...[]byte) []byte {
		ents := []ent{file("oci-layout", `{"imageLayoutVersion":"1.0.0"}`), file("index.json", string(doc))}
		for _, b := range blobs {
			ents = append(ents, file(blobName(digestOf(b)), string(b)))
		}
		return tarOf(t, ents...)
	}
	index := func(media string, b []byte) []byte {
		return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"%s","manifests":[{"mediaType":"%s","digest":"%s","size":%d}]}`, mtOCIIndex, media, digestOf(b), len(b))
	}
	nested := func(depth int) []byte {
		doc, media := good.manifest, mtOCIManifest
		blobs := [][]byte{good.manifest, good.config, layer}
		for range depth {
			doc, media = index(media, doc), mtOCIIndex
			blobs = append(blobs, doc)
		}
		return layout(index(media, doc), blobs...)
	}
	many := make([]ent, 20)
	for i := range many {
		many[i] = file(fmt.Sprint(i), "")
	}
	stack := make([][]byte, 9)
	for i := range stack {
		stack[i] = tarOf(t, file(fmt.Sprint(i), ""))
	}
	labels := good
	labels.config = bytes.Replace(good.config, []byte(`"A=b"`), fmt.Appendf(nil, "%q", "A="+strings.Repeat("x", 5000)), 1)
	labels.id = digestOf(labels.config)
	for name, tc := range map[string]struct {
		archive []byte
		limits  Limits
		want    string // in the error; "" for none
	}{
		"as deep as may be":      {archive: nested(maxNesting)},
		"nested too deeply":      {archive: nested(maxNesting + 1), want: "nested too deeply"},
		"too many files":         {archive: tarOf(t, many...), limits: Limits{ArchiveEntries: 10}, want: "ArchiveEntries"},
		"too many layers":        {archive: dockerArchive(t, nil, buildImage(t, DefaultPlatform(), asPlain, stack...)), limits: Limits{Layers: 8}, want: "Layers"},
		"a large manifest":       {archive: layout(append(index(mtOCIManifest, good.manifest), bytes.Repeat([]byte(" "), 5000)...), good.manifest, good.config, layer), limits: Limits{Manifest: 4096}, want: "4096"},
		"a large configuration":  {archive: dockerArchive(t, nil, labels), limits: Limits{Config: 4096}, want: "4096"},
		"a large layer":          {archive: dockerArchive(t, nil, good), limits: Limits{Bytes: 1024}, want: "Bytes"},
		"an image as it may be":  {archive: dockerArchive(t, nil, good)},
		"links among themselves": {archive: tarOf(t, symlink("oci-layout", "index.json"), symlink("index.json", "oci-layout")), want: "no image archive"},
		"a link out":             {archive: tarOf(t, file("oci-layout", "{}"), symlink("index.json", "../../../../etc/passwd")), want: "without index.json"},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, Config{Limits: tc.limits})
			imgs, err := s.LoadFrom(context.Background(), bytes.NewReader(tc.archive), LoadOptions{})
			if tc.want == "" {
				if err != nil || len(imgs) != 1 {
					t.Errorf("%v, %v", imgs, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			checkEmpty(t, s)
		})
	}
}

// checkEmpty asserts that a store that took nothing has nothing.
func checkEmpty(t *testing.T, s *Store) {
	t.Helper()
	for _, d := range []string{"tmp", "blobs/sha256", "layers"} {
		if left := names(t, filepath.Join(s.root, d)); len(left) > 0 {
			t.Errorf("left in %s: %v", d, left)
		}
	}
}
