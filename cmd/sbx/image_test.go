package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// newStore gives the test directories of its own, with one image loaded under names.
func newStore(t *testing.T, names ...string) (archive string) {
	t.Helper()
	dir := t.TempDir()
	run := filepath.Join(dir, "run")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_DATA_HOME", filepath.Join(dir, "data"))
	t.Setenv("XDG_RUNTIME_DIR", run)
	t.Setenv("SBX_INIT", "/proc/self/exe") // see TestMain
	archive = filepath.Join(dir, "image.tar")
	writeArchive(t, archive, names...)
	if out, errs, code := sbx(t, "load", "-q", "-i", archive); code != 0 || !strings.Contains(out, "Loaded image") {
		t.Fatalf("load: %d %q %q", code, out, errs)
	}
	return archive
}

func writeArchive(t *testing.T, path string, names ...string) {
	t.Helper()
	layer, err := random.Layer(2048, "application/vnd.docker.image.rootfs.diff.tar.gzip")
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err == nil {
		img, err = mutate.Config(img, v1.Config{Labels: map[string]string{"tier": "web"}, Env: []string{"A=<1>"}, Cmd: []string{"/serve"}})
	}
	if err == nil {
		img, err = mutate.CreatedAt(img, v1.Time{Time: time.Now().Add(-50 * time.Hour)})
	}
	if err != nil {
		t.Fatal(err)
	}
	all := map[name.Tag]v1.Image{}
	for _, n := range names {
		tag, err := name.NewTag(n)
		if err != nil {
			t.Fatal(err)
		}
		all[tag] = img
	}
	if err := tarball.MultiWriteToFile(path, all); err != nil {
		t.Fatal(err)
	}
}

func TestImages(t *testing.T) {
	newStore(t, "debian:12", "ghcr.io/org/app:v1")
	out, _, _ := sbx(t, "images", "-q", "--no-trunc")
	id := strings.TrimSpace(out)
	if !strings.HasPrefix(id, "sha256:") || len(id) != 71 {
		t.Fatalf("images -q --no-trunc: %q", out)
	}
	short := id[7:19]
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"images", "-q"}, short + "\n"},
		{[]string{"images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}} {{.CreatedSince}}"}, "debian:12 " + short + " 2 days ago\nghcr.io/org/app:v1 " + short + " 2 days ago\n"},
		{[]string{"images", "--format", `table {{.Repository}}\t{{.Tag}}`}, "REPOSITORY        TAG\ndebian            12\nghcr.io/org/app   v1\n"},
		{[]string{"images", "--format", "table {{lower .Repository}}", "nothing"}, "repository\n"},
		{[]string{"images", "--format", "{{.Repository}}", "debian"}, "debian\n"},
		{[]string{"images", "--format", "{{.Repository}}", "debian:12"}, "debian\n"},
		{[]string{"images", "--format", "{{.Repository}}", "debian:13"}, ""},
		{[]string{"images", "--format", "{{.Repository}}", "deb*"}, "debian\n"},
		{[]string{"images", "--format", "{{.Repository}}", "-f", "reference=ghcr.io/*/app"}, "ghcr.io/org/app\n"},
		{[]string{"images", "--format", "{{.Repository}}", "-f", "reference=ghcr.io/*"}, ""},
		{[]string{"images", "-q", "-f", "label=tier=web"}, short + "\n"},
		{[]string{"images", "-q", "-f", "label=tier"}, short + "\n"},
		{[]string{"images", "-q", "-f", "label=tier=db"}, ""},
		{[]string{"images", "-q", "-f", "dangling=true"}, ""},
		{[]string{"images", "-q", "-f", "dangling=false"}, short + "\n"},
		{[]string{"image", "inspect", "-f", "{{.ID}} {{.RootFS.Type}}", "debian:12"}, id + " layers\n"},
		{[]string{"image", "inspect", "-f", "{{.Id}} {{index .Config.Labels \"tier\"}}", "debian:12"}, id + " web\n"},
		{[]string{"image", "inspect", "-f", "[{{.Config.Labels.none}}]", "debian:12"}, "[<no value>]\n"},
		{[]string{"image", "inspect", "-f", "{{json .Config.Env}}", "debian:12"}, "[\"A=<1>\"]\n"},
		{[]string{"tag", short, "localhost:5000/x:1"}, ""},
		{[]string{"rmi", "localhost:5000/x:1"}, "Untagged: localhost:5000/x:1\n"},
		{[]string{"image", "prune", "-f"}, "Total reclaimed space: 0B\n"},
	} {
		out, errs, code := sbx(t, tc.args...)
		if code != 0 || errs != "" || out != tc.want {
			t.Errorf("%q: %d\n got %q\nwant %q\n     %q", tc.args, code, out, tc.want, errs)
		}
	}
}

