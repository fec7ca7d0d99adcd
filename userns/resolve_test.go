package userns

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rootless-containers/rootlesskit/v3/pkg/parent/idtools"
	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/internal/wire"
)

// fakeHost is an ordinary user "dev" 1000:1000 on a machine with every id.
func fakeHost() *host {
	return &host{
		uid: 1000, gid: 1000,
		bounding: func(uint) bool { return true },
		uids:     []span{{0, noID}}, gids: []span{{0, noID}},
		nsswitch: "/nonexistent",
		userName: func(int) string { return "dev" },
	}
}

const setIDs = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID

func TestResolve(t *testing.T) {
	pick := func(f func(h *host)) *host { h := fakeHost(); f(h); return h }
	root := func(offered ...span) *host {
		return pick(func(h *host) {
			h.uid, h.gid, h.effective = 0, 0, setIDs
			h.userName = func(int) string { return "root" }
			if offered != nil {
				h.uids, h.gids = offered, offered
			}
		})
	}
	for _, tc := range []struct {
		name   string
		mode   Mode
		file   string
		h      *host
		want   string // the uid map, extents joined with commas
		single bool
		reason string
		err    error
	}{
		{name: "plain", file: "plain", want: "0 1000 1, 1 100000 65536"},
		{name: "by uid", file: "byuid", want: "0 1000 1, 1 100000 65536"},
		{name: "by uid without a name", file: "byuid", h: pick(func(h *host) { h.userName = func(int) string { return "" } }), want: "0 1000 1, 1 100000 65536"},
		{name: "several", file: "several", want: "0 1000 1, 1 100000 1000, 1001 300000 64536, 65537 200000 65536"},
		{name: "overlapping", file: "overlapping", want: "0 1000 1, 1 100000 65536, 65537 165536 50000"},
		{name: "own id inside", file: "coversown", want: "0 1000 1, 1 900 100, 101 1001 65435"},
		{name: "id 0 of the host", file: "coverszero", want: "0 1000 1, 1 100000 10", reason: "covers id 0"},
		{name: "id 0 but keep-id", mode: ModeKeepID, file: "coverszero", want: "0 100000 10, 1000 1000 1", reason: "covers id 0"},
		{name: "malformed", file: "malformed", want: "0 1000 1", single: true, reason: "line 1 is malformed"},
		{name: "huge", file: "huge", want: "0 1000 1, 1 4294967290 5", reason: "range 9999999999:5 is not valid"},
		{name: "small", file: "small", want: "0 1000 1, 1 100000 999", reason: "only 1000 of 65536 ids"},
		{name: "nobody", file: "nobody", want: "0 1000 1", single: true, reason: "no subordinate uids in"},
		{name: "empty", file: "empty", want: "0 1000 1", single: true, reason: "and no subordinate gids in"},
		{name: "no file", file: "missing", want: "0 1000 1", single: true, reason: "no subordinate uids in"},
		{name: "single on request", mode: ModeSingle, file: "plain", want: "0 1000 1", single: true},

		{name: "keep-id", mode: ModeKeepID, file: "plain", want: "0 100000 1000, 1000 1000 1, 1001 101000 64536"},
		{name: "keep-id few", mode: ModeKeepID, file: "small", want: "0 100000 999, 1000 1000 1", reason: "only 1000"},
		{name: "keep-id several", mode: ModeKeepID, file: "several", want: "0 100000 1000, 1000 1000 1, 1001 300000 64536, 65537 200000 65536"},
		{name: "keep-id without ids", mode: ModeKeepID, file: "nobody", err: ErrNoSubIDs},
		{name: "no such mode", mode: "host", file: "plain", err: ErrMode},

		{name: "ids that do not exist here", file: "plain", h: pick(func(h *host) { h.uids = []span{{0, 65536}} }), want: "0 1000 1", single: true,
			reason: "65536 ids of range 100000:65536 do not exist"},
		{name: "some exist", file: "plain", h: pick(func(h *host) { h.uids = []span{{0, 100100}, {110000, 110010}} }), want: "0 1000 1, 1 100000 100, 101 110000 10",
			reason: "65426 ids of range"},
		{name: "no_new_privs", file: "plain", h: pick(func(h *host) { h.noNewPrivs = true }), want: "0 1000 1", single: true, reason: "no_new_privs"},
		{name: "no_new_privs keep-id", mode: ModeKeepID, file: "plain", h: pick(func(h *host) { h.noNewPrivs = true }), err: ErrNoHelper},
		{name: "bounding set", file: "plain", h: pick(func(h *host) { h.bounding = func(c uint) bool { return c != unix.CAP_SETGID } }), want: "0 1000 1", single: true, reason: "bounding set"},

		{name: "root", file: "empty", h: root(), want: "0 0 65536"},
		{name: "root keep-id", mode: ModeKeepID, file: "empty", h: root(), want: "0 0 65536"},
		{name: "root with a range", file: "rootrange", h: root(), want: "0 0 1, 1 200000 65536"},
		{name: "root in a container", file: "empty", h: root(span{0, 1000}, span{2000, 3000}), want: "0 0 1000, 2000 2000 1000", reason: "only 2000 of 65536"},
		{name: "root in a container, range outside", file: "rootrange", h: root(span{0, 65536}), want: "0 0 65536"},
		{name: "root of one id", file: "empty", h: root(span{0, 1}), want: "0 0 1", single: true, reason: "no further ids"},
		{name: "root without capabilities", file: "empty", h: pick(func(h *host) { h.uid, h.gid = 0, 0 }), want: "0 0 1", single: true, reason: "no subordinate"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := tc.h
			if h == nil {
				h = fakeHost()
			}
			f := filepath.Join("../testdata/subid", tc.file)
			if tc.file == "rootrange" {
				f = filepath.Join(t.TempDir(), tc.file)
				if err := os.WriteFile(f, []byte("root:200000:65536\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			m, err := resolve(MappingConfig{Mode: tc.mode, SubUIDFile: f, SubGIDFile: f}, h)
			if tc.err != nil {
				var e *Error
				if !errors.Is(err, tc.err) || !errors.As(err, &e) || e.Fix == "" {
					t.Fatalf("got %#v, want %v with a fix", err, tc.err)
				}
				var w *wire.Error
				if !errors.As(err, &w) || w.Fix != e.Fix || !errors.Is(fromWire(w), tc.err) {
					t.Errorf("does not survive the wire: %#v", w)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.ReplaceAll(strings.TrimSpace(mapText(m.UIDs)), "\n", ", "); got != tc.want {
				t.Errorf("map %q\nwant %q (%s)", got, tc.want, m.Reason)
			}
			if (m.Mode == ModeSingle) != tc.single {
				t.Errorf("mode %q", m.Mode)
			}
			if tc.reason == "" && m.Reason != "" || !strings.Contains(m.Reason, tc.reason) {
				t.Errorf("reason %q, want %q", m.Reason, tc.reason)
			}
			if tc.single && tc.mode != ModeSingle && m.Fix == "" {
				t.Error("no fix")
			}
			if m.Helper != (!tc.single && !h.direct()) {
				t.Errorf("helper: %v", m.Helper)
			}
			if err := m.Validate(); err != nil {
				t.Error(err)
			}
		})
	}
}

// More ranges than a map can have extents: the kernel would refuse them all.
func TestResolveMany(t *testing.T) {
	for _, mode := range []Mode{ModeAuto, ModeKeepID} {
		m, err := resolve(MappingConfig{Mode: mode, SubUIDFile: "../testdata/subid/many", SubGIDFile: "../testdata/subid/many"}, fakeHost())
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Validate(); err != nil || len(m.UIDs) < maxExtents-2 || !strings.Contains(m.Reason, "more than 338 ranges") {
			t.Errorf("%s: %d extents, %v, %s", mode, len(m.UIDs), err, m.Reason)
		}
	}
}

func TestResolveHelper(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "newuidmap")
	if err := os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, reason := range map[string]string{
		filepath.Join(dir, "none"): "is not installed",
		dir:                        "not an executable file",
		plain:                      "neither set-user-ID root nor",
		"/proc/self/exe":           "nosuid|neither", // whatever /proc is mounted with
	} {
		cfg := MappingConfig{SubUIDFile: "../testdata/subid/plain", SubGIDFile: "../testdata/subid/plain", NewUIDMap: path}
		m, err := resolve(cfg, fakeHost())
		if err != nil {
			t.Fatal(err)
		}
		if m.Mode != ModeSingle || m.Fix == "" || !slices.ContainsFunc(strings.Split(reason, "|"), func(s string) bool { return strings.Contains(m.Reason, s) }) {
			t.Errorf("%s: %+v", path, m)
		}
		cfg.Mode = ModeKeepID
		if _, err = resolve(cfg, fakeHost()); !errors.Is(err, ErrNoHelper) {
			t.Errorf("%s: %v", path, err)
		}
	}
	// The only obstacle to a privileged process would be the helper, which it does not need.
	h := fakeHost()
	h.effective = setIDs
	m, err := resolve(MappingConfig{SubUIDFile: "../testdata/subid/plain", SubGIDFile: "../testdata/subid/plain", NewUIDMap: plain}, h)
	if err != nil || m.Mode != ModeAuto || m.Helper {
		t.Errorf("with capabilities: %+v, %v", m, err)
	}
}

// Our reader agrees with rootlesskit's on this machine's own files.
func TestSystemFiles(t *testing.T) {
	const uid = 1001
	name := userName(uid)
	u, g, err := idtools.GetSubIDRanges(uid, name)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string][]idtools.SubIDRange{subUIDFile: u, subGIDFile: g} {
		got, _, err := readSubIDFile(path, uid, name)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v, want %v", path, got, err, want)
		}
	}
}

func TestSubIDService(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "passwd: files sss\n": "", "subid: files\n": "", "subid:\n": "", "# subid: sss\n": "",
		"subid: sss\n": "sss", "passwd: files\n subid:\tsss files # x\n": "sss", "subid: files sss\n": "",
	} {
		f := filepath.Join(t.TempDir(), "nsswitch.conf")
		if err := os.WriteFile(f, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := subIDService(f); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	if got := subIDService("/nonexistent"); got != "" {
		t.Errorf("no file: %q", got)
	}
}

// A directory service is asked through getsubids, by rootlesskit.
func TestDynamicSubIDs(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "nsswitch.conf")
	if err := os.WriteFile(conf, []byte("subid: sss\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tool := filepath.Join(dir, "getsubids")
	t.Setenv("GETSUBIDS", tool) // rootlesskit's own override
	h := fakeHost()
	h.nsswitch = conf
	if err := os.WriteFile(tool, []byte("#!/bin/sh\necho '0: dev 700000 65536'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	m, err := resolve(MappingConfig{Mode: ModeKeepID}, h)
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := m.HostUID(0); !ok || got != 700000 {
		t.Errorf("container 0 is %d, %v", got, ok)
	}
	if err := os.WriteFile(tool, []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err = resolve(MappingConfig{Mode: ModeKeepID}, h); !errors.Is(err, ErrNoSubIDs) || !strings.Contains(err.Error(), "sss") {
		t.Errorf("got %v", err)
	}
}

func TestMappingLookups(t *testing.T) {
	m := &Mapping{
		UIDs: []IDMap{{0, 1000, 1}, {1, 100000, 65536}},
		GIDs: []IDMap{{5, 50, 2}},
	}
	for _, tc := range []struct {
		f    func(uint32) (uint32, bool)
		id   uint32
		want uint32
		ok   bool
	}{
		{m.HostUID, 0, 1000, true}, {m.HostUID, 1, 100000, true}, {m.HostUID, 65536, 165535, true},
		{m.HostUID, 65537, 0, false}, {m.HostUID, 4294967295, 0, false},
		{m.HostGID, 4, 0, false}, {m.HostGID, 6, 51, true}, {m.HostGID, 7, 0, false},
	} {
		if got, ok := tc.f(tc.id); got != tc.want || ok != tc.ok {
			t.Errorf("%d: %d, %v", tc.id, got, ok)
		}
	}
}

func TestKey(t *testing.T) {
	a := &Mapping{UIDs: []IDMap{{0, 1000, 1}, {1, 100000, 10}}, GIDs: []IDMap{{0, 1000, 1}}}
	same := &Mapping{Mode: ModeKeepID, Reason: "x", UIDs: []IDMap{{5, 100004, 6}, {0, 1000, 1}, {1, 100000, 4}}, GIDs: a.GIDs}
	if a.Key() != same.Key() || len(a.Key()) != 12 {
		t.Errorf("equal maps have keys %s and %s", a.Key(), same.Key())
	}
	for _, other := range []*Mapping{
		{UIDs: a.GIDs, GIDs: a.UIDs},
		{UIDs: []IDMap{{0, 1000, 1}, {1, 100000, 11}}, GIDs: a.GIDs},
		{UIDs: a.UIDs},
	} {
		if a.Key() == other.Key() {
			t.Errorf("%+v has the same key", other)
		}
	}
}

func TestValidate(t *testing.T) {
	ok := []IDMap{{0, 1000, 1}}
	for name, l := range map[string][]IDMap{
		"empty": {}, "no size": {{0, 1, 0}}, "container wraps": {{4294967290, 1, 10}}, "host wraps": {{0, 4294967295, 1}},
		"container overlap": {{0, 0, 10}, {9, 100, 1}}, "host overlap": {{0, 5, 10}, {10, 14, 1}}, "many": make([]IDMap, 341),
	} {
		for _, m := range []*Mapping{{UIDs: l, GIDs: ok}, {UIDs: ok, GIDs: l}} {
			if err := m.Validate(); !errors.Is(err, ErrMap) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if err := (&Mapping{UIDs: ok, GIDs: ok}).Validate(); err != nil {
		t.Error(err)
	}
}

// FuzzParseSubID: whatever the file says, the maps made of it are ones that the
// kernel takes.
func FuzzParseSubID(f *testing.F) {
	files, err := filepath.Glob("../testdata/subid/*")
	if err != nil || len(files) == 0 {
		f.Fatal(err)
	}
	for _, p := range files {
		b, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint32(1000))
	}
	f.Fuzz(func(t *testing.T, b []byte, own uint32) {
		if own == noID {
			return
		}
		ranges, _ := parseSubIDs(b, 1000, "dev")
		spans, _, _ := usable(ranges, own, []span{{0, 70000}, {100000, noID}})
		for _, self := range []uint32{0, own} {
			l := layout(self, own, spans)
			if err := validate(l); err != nil {
				t.Fatalf("%v from %v", err, spans)
			}
			if host, ok := toHost(l, self); !ok || host != own {
				t.Fatalf("the user's own id is lost: %v", l)
			}
			if n := count(spans); total(l) != n+1 {
				t.Fatalf("%d ids mapped of %d", total(l), n+1)
			}
		}
	})
}

// FuzzMap reads an id map as the kernel shows it.
func FuzzMap(f *testing.F) {
	for _, s := range []string{
		"         0          0 4294967295\n", "0 1000 1\n1 100000 65536\n", "0 0\n", "-1 0 1", "4294967295 4294967295 4294967295\n", "0 0 1 x\n", "\n",
	} {
		f.Add([]byte(s))
	}
	name := filepath.Join(f.TempDir(), "uid_map")
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		spans, err := readOffered(name)
		if err != nil {
			return
		}
		for _, s := range spans {
			if s.from > s.to || s.to > noID {
				t.Fatalf("%v from %q", s, b)
			}
		}
	})
}
