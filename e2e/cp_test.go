package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// copies is a table of docker cp's rules, as podman's tests have them: what is copied,
// to which path, and which file has its text then. Paths of the host are below HOST.
var copies = []struct{ src, dst, file, text string }{
	{"HOST/file", "/", "/file", "file"},
	{"HOST/file", "/other.txt", "/other.txt", "file"},
	{"HOST/file", "/tmp", "/tmp/file", "file"},
	{"HOST/file", "/tmp/", "/tmp/file", "file"},
	{"HOST/file", "/tmp/.", "/tmp/file", "file"},
	{"HOST/file", "tmp/rel", "/tmp/rel", "file"},
	{"HOST/file", ".", "/file", "file"},
	{"HOST/dotfile.", "/tmp", "/tmp/dotfile.", "dot"},
	{"HOST/dir", "/", "/dir/sub/f", "f"},
	{"HOST/dir.", "/", "/dir./sub/f", "f"},
	{"HOST/dir/", "/tmp", "/tmp/dir/sub/f", "f"},
	{"HOST/dir/.", "/srv/", "/srv/sub/f", "f"},
	{"HOST/dir/sub/.", "/srv/here/.", "/srv/here/f", "f"},
	{"HOST/dir", "/new1", "/new1/sub/f", "f"},
	{"HOST/dir/", "/new2/", "/new2/sub/f", "f"},
	{"HOST/dir/.", "/new3", "/new3/sub/f", "f"},
	{"HOST/file", "/links/todir", "/srv/here/file", "file"},
	{"HOST/file", "/links/tofile", "/srv/linked", "file"},
	{"HOST/file", "/links/broken", "/srv/nonesuch", "file"},
	{"HOST/file", "/links/up/x", "/x", "file"},
	{"HOST/file", "/links/out/x", "/etc/x", "file"},
	{"HOST/link/", "/linked", "/linked/sub/f", "f"},
	{"HOST/file", "/vol/file", "/vol/file", "file"},
	{"HOST/file", "/vol/inner/", "/vol/inner/file", "file"},
	{"HOST/file", "/bound", "/bound/file", "file"},
	{"HOST/file", "/etc/hosts", "/etc/hosts", "file"},
	{"HOST/odd\nname\xff", "/srv/odd", "/srv/odd", "odd"},
	{"HOST/odd\nname\xff", "/srv/here", "", ""},

	{"/srv/cf", "HOST/out", "HOST/out/cf", "cf"},
	{"/srv/cf", "HOST/out/.", "HOST/out/cf", "cf"},
	{"/srv/cf", "HOST/out/new", "HOST/out/new", "cf"},
	{"srv/cf", "HOST/out/rel", "HOST/out/rel", "cf"},
	{"/srv/cd", "HOST/out", "HOST/out/cd/sub/f", "cdf"},
	{"/srv/cd/", "HOST/out", "HOST/out/cd/sub/f", "cdf"},
	{"/srv/cd/.", "HOST/out", "HOST/out/sub/f", "cdf"},
	{"/srv/cd", "HOST/out/newdir", "HOST/out/newdir/sub/f", "cdf"},
	{"/srv/cd/.", "HOST/out/newdir", "HOST/out/newdir/sub/f", "cdf"},
	{"/srv/cd.", "HOST/out", "HOST/out/cd./f", "cdf"},
	{"/links/tocd/", "HOST/out", "HOST/out/tocd/sub/f", "cdf"},
	{"/links/tocd/sub", "HOST/out", "HOST/out/sub/f", "cdf"},
	{"/srv/cf", "HOST/tobroken", "HOST/out/broken", "cf"},
	{"/srv/here/odd\nname\xff", "HOST/out", "HOST/out/odd\nname\xff", "odd"},
	{"/bound/mine", "HOST/out", "HOST/out/mine", "mine"},
	{"/data/xattr", "HOST/out", "HOST/out/xattr", "x\n"},
}

const copyBox = "mkdir -p /tmp /srv/here /links /srv/cd/sub /srv/cd. && echo -n cf >/srv/cf && echo -n cdf >/srv/cd/sub/f && cp /srv/cd/sub/f /srv/cd./ &&" +
	" touch /srv/linked && cd /links && ln -s ../srv/here todir && ln -s /srv/linked tofile && ln -s ../srv/nonesuch broken && ln -s ../../../.. up &&" +
	" ln -s /../../etc out && ln -s /srv/cd tocd && echo ready; exec sleep 1000"

