package fsoverlay

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/internal/archive"
	"golang.org/x/sys/unix"
)

func (e *env) view() *View {
	e.t.Helper()
	v, err := OpenView(ViewSpec{Driver: e.spec.Driver, Lowers: e.spec.Lowers, Upper: e.spec.Upper})
	must(e.t, err)
	return v
}

func changes(t *testing.T, e *env) []string {
	t.Helper()
	v := e.view()
	defer v.Close()
	got := []string{}
	must(t, v.Changes(t.Context(), func(c Change) error {
		got = append(got, c.Kind.String()+" "+c.Path)
		return nil
	}))
	return got
}

func wantChanges(t *testing.T, e *env, want ...string) {
	t.Helper()
	if got := changes(t, e); !slices.Equal(got, want) {
		t.Errorf("changes:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// entries reads a stream: a line for each entry.
func entries(t *testing.T, b *bytes.Buffer) []string {
	t.Helper()
	list := []string{}
	r := tar.NewReader(b)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		must(t, err)
		text, err := io.ReadAll(r)
		must(t, err)
		s := h.Name
		if h.Linkname != "" {
			s += " -> " + h.Linkname
		}
		if len(text) > 0 {
			s += " " + string(text)
		}
		list = append(list, s)
	}
}

func wantEntries(t *testing.T, e *env, pack func(*View, *archive.Packer) error, want ...string) {
	t.Helper()
	v := e.view()
	defer v.Close()
	b := &bytes.Buffer{}
	p := archive.NewPacker(b)
	must(t, pack(v, p))
	must(t, p.Close())
	if got := entries(t, b); !slices.Equal(got, want) {
		t.Errorf("entries:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func packChanges(v *View, p *archive.Packer) error { return v.PackChanges(context.Background(), p) }
func packAll(v *View, p *archive.Packer) error     { return v.Pack(context.Background(), p, ".", ".") }

// testChanges does what can be done to files, and wants Docker's answers, while the
// root is mounted and afterwards.
func testChanges(t *testing.T, e *env) {
	l := e.layer()
	for _, f := range []string{"same", "touched/same", "changed/file", "mode", "gone", "dir/gone", "dir/sub/x", "again/old", "again/both",
		"file-to-dir", "dir-to-file/x", "moved/x", "reopened", "deep/a/b/c"} {
		write(t, l+"/"+f, "old")
	}
	must(t, os.Symlink("same", l+"/link"))
	write(t, e.layer()+"/low/x", "old")
	m := e.mount()
	wantChanges(t, e)

	write(t, m+"/changed/file", "new content")
	must(t, os.Chmod(m+"/mode", 0o600))
	must(t, os.Remove(m+"/gone"))
	must(t, os.Remove(m+"/dir/gone"))
	must(t, os.RemoveAll(m+"/dir/sub"))
	must(t, os.RemoveAll(m+"/again"))
	write(t, m+"/again/both", "newer")
	write(t, m+"/again/new", "new")
	must(t, os.Remove(m+"/file-to-dir"))
	write(t, m+"/file-to-dir/y", "new")
	must(t, os.RemoveAll(m+"/dir-to-file"))
	write(t, m+"/dir-to-file", "new")
	must(t, os.Remove(m+"/link"))
	must(t, os.Symlink("gone", m+"/link"))
	// What is opened for writing and is left as it is has not changed.
	f, err := os.OpenFile(m+"/reopened", os.O_RDWR, 0)
	must(t, err)
	must(t, f.Close())
	write(t, m+"/deep/a/b/c2", "new")
	must(t, os.Link(m+"/deep/a/b/c2", m+"/deep/hard"))
	write(t, m+"/new/a/b", "new")
	write(t, m+"/odd\nname\xff", "new")
	// Come and gone.
	write(t, m+"/brief", "new")
	must(t, os.Remove(m+"/brief"))
	want := []string{
		"C /again", "C /again/both", "A /again/new", "D /again/old",
		"C /changed", "C /changed/file",
		"C /deep", "C /deep/a", "C /deep/a/b", "A /deep/a/b/c2", "A /deep/hard",
		"C /dir", "D /dir/gone", "D /dir/sub",
		"C /dir-to-file",
		"C /file-to-dir", "A /file-to-dir/y",
		"D /gone", "C /link", "C /mode",
		"A /new", "A /new/a", "A /new/a/b", "A /odd\nname\xff",
	}
	wantChanges(t, e, want...)
	e.unmount()
	wantChanges(t, e, want...)
	wantEntries(t, e, packChanges,
		"again/", "again/both newer", "again/new new", "again/.wh.old",
		"changed/", "changed/file new content",
		"deep/", "deep/a/", "deep/a/b/", "deep/a/b/c2 new", "deep/hard -> deep/a/b/c2",
		"dir/", "dir/.wh.gone", "dir/.wh.sub",
		"dir-to-file new",
		"file-to-dir/", "file-to-dir/y new",
		".wh.gone", "link -> gone", "mode old",
		"new/", "new/a/", "new/a/b new", "odd\nname\xff new")
}

// testExport reads a whole root from outside, and finds what is in it.
func testExport(t *testing.T, e *env) {
	l := e.layer()
	write(t, l+"/d/low", "0")
	write(t, l+"/d/both", "0")
	write(t, l+"/gone", "0")
	must(t, os.Link(l+"/d/low", l+"/d/low2"))
	l = e.layer()
	write(t, l+"/d/both", "1")
	whiteout(t, l+"/gone")
	m := e.mount()
	write(t, m+"/d/new", "2")
	must(t, os.Remove(m+"/d/low2"))
	must(t, os.Symlink("/d/new", m+"/link"))
	want := []string{"./", "d/", "d/both 1", "d/low 0", "d/new 2", "link -> /d/new"}
	wantEntries(t, e, packAll, want...)
	e.unmount()
	wantEntries(t, e, packAll, want...)
}

// testOwners: the owners in a stream are those that the sandbox sees.
func testOwners(t *testing.T, e *env) {
	write(t, e.layer()+"/a", "0")
	m := e.mount()
	must(t, os.Chown(m+"/a", 1000, 65534))
	v := e.view()
	defer v.Close()
	b := &bytes.Buffer{}
	p := archive.NewPacker(b)
	must(t, v.Pack(t.Context(), p, "a", "a"))
	must(t, p.Close())
	h, err := tar.NewReader(b).Next()
	must(t, err)
	if h.Uid != 1000 || h.Gid != 65534 {
		t.Errorf("owner %d:%d", h.Uid, h.Gid)
	}
	wantChanges(t, e, "C /a")
}

// A directory that somebody swaps for a link while a view reads does not lead it out.
func TestViewFollowsNoLink(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	write(t, outside+"/secret", "secret")
	write(t, dir+"/d/secret", "mine")
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	v := DirView(fd)
	defer v.Close()
	top, err := v.now.root()
	must(t, err)
	d, err := v.now.lookup(top, "d")
	must(t, err)
	must(t, os.Rename(dir+"/d", dir+"/away"))
	must(t, os.Symlink(outside, dir+"/d"))
	if n, err := v.now.lookup(d, "secret"); err == nil {
		t.Errorf("found inode %d", n.st.Ino)
	}
	b := &bytes.Buffer{}
	p := archive.NewPacker(b)
	must(t, v.pack(t.Context(), p, d, "d"))
	must(t, p.Close())
	if got := entries(t, b); len(got) > 1 || strings.Contains(b.String(), "secret") {
		t.Errorf("packed %q", got)
	}
}
