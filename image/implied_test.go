package image

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// TestImplied: what a directory that a layer does not list is like, seen through
// the overlay.
func TestImplied(t *testing.T) {
	k := paxXattr + "user.k"
	base := []ent{dir("tmp", 0o1777), dir("home", 0o755), dir("home/app", 0o2750).own(1000, 1001).pax(k, "v"),
		dir("usr", 0o755), dir("usr/bin", 0o711).own(7, 7), file("usr/bin/sh", "sh"), symlink("bin", "usr/bin")}
	tests := []struct {
		name   string
		layers [][]ent
		want   map[string]string // "" for what must not be there
		// alone: the top layer does not depend on the others.
		alone bool
	}{
		{"no layer below", [][]ent{{file("tmp/x", "x")}}, map[string]string{"tmp": "dir 755 0:0 ", "tmp/x": "file 644 0:0 x"}, false},
		{"attributes", [][]ent{base, {file("tmp/x", "x"), file("home/app/.cache/x", "x")}}, map[string]string{
			"tmp": "dir 1777 0:0 ", "home/app": "dir 2750 1000:1001 v", "home/app/.cache": "dir 755 0:0 "}, false},
		{"listed", [][]ent{base, {dir("tmp", 0o700), file("tmp/x", "x")}}, map[string]string{"tmp": "dir 700 0:0 "}, true},
		{"listed late", [][]ent{base, {file("tmp/x", "x"), dir("tmp", 0o700)}}, map[string]string{"tmp": "dir 700 0:0 ", "tmp/x": "file 644 0:0 x"}, false},
		{"through two", [][]ent{base, {file("tmp/x", "x")}, {file("tmp/y", "y")}}, map[string]string{"tmp": "dir 1777 0:0 ", "tmp/x": "file 644 0:0 x"}, false},
		{"topmost counts", [][]ent{base, {dir("tmp", 0o750).own(5, 5)}, {file("other", "")}, {file("tmp/y", "y")}}, map[string]string{"tmp": "dir 750 5:5 "}, false},
		{"whiteout between", [][]ent{base, {file("home/.wh.app", "")}, {file("home/app/x", "x")}}, map[string]string{"home/app": "dir 755 0:0 "}, false},
		{"whiteout of the parent between", [][]ent{base, {file(".wh.home", "")}, {file("home/app/x", "x")}}, map[string]string{"home": "dir 755 0:0 ", "home/app": "dir 755 0:0 "}, false},
		{"opaque between", [][]ent{base, {file("home/.wh..wh..opq", "")}, {file("home/app/x", "x")}}, map[string]string{"home": "dir 755 0:0 ", "home/app": "dir 755 0:0 "}, false},
		{"opaque between keeps itself", [][]ent{base, {file("home/app/.wh..wh..opq", "")}, {file("home/app/x", "x")}}, map[string]string{"home/app": "dir 2750 1000:1001 v"}, false},
		{"replaced between", [][]ent{base, {file("tmp", "now a file")}, {dir("tmp", 0o700)}, {file("tmp/x", "x")}}, map[string]string{"tmp": "dir 700 0:0 "}, false},
		{"own whiteout", [][]ent{base, {file("home/.wh.app", ""), file("home/app/x", "x")}}, map[string]string{"home": "dir 755 0:0 ", "home/app": "dir 755 0:0 "}, false},
		{"own whiteout of a listed parent", [][]ent{base, {file(".wh.tmp", ""), file("tmp/a/x", "x")}}, map[string]string{"tmp": "dir 755 0:0 ", "tmp/a": "dir 755 0:0 "}, true},
		{"own whiteout comes late", [][]ent{base, {file("home/app/x", "x"), file("home/.wh.app", "")}}, map[string]string{"home/app": "dir 755 0:0 ", "home/app/x": "file 644 0:0 x"}, false},
		{"own opaque", [][]ent{base, {file("home/.wh..wh..opq", ""), file("home/app/x", "x")}}, map[string]string{"home": "dir 755 0:0 ", "home/app": "dir 755 0:0 "}, false},
		{"file below", [][]ent{{file("f", "f")}, {file("f/x", "x")}}, map[string]string{"f": "dir 755 0:0 ", "f/x": "file 644 0:0 x"}, false},

		{"link below", [][]ent{base, {file("bin/x", "x")}}, map[string]string{"bin": "link usr/bin", "usr/bin": "dir 711 7:7 ", "usr/bin/x": "file 644 0:0 x", "usr/bin/sh": "file 644 0:0 sh"}, false},
		{"link below, listed", [][]ent{base, {dir("bin", 0o755), file("bin/x", "x")}}, map[string]string{"bin": "dir 755 0:0 ", "bin/x": "file 644 0:0 x", "usr/bin/x": "", "bin/sh": ""}, true},
		{"link below, listed late", [][]ent{base, {file("bin/x", "x"), dir("bin", 0o755), file("bin/y", "y")}}, map[string]string{"bin": "dir 755 0:0 ", "bin/x": "", "usr/bin/x": "file 644 0:0 x", "bin/y": "file 644 0:0 y", "usr/bin/y": ""}, false},
		{"link below, whiteout", [][]ent{base, {file("bin/.wh.sh", "")}}, map[string]string{"bin": "link usr/bin", "usr/bin/sh": ""}, false},
		{"link below, opaque", [][]ent{base, {file("bin/.wh..wh..opq", ""), file("bin/x", "x")}}, map[string]string{"bin": "link usr/bin", "usr/bin": "dir 711 7:7 ", "usr/bin/sh": "", "usr/bin/x": "file 644 0:0 x"}, false},
		{"link below, hard link", [][]ent{base, {file("bin/x", "x"), hardlink("y", "bin/x"), hardlink("bin/z", "usr/bin/x")}}, map[string]string{"y": "file 644 0:0 x", "usr/bin/z": "file 644 0:0 x", "bin": "link usr/bin"}, false},
		{"link below, removed", [][]ent{base, {file(".wh.bin", ""), file("bin/x", "x")}}, map[string]string{"bin": "dir 755 0:0 ", "bin/x": "file 644 0:0 x", "bin/sh": "", "usr/bin/x": ""}, true},
		{"link below, removed late", [][]ent{base, {file("bin/x", "x"), file(".wh.bin", ""), file("bin/y", "y")}}, map[string]string{"usr/bin/x": "file 644 0:0 x", "bin/y": "file 644 0:0 y", "usr/bin/y": ""}, false},
		{"link below, removed between", [][]ent{base, {file(".wh.bin", "")}, {file("bin/x", "x")}}, map[string]string{"bin": "dir 755 0:0 ", "usr/bin/x": ""}, false},
		{"link below, absolute and up", [][]ent{{dir("d", 0o700), dir("e", 0o755), symlink("e/up", "../../../d"), symlink("abs", "/e/up")}, {file("abs/x", "x")}}, map[string]string{"abs": "link /e/up", "e/up": "link ../../../d", "d/x": "file 644 0:0 x", "d": "dir 700 0:0 "}, false},
		{"link below, dangling", [][]ent{{symlink("l", "not/there")}, {file("l/x", "x")}}, map[string]string{"l": "link not/there", "not/there/x": "file 644 0:0 x"}, false},
		{"link between hides a directory", [][]ent{{dir("d", 0o700), file("d/old", "o"), dir("e", 0o711)}, {file(".wh.d", ""), symlink("d", "e")}, {file("d/x", "x")}}, map[string]string{"d": "link e", "e": "dir 711 0:0 ", "e/x": "file 644 0:0 x"}, false},
		{"directory between hides a link", [][]ent{base, {dir("bin", 0o700)}, {file("bin/x", "x")}}, map[string]string{"bin": "dir 700 0:0 ", "bin/x": "file 644 0:0 x", "usr/bin/x": ""}, false},
		{"link below leads away", [][]ent{base, {symlink("home/l", "../tmp")}, {file("home/.wh..wh..opq", "")}, {symlink("home/app/l", "/tmp"), file("home/app/l/x", "x")}},
			map[string]string{"home/app": "dir 755 0:0 ", "tmp": "dir 1777 0:0 ", "tmp/x": "file 644 0:0 x"}, false},
		{"what a link led away from", [][]ent{{dir("d", 0o700), dir("d/e", 0o700), symlink("d/e/l", "/f"), dir("f", 0o711)}, {file("d/e/l/x", "x"), file("d/.wh..wh..opq", "")}},
			map[string]string{"d": "dir 700 0:0 ", "d/e": "", "f": "dir 711 0:0 ", "f/x": "file 644 0:0 x"}, false},
		{"own link to a directory below", [][]ent{base, {symlink("l", "home/app"), file("l/x", "x")}}, map[string]string{"home/app": "dir 2750 1000:1001 v", "home/app/x": "file 644 0:0 x"}, false},
		{"file, then directory", [][]ent{{dir("d", 0o700), file("d/old", "o")}, {file("d", "f"), dir("d", 0o711)}}, map[string]string{"d": "dir 711 0:0 ", "d/old": ""}, true},
		{"deep links", [][]ent{{symlink("l", strings.Repeat("d/", 30)+"e")}, {file("l/x", "x"), file("l/a/b/y", "y")}, {file("l/a/b/z", "z")}}, map[string]string{strings.Repeat("d/", 30) + "e/a/b/z": "file 644 0:0 z", strings.Repeat("d/", 30) + "e/a/b/y": "file 644 0:0 y"}, false},
	}
	var cases []stackCase
	for _, tt := range tests {
		var tars [][]byte
		for _, l := range tt.layers {
			tars = append(tars, tarOf(t, l...))
		}
		cases = append(cases, stackCase{Tars: tars}, stackCase{Tars: tars, Walk: true})
	}
	for i, r := range runStacks(t, cases...) {
		tt := tests[i/2]
		t.Run(fmt.Sprintf("%s/walk %v", tt.name, i%2 == 1), func(t *testing.T) {
			for path, want := range tt.want {
				if got := r.Overlay[path]; got != want {
					t.Errorf("%s is %q, want %q", path, got, want)
				}
			}
			if r.Err != "" {
				t.Fatal(r.Err)
			}
			if top := r.Results[len(r.Results)-1]; top.NeedsLowers == tt.alone {
				t.Errorf("needs lowers: %v", top.NeedsLowers)
			}
		})
	}
}

