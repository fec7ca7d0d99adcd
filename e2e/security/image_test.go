package security

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rootless-sbx/sbx/e2e/fixture"
	"github.com/rootless-sbx/sbx/e2e/harness"
)

// TestHostileImages: layers that write through links, link to files of the host or name
// places above the root. Each is refused, or stays below its root.
func TestHostileImages(t *testing.T) {
	e := harness.New(t, harness.BB)
	o := newOutside(t, e)
	dir := filepath.Dir(o.canary)
	self, err := os.Executable()
	must(t, err)
	up := strings.Repeat("../", 12)
	file := func(name string) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: 4}
	}
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	hard := func(name, to string) tar.Header { return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to} }
	for name, layers := range map[string][][]tar.Header{
		"a file through a link":                    {{link("out", dir), file("out/evil")}},
		"a file through a link of the layer below": {{link("out", dir)}, {file("out/evil")}},
		"a file through a relative link":           {{link("out", up+dir[1:]), file("out/evil")}},
		"a file through a link of /proc":           {{link("out", "/proc/self/root"+dir), file("out/evil")}},
		"a file over a link":                       {{link("evil", o.canary)}, {file("evil")}},
		"a name above the root":                    {{file(up + dir[1:] + "/evil")}},
		"an absolute name":                         {{file(dir + "/evil")}},
		"a hard link to the host":                  {{hard("stolen", up+o.canary[1:])}},
		"a hard link by an absolute name":          {{hard("stolen", o.canary)}},
		"a hard link through a link":               {{link("out", dir), hard("stolen", "out/canary")}},
		"a hard link to a link":                    {{link("out", o.canary), hard("stolen", "out")}},
		"a whiteout through a link":                {{link("out", dir)}, {{Typeflag: tar.TypeReg, Name: "out/.wh.canary"}}},
		"a whiteout above the root":                {{{Typeflag: tar.TypeReg, Name: up + dir[1:] + "/.wh.canary"}}},
		"an opaque directory through a link":       {{link("out", dir)}, {{Typeflag: tar.TypeReg, Name: "out/.wh..wh..opq"}}},
	} {
		t.Run(name, func(t *testing.T) {
			archive := filepath.Join(e.Dir(), "hostile.tar")
			must(t, fixture.SaveDocker(hostile(t, layers), "e2e/hostile:1", archive))
			r := e.In(t).Run("load", "-i", archive)
			if r.Code == 0 {
				defer e.In(t).Must("rmi", "e2e/hostile:1")
				r = e.In(t).Run("run", "--rm", "--network", "none", "-v", self+":/probe:ro", "e2e/hostile:1", "try", "read", "/stolen")
				if r.Stdout != "ENOENT\n" && !(r.Code == 125 && strings.Contains(r.Stderr, "unpack")) {
					t.Errorf("%v", r)
				}
			}
			r.Want(t, r.Code) // no panic
			o.unchanged(t)
		})
	}
}

func hostile(t *testing.T, layers [][]tar.Header) v1.Image {
	t.Helper()
	img := v1.Image(empty.Image)
	for _, entries := range layers {
		var buf bytes.Buffer
		tw := tar.NewWriter(&buf)
		for _, h := range entries {
			must(t, tw.WriteHeader(&h))
			_, err := tw.Write(make([]byte, h.Size))
			must(t, err)
		}
		must(t, tw.Close())
		var err error
		img, err = mutate.AppendLayers(img, static.NewLayer(buf.Bytes(), types.DockerUncompressedLayer))
		must(t, err)
	}
	cfg, err := img.ConfigFile()
	must(t, err)
	cfg = cfg.DeepCopy()
	cfg.Architecture, cfg.OS, cfg.Config.Entrypoint = runtime.GOARCH, "linux", []string{"/probe"}
	img, err = mutate.ConfigFile(img, cfg)
	must(t, err)
	return img
}
