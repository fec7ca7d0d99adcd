package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/sandbox"
)

// FuzzFilter reads the filters of each list and puts them to something: what is
// accepted can be asked.
func FuzzFilter(f *testing.F) {
	for _, s := range []string{"name=web", "name=(", "status=running", "exited=0", "label=a=b", "label!=a", "until=10m", "ancestor=sha256:", "publish=80",
		"type=custom", "dangling=true", "event=exec_start", "before=", "=", "reference=*/x:[a-", "until=1.5e3", "network=bridge"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		list := []string{a, b}
		in := sandbox.Inspection{}
		in.ID, in.Name = "0123456789ab", "/web"
		if p, err := parseBoxFilters(list); err == nil {
			p.apply([]sandbox.Inspection{in, in}, true)
		}
		if p, err := parseEventFilters(list); err == nil {
			p.match(&sandbox.Event{})
		}
		if p, err := parseNetworkFilters(list); err == nil {
			p.match(&sandbox.Network{}, nil)
		}
		if p, err := parsePruneFilter(list, "until", "label"); err == nil {
			p.match(time.Now(), nil)
		}
		_, _ = parseImageFilters(list)
		for _, list := range [][]string{{a}, list} {
			if _, err := parseBoxFilters(list); err != nil && !strings.Contains(err.Error(), "--filter") {
				t.Errorf("%q: %v", list, err)
			}
		}
	})
}

// FuzzDetach types text with keys that detach: what is before them arrives, and all of
// it where they are not typed, however it comes.
func FuzzDetach(f *testing.F) {
	f.Add("ctrl-p,ctrl-q", []byte("a\x10b\x10\x10\x11c"), uint8(1))
	f.Add("a,a,b", []byte("aaaab"), uint8(3))
	f.Add("ctrl-@,ctrl-_", []byte{0, 31}, uint8(0))
	f.Add(",", []byte("x"), uint8(2))
	f.Fuzz(func(t *testing.T, keys string, typed []byte, size uint8) {
		k, err := parseDetachKeys(keys)
		if err != nil || len(k) == 0 {
			return
		}
		r, d := newDetachReader(iotest{bytes.NewReader(typed), 1 + int(size%16)}, k)
		got, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		want, _, left := bytes.Cut(typed, k)
		if d.is() != left || !bytes.Equal(got, want) {
			t.Fatalf("keys %q, typed %q: %q arrives, detached %v", k, typed, got, d.is())
		}
	})
}

// FuzzArguments reads what else has a grammar of its own on the command line.
func FuzzArguments(f *testing.F) {
	for _, s := range []string{"web:/etc/x", "./a:b", "C:\\x", "name=n,ip=10.0.0.1,mac=02:42:ac:11:00:02", "name=n,ip=dhcp,gw-priority=-1", "ns:/proc/1/ns/net",
		`name=n,"alias=a,b"`, "2026-01-02T15:04:05.999999999Z", "1600000000.5", "-1h", "all", "on-failure:5", "unless-stopped", "SIGTERM", "15", "{{json .}}", "table {{.ID}}\\t{{.Names}}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if box, path := splitCopy(s); box != "" && box+":"+path != s || box == "" && path != s || strings.Contains(box, "/") && s[0] == '/' {
			t.Errorf("%q is %q and %q", s, box, path)
		}
		if a, err := parsePlace(s); err == nil && a.Network == "" && s != "" {
			t.Errorf("%q has no network", s)
		}
		if n, err := parseTail(s); err == nil && n < -1 {
			t.Errorf("%q is %d lines", s, n)
		}
		_, _ = parseTime("--since", s, time.Now())
		_, _ = parseRestart(s)
		if sig, err := parseSignal(s); err == nil && (sig < 0 || sig > 64) {
			t.Errorf("%q is signal %d", s, sig)
		}
		_, _ = parseTemplate(s)
	})
}
