package e2e

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/fixture"
	"github.com/rootless-sbx/sbx/e2e/harness"
)

// storages are ways to keep a sandbox's files that must all give the same answers.
var storages = [][]string{
	{"--storage-driver", "native"}, {"--storage-driver", "fuse"}, {"--storage-driver", "copy"}, {"--userns", "single"},
}

// eachStorage runs a test for each of them.
func eachStorage(t *testing.T, f func(t *testing.T, e *harness.Env, flags []string)) {
	e := harness.New(t, harness.BB)
	for _, flags := range storages {
		t.Run(flags[1], func(t *testing.T) { f(t, e.In(t), flags) })
	}
}

// tarEntries are the entries of an archive by name.
func tarEntries(t *testing.T, archive string) map[string]*tar.Header {
	t.Helper()
	m := map[string]*tar.Header{}
	r := tar.NewReader(strings.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return m
		}
		if err != nil {
			t.Fatal(err)
		}
		m[h.Name] = h
	}
}

// TestDiffCommitExport changes files and wants to find that again in three ways,
// while the sandbox runs and afterwards.
func TestDiffCommitExport(t *testing.T) {
	eachStorage(t, func(t *testing.T, e *harness.Env, flags []string) {
		name := "tree-" + flags[1]
		args := append(slices.Clone(flags), "--env", "A=1", "-v", "/vol", harness.BB, "sh", "-c",
			"echo new >/new; echo more >>/etc/passwd; rm /data/keep; mkdir -p /d/e; echo f >/d/e/f; ln /d/e/f /d/hard; chown 10:20 /new 2>/dev/null;"+
				" echo secret >/vol/file; echo ready; exec sleep 1000")
		detached(t, e, name, args...)
		until(t, e, "ready", "logs", name)
		want := "A /d\nA /d/e\nA /d/e/f\nA /d/hard\nC /data\nD /data/keep\nC /etc\nC /etc/passwd\nA /new\n"
		if got := e.Must("diff", name); got != want {
			t.Errorf("diff while it runs:\n%s", got)
		}
		image := "e2e/" + name + ":1"
		id := strings.TrimSpace(e.Must("commit", "-m", "why", "-a", "me", "-c", `CMD ["cat","/new","/data/keep"]`, "-c", "ENV B=2", name, image))
		e.AtEnd("rmi", image)
		if got := e.Must("image", "inspect", "-f", "{{.Id}} {{.Author}} {{.Config.Cmd}} {{.Config.Env}}", image); !strings.HasPrefix(got, id+" me [cat /new /data/keep]") ||
			!strings.Contains(got, "A=1 B=2]") || strings.Contains(got, "HOSTNAME") {
			t.Errorf("the new image: %q", got)
		}
		r := e.Run("run", "--rm", image)
		if r.Code != 1 || r.Stdout != "new\n" || !strings.Contains(r.Stderr, "/data/keep") {
			t.Errorf("the new image: %v", r)
		}
		if got := e.Must("run", "--rm", image, "sh", "-c", "stat -c '%h %u:%g' /d/hard /new; ls /vol"); got != "2 0:0\n1 "+map[bool]string{true: "0:0", false: "10:20"}[flags[1] == "single"]+"\n" {
			t.Errorf("files of the new image: %q", got)
		}
		e.Must("stop", "-t", "0", name)
		if got := e.Must("diff", name); got != want {
			t.Errorf("diff of a stopped sandbox:\n%s", got)
		}
		if got := e.Must("diff", "--format", "{{.Type}}{{.Path}}", name); !strings.HasPrefix(got, "A/d\n") {
			t.Errorf("diff --format: %q", got)
		}
		files := tarEntries(t, e.Must("export", name))
		for _, n := range []string{"new", "d/e/f", "etc/passwd", "bin/busybox", "vol/"} {
			if files[n] == nil {
				t.Errorf("export has no %s", n)
			}
		}
		if files["data/keep"] != nil || files["vol/file"] != nil {
			t.Error("export has what is not in the root")
		}
		if h := files["new"]; h != nil && flags[1] != "single" && (h.Uid != 10 || h.Gid != 20) {
			t.Errorf("owner of /new: %d:%d", h.Uid, h.Gid)
		}
	})
}

// TestCommitChain: an image of a sandbox of an image of a sandbox.
func TestCommitChain(t *testing.T) {
	e := harness.New(t, harness.BB)
	from := harness.BB
	for i := range 3 {
		name := fmt.Sprint("chain", i)
		e.Must("run", "--name", name, from, "sh", "-c", fmt.Sprintf("echo %d >/file%d; rm -f /file%d", i, i, i-2))
		from = "e2e/" + name
		e.Must("commit", name, from)
		e.Must("rm", name)
		e.AtEnd("rmi", from)
	}
	if got := e.Must("run", "--rm", from, "sh", "-c", "cat /file*"); got != "1\n2\n" {
		t.Errorf("%q", got)
	}
	// One that has never run, and one without a change.
	e.Must("create", "--name", "never", harness.BB, "true")
	e.AtEnd("rm", "never")
	if got := e.Must("diff", "never"); got != "" {
		t.Errorf("diff: %q", got)
	}
	id := strings.TrimSpace(e.Must("commit", "never"))
	if got := e.Must("images", "-aq", "--no-trunc"); !strings.Contains(got, id) {
		t.Errorf("%s is not among %q", id, got)
	}
	e.Must("rmi", id)
	if files := tarEntries(t, e.Must("export", "never")); files["data/keep"] == nil {
		t.Error("export has no /data/keep")
	}
}