// TestImpliedRandomly puts random layers on top of each other and compares the
// overlay with what comes of extracting them into one directory.
func TestImpliedRandomly(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	var cases []stackCase
	var layers [][][]ent
	for n := range 160 {
		l := [][]ent{randomBase()}
		for range 1 + rnd.IntN(4) {
			l = append(l, randomLayer(rnd))
		}
		var tars [][]byte
		for _, e := range l {
			tars = append(tars, tarOf(t, e...))
		}
		layers = append(layers, l)
		cases = append(cases, stackCase{Tars: tars, Walk: n%2 == 1})
	}
	compared, dependent, links := 0, 0, 0
	for i, r := range runStacks(t, cases...) {
		switch {
		case r.PlainErr != "": // such as a file in the place of a parent
			continue
		case strings.Contains(r.Err, "a hard link to"): // whose target has been replaced
			continue
		case r.Err != "":
			t.Error(r.Err)
		}
		compared++
		for _, res := range r.Results {
			if res.NeedsLowers {
				dependent++
			}
		}
		for path, want := range r.Plain {
			if strings.HasPrefix(want, "link") {
				links++
			}
			if got := r.Overlay[path]; got != want {
				t.Errorf("%s is %q, want %q", path, got, want)
			}
		}
		for path, got := range r.Overlay {
			if _, ok := r.Plain[path]; !ok {
				t.Errorf("%s is %q and should not be there", path, got)
			}
		}
		if t.Failed() {
			for _, l := range layers[i] {
				t.Log("layer:")
				for _, e := range l {
					t.Logf("  %c %s %s %o %d", e.Typeflag, e.Name, e.Linkname, e.Mode, e.Uid)
				}
			}
			t.FailNow()
		}
	}
	if compared < 40 || dependent < 40 || links < 40 {
		t.Errorf("compared %d stacks with %d dependent layers and %d links: too few to mean anything", compared, dependent, links)
	}
}

