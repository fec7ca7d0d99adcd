package fsoverlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"github.com/moby/sys/mountinfo"
	"github.com/rootless-sbx/sbx/internal/inroot"
	"github.com/rootless-sbx/sbx/internal/wire"
	"golang.org/x/sys/unix"
)

func TestAccess(t *testing.T) {
	const read, write = ll.AccessFSReadFile, ll.AccessFSWriteFile | ll.AccessFSTruncate
	const remove = ll.AccessFSRemoveFile | ll.AccessFSRemoveDir
	for _, c := range []struct {
		m           Mount
		gives       uint64
		bears       uint64
		attrs       Attr
		description string
	}{
		{Mount{}, anything, anything, 0, "anything"},
		{Mount{ReadOnly: true}, read | ll.AccessFSWriteFile, anything, ReadOnly, "read-only"},
		{Mount{ReadOnly: true, SubmountsWritable: true}, anything, anything, ReadOnly, "writable below"},
		{Mount{Allow: ^Rights(0)}, anything, anything, 0, "every word"},
		{Mount{Allow: MayRead | MayExec}, read | ll.AccessFSWriteFile, anything, ReadOnly, "flags do it"},
		{Mount{Allow: MayRead, ReadOnly: true}, read | ll.AccessFSWriteFile, anything, ReadOnly | NoExec, "and so"},
		{Mount{Allow: MayRead | MayWrite | MayCreate}, read | write | ll.AccessFSMakeReg, read | write | ll.AccessFSMakeReg, NoExec, "no moving without removing"},
		{Mount{Allow: MayRemove | MayRead | MayExec}, read | remove, read | remove, 0, "nor without making"},
		{Mount{Allow: MayRemove | MayMkdir}, ll.AccessFSMakeDir | remove | ll.AccessFSRefer, ll.AccessFSMakeDir | remove | ll.AccessFSRefer, NoExec, "moving"},
	} {
		gives, bears := c.m.access()
		if gives != c.gives || bears != c.bears || c.m.attrs() != c.attrs {
			t.Errorf("%s: %x, %x, %v; want %x, %x, %v", c.description, gives, bears, c.m.attrs(), c.gives, c.bears, c.attrs)
		}
	}
}

func TestRightsText(t *testing.T) {
	in := Mount{Target: "/x", Allow: MayRead | MaySpecial}
	b, err := json.Marshal(in)
	var out Mount
	if err = errors.Join(err, json.Unmarshal(b, &out)); err != nil || out.Allow != in.Allow || !strings.Contains(string(b), `"read+special"`) {
		t.Errorf("%s: %v, %v", b, out.Allow, err)
	}
	if err := json.Unmarshal([]byte(`{"allow":"fly"}`), &out); err == nil || !strings.Contains(err.Error(), `"fly"`) {
		t.Error(err)
	}
	if b, err = json.Marshal(Mount{}); err != nil || strings.Contains(string(b), "allow") {
		t.Errorf("%s, %v", b, err)
	}
}

// the rights of the test's mounts
const (
	looks  = uint64(ll.AccessFSReadFile)
	writes = looks | ll.AccessFSWriteFile
	makes  = writes | ll.AccessFSMakeReg
)

// TestGrant: everything beside the way to a place is allowed, and on the way what all
// places below bear.
func TestGrant(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"bin", "home/user/work/sub/deep", "home/user/.cache", "home/other", "srv"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "home/user/file"), nil, 0o600), os.Symlink("bin", filepath.Join(dir, "sbin"))); err != nil {
		t.Fatal(err)
	}
	at := func(p string, rights uint64) place { return place{path: p, gives: rights, bears: rights} }
	for _, c := range []struct {
		name   string
		places []place
		want   map[string]uint64
	}{
		{"one below the root", []place{at("/srv", writes)}, map[string]uint64{"/": writes, "/bin": makes, "/home": makes, "/srv": writes}},
		{"deeper", []place{at("/home/user/work", looks)}, map[string]uint64{
			"/": looks, "/bin": makes, "/srv": makes, "/home": looks, "/home/other": makes,
			"/home/user": looks, "/home/user/.cache": makes, "/home/user/file": writes, "/home/user/work": looks,
		}},
		{"two", []place{at("/srv", looks), at("/home/user", writes)}, map[string]uint64{
			"/": looks, "/bin": makes, "/srv": looks, "/home": writes, "/home/other": makes, "/home/user": writes,
		}},
		{"anything in one that has rules", []place{at("/home", looks), at("/home/user/work", makes)}, map[string]uint64{
			"/": looks, "/bin": makes, "/srv": makes, "/home": looks, "/home/user": looks, "/home/user/work": makes,
		}},
		{"stricter in one that has rules", []place{at("/home/user", writes), at("/home/user/work/sub", looks)}, map[string]uint64{
			"/": looks, "/bin": makes, "/srv": makes, "/home": looks, "/home/other": makes,
			"/home/user": looks, "/home/user/.cache": writes, "/home/user/file": writes, "/home/user/work": looks, "/home/user/work/sub": looks,
		}},
		{"a read-only one costs nothing", []place{{path: "/srv", gives: writes, bears: makes}}, map[string]uint64{"/": makes, "/srv": writes}},
		{"one that is not there", []place{at("/srv", looks), at("/gone/away", looks)}, map[string]uint64{"/": looks, "/bin": makes, "/home": makes, "/srv": looks}},
	} {
		root, err := inroot.OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		r := ruleset{handled: makes, places: c.places}
		added := 0
		r.add = func(int, uint64) error { added++; return nil }
		err = r.grant(root, "/", anything)
		unix.Close(root)
		got := map[string]uint64{}
		for _, rule := range r.rules {
			got[rule.path] = rule.access
		}
		if err != nil || !maps.Equal(got, c.want) || added != len(c.want) {
			t.Errorf("%s: %v, %d rules %v; want %v", c.name, err, added, got, c.want)
		}
	}
}