func TestCopyRules(t *testing.T) {
	eachStorage(t, func(t *testing.T, e *harness.Env, flags []string) {
		host := filepath.Join(e.Dir(), "host-"+flags[1])
		for f, text := range map[string]string{"file": "file", "dotfile.": "dot", "dir/sub/f": "f", "dir./sub/f": "f", "odd\nname\xff": "odd", "bind/mine": "mine"} {
			writeFile(t, filepath.Join(host, f), text)
		}
		for link, to := range map[string]string{"link": "dir", "tobroken": "out/broken"} {
			if err := os.Symlink(to, filepath.Join(host, link)); err != nil {
				t.Fatal(err)
			}
		}
		name := "cp-" + flags[1]
		args := append(slices.Clone(flags), "-v", "/vol", "-v", "/vol/inner", "-v", host+"/bind:/bound", "--tmpfs", "/tmp", harness.BB, "sh", "-c", copyBox)
		detached(t, e, name, args...)
		until(t, e, "ready", "logs", name)
		for _, state := range []string{"running", "stopped"} {
			if state == "stopped" {
				e.Must("stop", "-t", "0", name)
			}
			var wanted []string
			for i, c := range copies {
				// Each of the other storages gets some of the table, and less where a start
				// takes its time.
				if c.text != "odd" && c.file != "" && testing.Short() && i/3%2 != 0 {
					continue
				}
				if c.text != "odd" && c.file != "" && flags[1] != "native" && i%3 != slices.Index([]string{"fuse", "copy", "single"}, flags[1]) {
					continue
				}
				out := filepath.Join(host, "out")
				if err := os.RemoveAll(out); err != nil {
					t.Fatal(err)
				}
				if err := os.Mkdir(out, 0o755); err != nil {
					t.Fatal(err)
				}
				src, dst := strings.Replace(c.src, "HOST", host, 1), strings.Replace(c.dst, "HOST", host, 1)
				inward := src != c.src
				if inward {
					dst = name + ":" + dst
				} else {
					src = name + ":" + src
				}
				if r := e.Run("cp", src, dst); r.Code != 0 || r.Stdout+r.Stderr != "" {
					t.Errorf("%s: %v", state, r)
					continue
				}
				if inward {
					if c.file != "" && (state == "running" || !strings.HasPrefix(c.file, "/tmp/") && c.file != "/etc/hosts") { // which are new at each start
						wanted = append(wanted, c.file, c.text)
					}
				} else if b, err := os.ReadFile(strings.Replace(c.file, "HOST", host, 1)); string(b) != c.text {
					t.Errorf("%s: cp %s %s: %q, %v", state, c.src, c.dst, b, err)
				}
			}
			if state == "stopped" {
				e.Must("start", name)
			}
			check := `while [ $# -gt 0 ]; do [ "$(cat "$1"; echo .)" = "$2." ] || echo "$1 is not $2"; shift 2; done;` +
				` stat -c %u:%g /srv/odd /srv/here/* /dir/sub 2>/dev/null | sort -u; rm -rf /srv/here/* /dir /dir. /new1 /new2 /new3 /linked /srv/sub /file /x /etc/x; : >/srv/linked`
			if got := e.Must(append([]string{"exec", name, "sh", "-c", check, "sh"}, wanted...)...); got != "0:0\n" {
				t.Errorf("%s: %s", state, got)
			}
		}
	})
}