func randomBase() []ent {
	var out []ent
	for i, d := range []string{"a", "b", "c", "a/a", "a/b", "b/a"} {
		out = append(out, dir(d, 0o700+int64(i)).own(i+1, i+2).pax(paxXattr+"user.k", d))
	}
	return append(out, symlink("l", "a"), symlink("m", "/b"), symlink("a/l", "../c"))
}

// randomLayer lists only some of the directories it needs. It has at most one
// whiteout, and first: a layer's own whiteouts spare its other entries, however
// they are ordered, which plain extraction does not know.
func randomLayer(rnd *rand.Rand) []ent {
	pick := func(s ...string) string { return s[rnd.IntN(len(s))] }
	name := func() string {
		var parts []string
		for range 1 + rnd.IntN(3) {
			parts = append(parts, pick("a", "b", "c", "l", "m"))
		}
		return strings.Join(parts, "/")
	}
	var marks, rest []ent
	if n := name(); rnd.IntN(2) > 0 {
		i := strings.LastIndexByte(n, '/') + 1
		marks = append(marks, file(n[:i]+whPrefix+n[i:], ""))
		if rnd.IntN(3) == 0 {
			marks[0].Name = n + "/" + whOpaque
		}
	}
	files := []string{}
	for range 1 + rnd.IntN(6) {
		n := name()
		switch rnd.IntN(7) {
		case 0, 1:
			rest = append(rest, dir(n, 0o700+rnd.Int64N(64)).own(rnd.IntN(9), rnd.IntN(9)).pax(paxXattr+"user.k", n))
		case 2:
			rest = append(rest, symlink(n, pick("/a", "/b", "/c")))
		case 3:
			if len(files) > 0 {
				rest = append(rest, hardlink(n+"/h", pick(files...)))
			}
		default:
			f := n + "/" + pick("f", "g", "a")
			files = append(files, f)
			rest = append(rest, file(f, fmt.Sprint(rnd.IntN(1000))))
		}
	}
	return append(marks, rest...)
}