func TestImageTable(t *testing.T) {
	newStore(t, "debian:12")
	out, _, _ := sbx(t, "images")
	if !strings.HasPrefix(out, "REPOSITORY   TAG   IMAGE ID       CREATED      CONTENT SIZE\ndebian       12    ") {
		t.Errorf("images: %q", out)
	}
	out, _, _ = sbx(t, "images", "--digests")
	if !strings.HasPrefix(out, "REPOSITORY   TAG   DIGEST ") {
		t.Errorf("images --digests: %q", out)
	}
	out, _, _ = sbx(t, "images", "--format", "json")
	var row imageRow
	if err := json.Unmarshal([]byte(out), &row); err != nil || row.Repository != "debian" || row.Tag != "12" {
		t.Errorf("images --format json: %q %v", out, err)
	}
}

func TestInspectPrintsWhatItFound(t *testing.T) {
	newStore(t, "debian:12")
	out, errs, code := sbx(t, "image", "inspect", "nope", "debian:12")
	var list []map[string]any
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 || list[0]["Architecture"] == nil {
		t.Errorf("stdout: %q %v", out, err)
	}
	if code != 125 || !strings.HasPrefix(errs, "sbx: image nope: not in the local store\nfix: ") {
		t.Errorf("%d %q", code, errs)
	}
	if !strings.Contains(out, `"A=<1>"`) {
		t.Errorf("escaped as for a web page: %q", out)
	}
}

func TestInspectTemplateErrors(t *testing.T) {
	newStore(t, "debian:12")
	for _, f := range []string{"{{.Bogus}}", "{{.Config.Bogus}}", "{{"} {
		if out, errs, code := sbx(t, "image", "inspect", "-f", f, "debian:12"); code != 125 || out != "" || !strings.HasPrefix(errs, "sbx: --format: ") {
			t.Errorf("%s: %d %q %q", f, code, out, errs)
		}
	}
}

func TestRemoveImages(t *testing.T) {
	newStore(t, "debian:12")
	out, errs, code := sbx(t, "rmi", "nope", "debian:12")
	if code != 125 || !strings.Contains(errs, "nope") || !strings.Contains(out, "Untagged: debian:12\nDeleted: sha256:") {
		t.Errorf("%d %q %q", code, out, errs)
	}
	if out, errs, code := sbx(t, "rmi", "-f", "debian:12"); code != 0 || out != "" || errs != "" {
		t.Errorf("rmi -f of nothing: %d %q %q", code, out, errs)
	}
}

func TestPruneAsks(t *testing.T) {
	archive := newStore(t, "debian:12")
	writeArchive(t, archive, "debian:12") // takes the name away from the first
	if _, errs, code := sbx(t, "load", "-q", archive); code != 0 {
		t.Fatal(errs)
	}
	var out, errs strings.Builder
	std := streams{in: strings.NewReader("no\n"), out: &out, err: &errs}
	if err := newRoot(&terminal{f: os.Stderr}).execute(t.Context(), []string{"image", "prune"}, std); err == nil || !strings.Contains(errs.String(), "[y/N]") {
		t.Errorf("not confirmed: %v %q", err, errs.String())
	}
	left, _, _ := sbx(t, "images", "-q", "-f", "dangling=true")
	if len(strings.Fields(left)) != 1 || out.Len() != 0 {
		t.Fatalf("dangling: %q; printed %q", left, out.String())
	}
	if out, _, code := sbx(t, "image", "prune", "-f"); code != 0 || !strings.Contains(out, "Deleted: sha256:") {
		t.Errorf("prune: %d %q", code, out)
	}
	left, _, _ = sbx(t, "images", "--format", "{{.Repository}}")
	if left != "debian\n" {
		t.Errorf("left: %q", left)
	}
}

func TestLoadTakesOneArchive(t *testing.T) {
	archive := newStore(t, "debian:12")
	if _, errs, code := sbx(t, "load", "-i", archive, archive); code != 125 || !strings.Contains(errs, "one archive") {
		t.Errorf("%d %q", code, errs)
	}
	if out, errs, code := sbx(t, "load", archive+".none"); code != 125 || out != "" || !strings.HasPrefix(errs, "sbx: ") || strings.Count(errs, "\nsbx:") != 0 {
		t.Errorf("%d %q %q", code, out, errs)
	}
}