func TestCopyBadInput(t *testing.T) {
	e := harness.New(t, harness.BB)
	host := filepath.Join(e.Dir(), "host")
	writeFile(t, host+"/file", "file")
	writeFile(t, host+"/dir/f", "f")
	writeFile(t, host+"/ro/f", "f")
	detached(t, e, "bad", "--read-only", "-v", "/vol", "-v", host+"/ro:/ro:ro", "--tmpfs", "/tmp:mode=1777", harness.BB, "sh", "-c",
		"mkdir -p /vol/d/file; touch /vol/f; mkfifo /vol/fifo; ln -s loop /vol/loop; echo ready; exec sleep 1000")
	until(t, e, "ready", "logs", "bad")
	for _, state := range []string{"running", "stopped"} {
		if state == "stopped" {
			e.Must("stop", "-t", "0", "bad")
		}
		for _, c := range []struct {
			code  int
			words []string
			args  []string
		}{
			{1, []string{"no such sandbox: nope"}, []string{"nope:/x", "."}},
			{125, []string{"between two sandboxes", "sbx cp bad:/x - | sbx cp - bad:/y"}, []string{"bad:/x", "bad:/y"}},
			{125, []string{"one of the two", "SANDBOX:PATH"}, []string{"a", "b"}},
			{125, []string{"needs 2 arguments"}, []string{"bad:/x"}},
			{1, []string{"bad:/none", "no such file"}, []string{"bad:/none", host}},
			{1, []string{"bad:/vol/f/x", "not a directory"}, []string{"bad:/vol/f/x", host}},
			{1, []string{"bad:/vol/f", "not a directory"}, []string{"bad:/vol/f/", host}},
			{1, []string{"bad:/vol/loop", "symbolic links"}, []string{"-L", "bad:/vol/loop", host}},
			{1, []string{host + "/none", "no such file"}, []string{host + "/none", "bad:/vol"}},
			{1, []string{host + "/none/x", "no such file"}, []string{"bad:/vol/f", host + "/none/x"}},
			{1, []string{"bad:/vol/none", "no such file"}, []string{host + "/file", "bad:/vol/none/x"}},
			{1, []string{"destination directory must exist"}, []string{host + "/file", "bad:/vol/none/"}},
			{1, []string{"destination directory must exist"}, []string{"bad:/vol/f", host + "/none/"}},
			{1, []string{"cannot copy a directory to a file"}, []string{host + "/dir", "bad:/vol/f"}},
			{1, []string{"cannot copy a directory to a file"}, []string{"bad:/vol/d", host + "/file"}},
			{1, []string{"not a directory"}, []string{host + "/file", "bad:/vol/f/"}},
			{1, []string{"cannot overwrite a directory with a non-directory", "file"}, []string{host + "/file", "bad:/vol/d"}},
			{1, []string{"directory or a regular file"}, []string{host + "/file", "bad:/vol/fifo"}},
			{1, []string{"directory or a regular file"}, []string{"bad:/vol/f", "/dev/null"}},
			{1, []string{"read-only file system", "--read-only"}, []string{host + "/file", "bad:/etc"}},
			{1, []string{"read-only file system"}, []string{host + "/file", "bad:/ro/new"}},
			{1, []string{"/proc", "kernel's", "sbx exec"}, []string{host + "/file", "bad:/proc/x"}},
			{1, []string{"/dev", "kernel's"}, []string{host + "/file", "bad:/dev/shm"}},
			{1, []string{"bad:/proc/version", "no such file"}, []string{"bad:/proc/version", host}},
			{1, []string{"destination directory must exist"}, []string{"-", "bad:/vol/none"}},
			{1, []string{"not a directory"}, []string{"-", "bad:/vol/f"}},
			{1, []string{"damaged archive", "empty"}, []string{"-", "bad:/vol"}},
		} {
			r := e.RunInput(strings.NewReader(""), append([]string{"cp"}, c.args...)...)
			r.Want(t, c.code, c.words...)
		}
	}
}