func TestTreeBadInput(t *testing.T) {
	e := harness.New(t, harness.BB)
	e.Must("create", "--name", "c", harness.BB, "true")
	e.AtEnd("rm", "c")
	for _, c := range []struct {
		code  int
		words []string
		args  []string
	}{
		{1, []string{"no such sandbox: nope"}, []string{"diff", "nope"}},
		{1, []string{"no such sandbox: nope"}, []string{"export", "nope"}},
		{1, []string{"no such sandbox: nope"}, []string{"commit", "nope"}},
		{1, []string{"Not A Name"}, []string{"commit", "c", "Not A Name"}},
		{125, []string{"RUN make", "want one of", "ENTRYPOINT"}, []string{"commit", "-c", "RUN make", "c"}},
		{125, []string{"EXPOSE x", "no port"}, []string{"commit", "--change", "EXPOSE x", "c"}},
		{125, []string{"needs at least 1"}, []string{"commit"}},
		{125, []string{"takes 1 argument"}, []string{"diff", "c", "d"}},
		{125, []string{"--format"}, []string{"diff", "--format", "{{", "c"}},
		{1, []string{"is a directory"}, []string{"export", "-o", e.Home, "c"}},
		{1, []string{"no such file or directory", "/no/such/file"}, []string{"export", "-o", "/no/such/file", "c"}},
		{1, []string{"no space left"}, []string{"export", "-o", "/dev/full", "c"}},
	} {
		e.Fails(c.code, c.words, c.args...)
	}
}

// TestTreeDiskFull: a full disk leaves no half of an image or archive.
func TestTreeDiskFull(t *testing.T) {
	e := harness.NewPrivate(t)
	archive := filepath.Join(e.Dir(), "image.tar")
	if err := fixture.SaveDocker(build(t, harness.BB), harness.BB, archive); err != nil {
		t.Fatal(err)
	}
	data := filepath.Dir(e.Data())
	if err := os.MkdirAll(e.Data(), 0o755); err != nil {
		t.Fatal(err)
	}
	// The sandbox has 3 MiB of its own, and the disk 1 MiB left.
	e.InNamespace(strings.ReplaceAll(`mount -t tmpfs -o size=200m tmpfs DATA
		"$1" load -q -i `+archive+`
		"$1" run --network none --name full `+harness.BB+` dd if=/dev/urandom of=/big bs=1M count=3 2>/dev/null
		head -c $(($(stat -f -c '%a*%S' DATA) - 1000000)) /dev/zero >DATA/filler
		exits() { "$@" || echo "exit status $?"; }
		exits "$1" commit full e2e/full:1
		exits "$1" export -o DATA/x.tar full
		find DATA/sbx/images/tmp -mindepth 1; find DATA -name '*x.tar*'
		rm DATA/filler`, "DATA", data))
	r := e.Run("images", "--format", "{{.Repository}}")
	r.Want(t, 0, "no space left", "free disk space", "export to")
	if strings.Count(r.Stdout, "exit status 1") != 2 || strings.Contains(r.Stdout, "full") || strings.Contains(r.Stdout, "x.tar") || strings.Contains(r.Stdout, "tmp/") {
		t.Errorf("left behind: %v", r)
	}
}

// TestTreeKilled: an sbx that is killed in the middle leaves nothing, and a sandbox
// that stood still runs on.
func TestTreeKilled(t *testing.T) {
	e := harness.New(t, harness.BB)
	detached(t, e, "killed", harness.BB, "sh", "-c", "dd if=/dev/urandom of=/big bs=1M count=32 2>/dev/null; echo ready; while :; do echo beat; sleep 0.05; done")
	until(t, e, "ready", "logs", "killed")
	tmp := filepath.Join(e.Data(), "images", "tmp")
	out := filepath.Join(e.Home, "out.tar")
	blobs := func() int {
		es, err := os.ReadDir(filepath.Join(e.Data(), "images", "blobs", "sha256"))
		if err != nil {
			t.Fatal(err)
		}
		return len(es)
	}
	before := blobs()
	for i, args := range [][]string{{"commit", "killed", "e2e/killed:1"}, {"export", "-o", out, "killed"}} {
		p := e.Start(args...)
		if i == 0 { // in the middle of it: something has been written
			awaitFile(t, filepath.Join(tmp, "commit-*", "blob-*"))
		} else {
			time.Sleep(20 * time.Millisecond) // any moment will do: an archive without a name cannot be seen
		}
		p.Signal(syscall.SIGKILL)
		p.Wait(10 * time.Second)
	}
	if _, err := os.Lstat(out); err == nil {
		fi, _ := os.Stat(out)
		t.Logf("the export was faster: %d bytes", fi.Size())
	}
	if es, _ := os.ReadDir(e.Home); slices.ContainsFunc(es, func(x os.DirEntry) bool { return x.Name() != "out.tar" }) {
		t.Errorf("left in the directory: %v", es)
	}
	if got := e.Must("images", "-q", "e2e/killed"); got != "" {
		t.Errorf("there is an image: %q", got)
	}
	if left, _ := filepath.Glob(filepath.Join(tmp, "commit-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if n := blobs(); n != before {
		t.Errorf("%d blobs, %d before", n, before)
	}
	since := strings.Count(e.Must("logs", "killed"), "beat")
	for end := time.Now().Add(harness.Slow(10 * time.Second)); strings.Count(e.Must("logs", "killed"), "beat") == since; {
		if time.Now().After(end) {
			t.Fatal("the sandbox stands still")
		}
	}
}

func awaitFile(t *testing.T, pattern string) {
	t.Helper()
	for end := time.Now().Add(harness.Slow(20 * time.Second)); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if list, _ := filepath.Glob(pattern); len(list) > 0 {
			if fi, err := os.Stat(list[0]); err == nil && fi.Size() > 0 {
				return
			}
		}
	}
	t.Fatalf("no %s", pattern)
}