func TestGrantLimit(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "work"), 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := inroot.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	r := ruleset{handled: makes, places: []place{{path: "/work", gives: looks, bears: looks}}, rules: make([]rule, maxRules-1)}
	r.add = func(int, uint64) error { return nil }
	var w *wire.Error
	if err := r.grant(root, "/", anything); !errors.As(err, &w) || w.Code != CodeTooMany || w.Path != "/" || w.Fix == "" {
		t.Errorf("%v", err)
	}
}

// TestApart: a rule that gives more on files which are in a restricted mount too is an
// error, unless it is they that are seen there.
func TestApart(t *testing.T) {
	info := func(id int, root, at string, minor int) *mountinfo.Info {
		return &mountinfo.Info{ID: id, Root: root, Mountpoint: at, Major: 8, Minor: minor}
	}
	mounts := []*mountinfo.Info{
		info(1, "/", "/", 99),
		info(2, "/home/user/project", "/work", 1),
		info(3, "/home/user/project/out", "/work/out", 1),
		info(4, "/home/user/project/out", "/out", 1),
		info(5, "/home/user/project-2", "/second", 1),
		info(6, "/home/user", "/user", 1),
		info(7, "/home/user/project", "/disk", 2),
		info(8, "/home/user/project", "/again", 1),
		info(9, "/home/user/project/file", "/etc/file", 1),
	}
	work := place{path: "/work", target: "/link", gives: writes, bears: writes}
	for _, c := range []struct {
		rule  rule
		apart bool
	}{
		{rule{"/", 1, writes}, true},
		{rule{"/bin", 1, makes}, true},
		{rule{"/work", 2, makes}, true}, // its own, whatever it says
		{rule{"/work/out", 3, makes}, true},
		{rule{"/out", 4, makes}, false},
		{rule{"/out", 4, looks}, true},
		{rule{"/out/deeper", 4, makes}, false},
		{rule{"/second", 5, makes}, true},
		{rule{"/user", 6, makes}, true},
		{rule{"/user/project", 6, makes}, false},
		{rule{"/user/project/out", 6, makes}, false},
		{rule{"/user/other", 6, makes}, true},
		{rule{"/disk", 7, makes}, true},
		{rule{"/again", 8, makes}, false},
		{rule{"/etc/file", 9, makes}, false},
		{rule{"/etc/file", 9, writes}, true},
	} {
		r := ruleset{handled: makes, places: []place{work}, rules: []rule{c.rule}}
		err := r.apart(mounts)
		if c.apart && err != nil {
			t.Errorf("%+v: %v", c.rule, err)
		}
		var w *wire.Error
		if !c.apart && (!errors.As(err, &w) || w.Path != "/link" || !strings.Contains(fmt.Sprint(w), c.rule.path) || w.Fix == "") {
			t.Errorf("%+v: %v", c.rule, err)
		}
	}
}

// TestNoRules: without allow=, or where flags of the mounts say it all, the kernel is not
// asked, and nothing need be there.
func TestNoRules(t *testing.T) {
	f, err := Landlock([]Mount{
		{Type: TypeBind, Target: "/nowhere"}, {Type: TypeVolume, Target: "/nowhere/else", Allow: MayRead}, {Type: TypeTmpfs, Target: "/t", ReadOnly: true},
		{Type: TypeBind, Target: "/none", Allow: ^Rights(0) &^ MayExec},
	})
	if f != nil || err != nil {
		t.Errorf("%v, %v", f, err)
	}
	f, err = Landlock([]Mount{{Type: TypeBind, Target: "/nowhere", Allow: MayRead | MayWrite}})
	var w *wire.Error
	if f != nil || !errors.As(err, &w) || w.Code != CodeTarget {
		t.Errorf("%v, %v", f, err)
	}
}