// tarOf is an archive of the headers; a regular file has its name as content.
func tarOf(t *testing.T, hs ...tar.Header) *bytes.Buffer {
	t.Helper()
	b := &bytes.Buffer{}
	w := tar.NewWriter(b)
	for _, h := range hs {
		text := ""
		if h.Typeflag == 0 {
			h.Typeflag, text = tar.TypeReg, h.Name
			h.Size = int64(len(text))
		}
		h.Mode |= 0o755
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestCopyStreams: tar streams in both directions, with owners and without, compressed
// ones, and hostile ones, which stay inside.
func TestCopyStreams(t *testing.T) {
	e := harness.New(t, harness.BB)
	detached(t, e, "streams", "-v", "/vol", harness.BB, "sleep", "1000")
	in := func(b *bytes.Buffer, args ...string) harness.Result {
		return e.RunInput(b, append(append([]string{"cp"}, args...), "-", "streams:/vol")...)
	}
	owned := tarOf(t, tar.Header{Name: "a", Uid: 1000, Gid: 2000, Mode: 0o4755}, tar.Header{Name: "sub/b", Uid: 1000})
	plain := bytes.Clone(owned.Bytes())
	in(owned).Want(t, 0)
	if got := e.Must("exec", "streams", "stat", "-c", "%u:%g %a", "/vol/a", "/vol/sub/b"); got != "0:0 755\n0:0 755\n" {
		t.Errorf("without owners: %q", got)
	}
	z := &bytes.Buffer{}
	w := gzip.NewWriter(z)
	w.Write(plain)
	w.Close()
	in(z, "-a").Want(t, 0)
	if got := e.Must("exec", "streams", "stat", "-c", "%u:%g %a", "/vol/a", "/vol/sub/b"); got != "1000:2000 4755\n1000:0 755\n" {
		t.Errorf("with owners: %q", got)
	}
	files := tarEntries(t, e.Must("cp", "streams:/vol/sub", "-"))
	if h := files["sub/b"]; len(files) != 2 || h == nil || h.Uid != 1000 {
		t.Errorf("out: %v", files)
	}
	if files = tarEntries(t, e.Must("cp", "streams:/vol/sub/.", "-")); files["./"] == nil || files["b"] == nil {
		t.Errorf("contents: %v", files)
	}
	if files = tarEntries(t, e.Must("cp", "streams:/", "-")); files["vol/sub/b"] == nil || files["bin/busybox"] == nil || files["proc/version"] != nil || files["dev/null"] != nil {
		t.Errorf("all: %d files", len(files))
	}

	e.Must("exec", "streams", "sh", "-c", "rm -rf /vol/*")
	outside := filepath.Join(e.Dir(), "outside")
	if err := os.Mkdir(outside, 0o777); err != nil {
		t.Fatal(err)
	}
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	for _, c := range []struct {
		in    *bytes.Buffer
		code  int
		words []string
	}{
		{tarOf(t, tar.Header{Name: "../../x"}), 1, []string{"leaves the directory"}},
		{tarOf(t, tar.Header{Name: "/abs"}), 0, nil},
		{tarOf(t, link("l", outside), tar.Header{Name: "l/x"}), 0, nil}, // that is a path of the sandbox
		{tarOf(t, link("up", "../../../.."+outside), tar.Header{Name: "up/y"}), 0, nil},
		{tarOf(t, tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "../etc/passwd"}), 1, []string{"leaves the directory"}},
		{tarOf(t, tar.Header{Typeflag: tar.TypeBlock, Name: "disk", Devmajor: 8}), 0, []string{"disk", "device node", "left out"}},
		{tarOf(t, tar.Header{Name: "twice"}, tar.Header{Name: "twice"}), 0, nil},
		{tarOf(t, tar.Header{Name: "d", Typeflag: tar.TypeDir}, tar.Header{Name: "d"}), 1, []string{"cannot overwrite a directory"}},
		{tarOf(t, tar.Header{Name: "new\nline\xff"}), 0, nil},
		{bytes.NewBufferString(strings.Repeat("no tar ", 200)), 1, []string{"damaged archive"}},
		{bytes.NewBuffer(plain[:1538]), 1, []string{"ends in the middle"}},
		{bytes.NewBuffer([]byte{0x1f, 0x8b, 8, 0, 0}), 1, []string{"EOF"}},
	} {
		in(c.in).Want(t, c.code, c.words...)
	}
	if es, _ := os.ReadDir(outside); len(es) != 0 {
		t.Errorf("outside: %v", es)
	}
	if got := e.Must("exec", "streams", "sh", "-c", "ls -A /vol "+outside); !strings.Contains(got, "abs\n") || !strings.Contains(got, "twice\n") || !strings.Contains(got, "x\ny\n") || strings.Contains(got, "disk") {
		t.Errorf("inside: %q", got)
	}
}

// TestCopyLarge: a large sparse file, hard links and attributes arrive as they were, and
// nobody holds the file in memory.
func TestCopyLarge(t *testing.T) {
	e := harness.New(t, harness.BB)
	dir := filepath.Join(e.Dir(), "tree")
	writeFile(t, dir+"/one", "linked")
	if err := os.Link(dir+"/one", dir+"/two"); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(dir + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(2 << 30); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("end"), 2<<30-3); err != nil {
		t.Fatal(err)
	}
	f.Close()
	xattr := unix.Setxattr(dir+"/one", "user.note", []byte("kept"), 0) == nil
	detached(t, e, "large", harness.BB, "sleep", "1000")
	e.Must("cp", dir, "large:/tree")
	if got := e.Must("exec", "large", "sh", "-c", "stat -c '%s %h' /tree/sparse /tree/one; tail -c 3 /tree/sparse; [ $(stat -c %b /tree/sparse) -lt 1000 ] || echo full"); got != "2147483648 1\n6 2\nend" {
		t.Errorf("in the sandbox: %q", got)
	}
	back := filepath.Join(e.Dir(), "back")
	e.Must("cp", "large:/tree", back)
	var st unix.Stat_t
	if err := unix.Stat(back+"/sparse", &st); err != nil || st.Size != 2<<30 || st.Blocks > 1000 {
		t.Errorf("back: %d bytes, %d blocks, %v", st.Size, st.Blocks, err)
	}
	if err := unix.Stat(back+"/two", &st); err != nil || st.Nlink != 2 {
		t.Errorf("back: %d links, %v", st.Nlink, err)
	}
	v := make([]byte, 10)
	if n, err := unix.Getxattr(back+"/two", "user.note", v); xattr && (err != nil || string(v[:n]) != "kept") {
		t.Errorf("attribute: %v", err)
	}
}

// TestCopyInterrupted: a full disk, an sbx that is killed and a sandbox that ends in the
// middle of a copy leave no half of a file, and no process or mount.
func TestCopyInterrupted(t *testing.T) {
	e := harness.New(t, harness.BB)
	detached(t, e, "mid", "--tmpfs", "/small:size=1m", harness.BB, "sleep", "1000")
	big := filepath.Join(e.Dir(), "big")
	writeFile(t, big, strings.Repeat("0123456789abcdef", 1<<17))
	e.Must("exec", "mid", "sh", "-c", "echo old >/small/kept")
	e.Fails(1, []string{"mid:/small", "big", "no space left", "free disk space"}, "cp", big, "mid:/small")
	e.Fails(1, []string{"no space left"}, "cp", big, "mid:/small/kept")
	if got := e.Must("exec", "mid", "sh", "-c", "ls -A /small; cat /small/kept"); got != "kept\nold\n" {
		t.Errorf("after a full disk: %q", got)
	}
	part := tarOf(t, tar.Header{Name: "whole"}, tar.Header{Name: strings.Repeat("n", 90)}).Bytes()
	for _, end := range []func(*harness.Proc){
		func(p *harness.Proc) { p.Signal(syscall.SIGKILL) },
		func(p *harness.Proc) { p.Signal(syscall.SIGINT) },
		func(*harness.Proc) { e.Must("kill", "mid") },
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p := e.StartWith(func(c *exec.Cmd) { c.Stdin = r }, "cp", "-", "mid:/")
		r.Close()
		if _, err := w.Write(part[:1024+512+50]); err != nil { // the second file is not whole
			t.Fatal(err)
		}
		until(t, e, "whole", "exec", "mid", "ls", "/")
		end(p)
		p.Wait(20 * time.Second)
		w.Close()
		e.Run("start", "mid")
		if got := e.Must("exec", "mid", "sh", "-c", "ls -A / | grep nnn; rm -f /whole"); got != "" {
			t.Errorf("left: %q", got)
		}
	}
}

// TestCopyNeverStarted: what is copied into a sandbox before its first start is there
// then, in its volumes too.
func TestCopyNeverStarted(t *testing.T) {
	e := harness.New(t, harness.BB)
	dir := filepath.Join(e.Dir(), "conf")
	writeFile(t, dir+"/f", "conf")
	e.AtEnd("volume", "rm", "before")
	e.AtEnd("rm", "-f", "-v", "never")
	e.Must("create", "--name", "never", "-v", "before:/named", "-v", "/anonymous", harness.BB, "sh", "-c", "cat /f /named/f /anonymous/f /anonymous/conf/f")
	if got := e.Must("__complete", "cp", "nev") + e.Must("__complete", "cp", "./nev"); got != "never:\n:nospace\n:files\n" {
		t.Errorf("completion: %q", got)
	}
	for _, dst := range []string{"/", "/named", "/anonymous"} {
		e.Must("cp", dir+"/f", "never:"+dst)
	}
	e.Must("cp", dir, "never:/anonymous")
	if got := e.Must("diff", "never"); got != "A /f\n" {
		t.Errorf("diff: %q", got)
	}
	if got := e.Must("start", "-a", "never"); got != "confconfconfconf" {
		t.Errorf("%q", got)
	}
	// Killed in the middle, it can be started at once.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := e.StartWith(func(c *exec.Cmd) { c.Stdin = r }, "cp", "-", "never:/")
	r.Close()
	defer w.Close()
	if _, err := w.Write(tarOf(t, tar.Header{Name: "whole"}, tar.Header{Name: "half"}).Bytes()[:1536+2]); err != nil {
		t.Fatal(err)
	}
	awaitFile(t, filepath.Join(e.Data(), "containers", "*", "upper", "whole"))
	p.Signal(syscall.SIGKILL)
	p.Wait(10 * time.Second)
	if got := e.Must("start", "-a", "never"); got != "confconfconfconf" {
		t.Errorf("%q", got)
	}
	if got := e.Must("diff", "never"); strings.Contains(got, "half") {
		t.Errorf("diff: %q", got)
	}
}
