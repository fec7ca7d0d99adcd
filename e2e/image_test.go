package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/rootless-sbx/sbx/e2e/fixture"
	"github.com/rootless-sbx/sbx/e2e/harness"
)

func build(t *testing.T, ref string) v1.Image {
	t.Helper()
	img, err := harness.Build(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func registry(t *testing.T) *fixture.Registry {
	t.Helper()
	reg, err := harness.Fixtures().StartRegistry(t.Context(), t.TempDir(), fixture.RegistryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	harness.Helper(reg.PID())
	t.Cleanup(func() {
		if err := reg.Close(); err != nil {
			t.Error(err)
		}
	})
	return reg
}

// TestArchives: the same image arrives through every kind of archive.
func TestArchives(t *testing.T) {
	img := build(t, harness.BB)
	for name, save := range map[string]func(v1.Image, string, string) error{
		"docker-archive": fixture.SaveDocker, "docker save": fixture.SaveDockerPlain, "oci-archive": fixture.SaveOCI, "layout": fixture.SaveLayout,
	} {
		t.Run(name, func(t *testing.T) {
			e := harness.NewPrivate(t)
			path := filepath.Join(e.Dir(), "image")
			if err := save(img, "e2e/bb:1", path); err != nil {
				t.Fatal(err)
			}
			e.Must("load", "-i", path)
			if got := e.Must("run", "--rm", "e2e/bb:1", "cat", "/data/keep"); got != "keep\n" {
				t.Errorf("%q", got)
			}
			if name == "layout" {
				return
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			e2 := harness.NewPrivate(t)
			if r := e2.RunInput(f, "load"); r.Code != 0 {
				t.Errorf("from standard input: %v", r)
			}
		})
	}
}

// TestImport: what export writes is an image again, with the configuration that is given;
// what is no archive is none.
func TestImport(t *testing.T) {
	e := harness.NewPrivate(t)
	path := filepath.Join(e.Dir(), "image")
	if err := fixture.SaveDocker(build(t, harness.BB), harness.BB, path); err != nil {
		t.Fatal(err)
	}
	e.Must("load", "-q", "-i", path)
	e.Must("create", "--name", "box", harness.BB)
	rootfs := filepath.Join(e.Dir(), "rootfs.tar")
	e.Must("export", "-o", rootfs, "box")
	e.Must("rm", "box")
	e.Must("import", "-c", `CMD ["cat", "/data/keep"]`, "-c", "ENV PATH=/bin", "-m", "a note", rootfs, "again:1")
	if got := e.Must("run", "--rm", "again:1"); got != "keep\n" {
		t.Errorf("%q", got)
	}
	if got := e.Must("image", "inspect", "-f", "{{.Comment}}", "again:1"); got != "a note\n" {
		t.Errorf("%q", got)
	}
	f, err := os.Open(rootfs)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if r := e.RunInput(f, "import", "-", "stream"); r.Code != 0 || !strings.HasPrefix(r.Stdout, "sha256:") {
		t.Errorf("from standard input: %v", r)
	}
	e.Fails(125, []string{"sbx import"}, "load", "-i", rootfs)
	for _, c := range []struct{ path, why string }{
		{"/none", "no such file"}, {"/dev/null", "nothing in it"}, {"/etc/passwd", "damaged"}, {"/etc", "is a directory"}, {"https://x.test/y", "curl -L"},
	} {
		e.Fails(125, []string{c.why}, "import", c.path, "bad")
	}
	e.Fails(125, []string{"want one of CMD"}, "import", "-c", "FROM x", rootfs)
	if got := e.Must("images", "--format", "{{.Repository}} {{.Containers}} {{.SharedSize}}"); got != "stream N/A N/A\nagain N/A N/A\ne2e/bb N/A N/A\n" {
		t.Errorf("%q", got)
	}
}

// TestRegistry: push nginx to a real registry, pull it, run it.
func TestRegistry(t *testing.T) {
	reg := registry(t)
	e := harness.NewPrivate(t)
	ref, err := reg.Push(t.Context(), build(t, harness.Nginx), "e2e/nginx:1")
	if err != nil {
		t.Fatal(err)
	}
	r := e.Run("pull", ref)
	if r.Code != 0 || strings.Contains(r.Stderr, "\r") {
		t.Errorf("lines, not bars, where there is no terminal: %v", r)
	}
	port := e.FreePort()
	p := e.Start("run", "--rm", "--pull", "never", "-p", "127.0.0.1:"+itoa(port)+":80", ref)
	p.WaitGet("http://127.0.0.1:" + itoa(port) + "/")
	p.Stop()

	other := harness.NewPrivate(t)
	if got := other.Must("run", "--rm", "--entrypoint", "", ref, "cat", "/var/www/html/index.html"); got != fixture.Page {
		t.Errorf("run pulls what is missing: %q", got)
	}
	third := harness.NewPrivate(t)
	third.Fails(125, []string{"e2e/nginx"}, "run", "--rm", "--pull", "never", ref)
	third.Fails(125, []string{"no-such"}, "pull", reg.Addr+"/e2e/nginx:no-such")
	third.Fails(125, []string{"e2e/none"}, "pull", reg.Addr+"/e2e/none:1")
}

func TestMultiPlatform(t *testing.T) {
	reg := registry(t)
	e := harness.NewPrivate(t)
	idx := v1.ImageIndex(empty.Index)
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := harness.Fixtures().Busybox(t.Context(), func(c *v1.Config) { c.Env = append(c.Env, "ARCH="+arch) })
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		cfg = cfg.DeepCopy()
		cfg.Architecture = arch
		if img, err = mutate.ConfigFile(img, cfg); err != nil {
			t.Fatal(err)
		}
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	ref, err := reg.PushIndex(t.Context(), idx, "e2e/multi:1")
	if err != nil {
		t.Fatal(err)
	}
	e.Must("pull", "--platform", "linux/arm64", ref)
	var got []struct{ Architecture string }
	if err := json.Unmarshal([]byte(e.Must("image", "inspect", ref)), &got); err != nil || len(got) != 1 || got[0].Architecture != "arm64" {
		t.Errorf("%v %v", got, err)
	}
	e.Fails(125, []string{"s390x"}, "pull", "--platform", "linux/s390x", ref)
}

func TestImageCommands(t *testing.T) {
	e := harness.NewPrivate(t)
	path := filepath.Join(e.Dir(), "image.tar")
	if err := fixture.SaveDocker(build(t, harness.App), harness.App, path); err != nil {
		t.Fatal(err)
	}
	e.Must("load", "-q", "-i", path)
	var got []struct {
		ID       string `json:"Id"`
		RepoTags []string
		Config   v1.Config
	}
	if err := json.Unmarshal([]byte(e.Must("image", "inspect", harness.App)), &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].Config.User != "app" || got[0].Config.Labels["org.example.label"] != "value" || !strings.HasPrefix(got[0].ID, "sha256:") {
		t.Errorf("%+v", got)
	}
	e.Must("tag", harness.App, "other/name:2")
	if out := e.Must("images"); !strings.Contains(out, "other/name") || !strings.Contains(out, "e2e/app") {
		t.Errorf("%s", out)
	}
	if ids := strings.Fields(e.Must("images", "-q")); len(ids) == 0 || !strings.Contains(got[0].ID, ids[0]) {
		t.Errorf("images -q: %q", ids)
	}
	e.Must("rmi", harness.App)
	e.Must("run", "--rm", "--entrypoint", "/bin/true", "other/name:2")
	e.Must("rmi", "other/name:2")
	e.Fails(125, []string{"other/name"}, "run", "--rm", "--pull", "never", "other/name:2")
	e.Fails(125, []string{"other/name"}, "image", "inspect", "other/name:2")
	e.Fails(125, []string{"other/name"}, "rmi", "other/name:2")
	if left := layersLeft(e); len(left) != 0 {
		t.Errorf("rmi left layers: %q", left)
	}
}

// layersLeft lists unpacked layers.
func layersLeft(e *harness.Env) []string {
	found, _ := filepath.Glob(filepath.Join(e.Data(), "layers", "*", "*", "*"))
	return found
}

// TestImageInUse: an image cannot be taken away from a running sandbox.
func TestImageInUse(t *testing.T) {
	e := harness.NewPrivate(t)
	path := filepath.Join(e.Dir(), "image.tar")
	if err := fixture.SaveDocker(build(t, harness.BB), harness.BB, path); err != nil {
		t.Fatal(err)
	}
	e.Must("load", "-i", path)
	p := serve(t, e, nil, "serve", "80")
	e.Fails(125, []string{"use"}, "rmi", harness.BB)
	p.Stop()
	e.Must("rmi", harness.BB)
}

// TestManyAtOnce: eight pulls and runs of one image at the same time share one store.
func TestManyAtOnce(t *testing.T) {
	reg := registry(t)
	e := harness.NewPrivate(t)
	ref, err := reg.Push(t.Context(), build(t, harness.BB), "e2e/bb:1")
	if err != nil {
		t.Fatal(err)
	}
	var procs []*harness.Proc
	for range 8 {
		procs = append(procs, e.Start("run", "--rm", ref, "cat", "/data/keep"))
	}
	for _, p := range procs {
		if r := p.Wait(harness.RunTimeout); r.Code != 0 || r.Stdout != "keep\n" {
			t.Errorf("%v", r)
		}
	}
}
