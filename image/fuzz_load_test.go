package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fill puts digests and sizes into a document, which a fuzzer could not guess.
func fill(doc []byte, marks map[string][]byte) []byte {
	for mark, b := range marks {
		doc = bytes.ReplaceAll(doc, []byte(mark), []byte(digestOf(b)))
		doc = bytes.ReplaceAll(doc, []byte(`"`+strings.ToLower(mark)+`"`), fmt.Append(nil, len(b)))
	}
	return doc
}

// FuzzLoad loads archives whose documents are anything: what "docker save" writes,
// an OCI layout, any bytes. In the documents $L, $C and $M stand for the digests of the
// layer, the configuration and the manifest, "$l", "$c" and "$m" for their sizes.
// Either nothing comes of it, or an image that is whole and can be removed.
func FuzzLoad(f *testing.F) {
	layer := tarOf(f, dir("d", 0), file("d/f", "x"), hardlink("h", "d/f"))
	config := []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["$L"]}}`)
	manifest := []byte(`{"schemaVersion":2,"config":{"mediaType":"` + mtOCIConfig + `","digest":"$C","size":"$c"},` +
		`"layers":[{"mediaType":"` + mtOCILayer + `","digest":"$L","size":"$l"}]}`)
	index := []byte(`{"schemaVersion":2,"manifests":[{"mediaType":"` + mtOCIManifest + `","digest":"$M","size":"$m","annotations":{"` + annName + `":"a:1"}}]}`)
	nested := []byte(`{"schemaVersion":2,"manifests":[{"mediaType":"` + mtOCIIndex + `","digest":"$M","size":"$m"}]}`)
	docker := []byte(`[{"Config":"config.json","RepoTags":["a:1","b"],"Layers":["layer.tar"]}]`)
	f.Add(uint8(0), docker, []byte{}, config, layer)
	f.Add(uint8(0), []byte(`[{"Config":"../../config.json","RepoTags":["sbx/demo","a@$L"],"Layers":["link"]}]`), []byte{}, config, gz(layer))
	f.Add(uint8(1), index, manifest, config, layer)
	f.Add(uint8(1), nested, index, config, zst(layer))
	f.Add(uint8(2), index, manifest, config, gz(layer))
	f.Add(uint8(3), []byte{}, []byte{}, []byte{}, tarOf(f, file("manifest.json", string(docker)), file("config.json", string(config)), file("layer.tar", "x")))
	f.Add(uint8(3), []byte{}, []byte{}, []byte{}, gz(tarOf(f, symlink("oci-layout", "oci-layout"), hardlink("manifest.json", "../../etc/passwd"))))

	root := filepath.Join(f.TempDir(), "images")
	s := openStore(f, Config{Root: root, Limits: Limits{Bytes: 1 << 20, Layers: 8, Manifest: 1 << 16, Config: 1 << 16, ArchiveEntries: 64}})
	f.Fuzz(func(t *testing.T, kind uint8, top, doc, config, layer []byte) {
		ctx := context.Background()
		raw := layer
		if r, _, free, err := decompress(bytes.NewReader(layer)); err == nil {
			raw, _ = readLimited(r, 1<<20)
			free()
		}
		config = fill(config, map[string][]byte{"$L": raw})
		doc = fill(doc, map[string][]byte{"$L": layer, "$C": config})
		top = fill(top, map[string][]byte{"$L": layer, "$C": config, "$M": doc})
		var err error
		switch kind % 4 {
		case 0:
			_, err = s.LoadFrom(ctx, bytes.NewReader(tarOf(t, file("config.json", string(config)), file("layer.tar", string(layer)),
				symlink("link", "./layer.tar"), file("manifest.json", string(top)))), LoadOptions{})
		case 1, 2:
			ents := []ent{file("oci-layout", `{"imageLayoutVersion":"1.0.0"}`), file("index.json", string(top))}
			for _, b := range [][]byte{doc, config, layer} {
				ents = append(ents, file(blobName(digestOf(b)), string(b)))
			}
			archive := tarOf(t, ents...)
			if kind%4 == 1 {
				_, err = s.LoadFrom(ctx, bytes.NewReader(archive), LoadOptions{Name: "named"})
				break
			}
			layout := filepath.Join(t.TempDir(), "layout")
			job := UnpackJob{Blob: blobFile(t, archive), DiffID: digestOf(archive), Dest: layout, Single: true}
			if _, err := Unpack(ctx, job); err != nil {
				t.Fatal(err)
			}
			_, err = s.Load(ctx, layout, LoadOptions{})
		case 3:
			_, err = s.LoadFrom(ctx, bytes.NewReader(layer), LoadOptions{})
		}
		var le *LimitError
		var e *Error
		if err != nil && !errors.As(err, &e) && !errors.As(err, &le) {
			t.Fatalf("untyped error %v", err)
		}
		checkConsistent(t, root)
		list, lerr := s.List(ctx)
		if lerr != nil || err != nil && len(list) > 0 || err == nil && len(list) == 0 {
			t.Fatalf("%d images after %v; %v", len(list), err, lerr)
		}
		if len(list) > 0 {
			if _, err := s.Prune(ctx, nil); err != nil {
				t.Fatal(err)
			}
		}
		if left := names(t, filepath.Join(root, "blobs", "sha256")); len(left) > 0 {
			t.Fatalf("blobs are left: %v", left)
		}
	})
}

// FuzzIndex reads an index.json that anybody may have written: what is accepted names
// no file outside of the store.
func FuzzIndex(f *testing.F) {
	img := buildImage(f, DefaultPlatform(), asGzip, tarOf(f, file("a", "b")))
	s := openStore(f, Config{})
	if _, err := s.LoadFrom(context.Background(), bytes.NewReader(dockerArchive(f, []string{"a:1"}, img)), LoadOptions{}); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(s.indexPath())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"images":{"x":null}}`))
	f.Add([]byte(`{"version":1,"images":null,"refs":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(s.indexPath(), b, 0o600); err != nil {
			t.Fatal(err)
		}
		x, err := s.readIndex()
		if err != nil {
			return
		}
		for id, r := range x.Images {
			for _, d := range r.blobs() {
				if filepath.Dir(s.blobPath(d)) != filepath.Join(s.root, "blobs", "sha256") {
					t.Fatalf("image %s: digest %q", id, d)
				}
			}
			for _, p := range places(r.Layers) {
				if dir := s.layerDir("k", p.shared()); filepath.Dir(dir) != filepath.Join(s.root, "layers", "k") {
					t.Fatalf("image %s: layer %q", id, dir)
				}
			}
			s.image(x, r)
		}
		if _, err := s.List(context.Background()); err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(x)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(again, &index{}); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzConfig is an image's configuration: what is accepted fits its manifest, and the
// parts that sbx uses can be listed.
func FuzzConfig(f *testing.F) {
	img := buildImage(f, DefaultPlatform(), asGzip, tarOf(f, file("a", "b")))
	f.Add(img.config, 1)
	f.Add([]byte(`{"rootfs":{"diff_ids":[]},"config":{"ExposedPorts":{"1-70000/x":{}},"Env":["="],"Healthcheck":{"Test":null}}}`), 0)
	f.Add([]byte(`{"created":"9999-99-99T00:00:00Z","history":[null]}`), 0)
	f.Fuzz(func(t *testing.T, b []byte, layers int) {
		c, err := parseConfig(b, layers)
		if err != nil {
			if !errors.Is(err, ErrManifest) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		if len(c.RootFS.DiffIDs) != layers {
			t.Fatalf("%d layers of %d", len(c.RootFS.DiffIDs), layers)
		}
		for _, d := range c.RootFS.DiffIDs {
			if !validDigest(d.String()) {
				t.Fatalf("digest %q", d)
			}
		}
		if _, err := json.Marshal(c); err != nil {
			t.Fatalf("inspect could not print it: %v", err)
		}
	})
}
