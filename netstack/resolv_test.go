package netstack

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseResolvConf(t *testing.T) {
	c := ParseResolvConf([]byte("# comment\n; another\nnameserver 127.0.0.53 # stub\n" +
		" nameserver 9.9.9.9\nnameserver\tfe80::1%eth0\r\nnameserver nonsense\nnameserver\n" +
		"domain first.example\nsearch corp.example. b.example # not this\noptions ndots:2 edns0\noptions ndots:3 timeout:99 attempts:0\n" +
		"sortlist 1.2.3.4\nnameserver ::1\nnameserver 1.2.3.4\nsearch\n"))
	if want := []netip.Addr{mustAddr("127.0.0.53"), mustAddr("fe80::1%eth0"), mustAddr("::1")}; !slices.Equal(c.Nameservers, want) {
		t.Errorf("servers %v, want %v", c.Nameservers, want)
	}
	if want := []string{"corp.example", "b.example"}; !slices.Equal(c.Search, want) {
		t.Errorf("search %q, want %q", c.Search, want)
	}
	if want := []string{"ndots:3", "edns0", "timeout:99", "attempts:0"}; !slices.Equal(c.Options, want) {
		t.Errorf("options %q, want %q", c.Options, want)
	}
	if c.timeout(time.Second) != 30*time.Second || c.attempts() != 1 {
		t.Errorf("timeout %v, attempts %d", c.timeout(time.Second), c.attempts())
	}
	if got := (ResolvConf{}); got.timeout(7*time.Second) != 7*time.Second || got.attempts() != 2 {
		t.Error("defaults")
	}
}

func TestSandboxResolvConf(t *testing.T) {
	host := ParseResolvConf([]byte("nameserver 1.1.1.1\nsearch corp.example\noptions ndots:2 timeout:9 rotate edns0\n"))
	g4, g6 := mustAddr("10.1.2.1"), mustAddr("fd00::1")
	for name, tt := range map[string]struct {
		in   SandboxResolvConf
		want string
	}{
		"plain":     {SandboxResolvConf{Gateway4: g4, Gateway6: g6, Host: host}, "nameserver 10.1.2.1\nsearch corp.example\noptions ndots:2 edns0\n"},
		"with v6":   {SandboxResolvConf{Gateway4: g4, Gateway6: g6, IPv6: true}, "nameserver 10.1.2.1\nnameserver fd00::1\n"},
		"only v6":   {SandboxResolvConf{Gateway6: g6}, "nameserver fd00::1\n"},
		"--dns":     {SandboxResolvConf{Gateway4: g4, DNS: []string{"9.9.9.9", "fe80::1%eth0"}, Host: host}, "nameserver 9.9.9.9\nnameserver fe80::1%eth0\nsearch corp.example\noptions ndots:2 edns0\n"},
		"no search": {SandboxResolvConf{Gateway4: g4, Search: []string{"."}, Host: host}, "nameserver 10.1.2.1\noptions ndots:2 edns0\n"},
		"own":       {SandboxResolvConf{Gateway4: g4, Search: []string{"a.b", "c."}, Options: []string{"ndots:5", "timeout:1", "ndots:6"}, Host: host}, "nameserver 10.1.2.1\nsearch a.b c\noptions ndots:6 timeout:1\n"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := tt.in.Build()
			if err != nil || string(c.Bytes()) != tt.want {
				t.Errorf("%v\n%s\nwant\n%s", err, c.Bytes(), tt.want)
			}
		})
	}
	for _, bad := range []SandboxResolvConf{
		{DNS: []string{"example.com"}}, {DNS: []string{"0.0.0.0"}}, {DNS: []string{"1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"}},
		{Search: []string{"a b"}}, {Search: []string{"a\nnameserver 6.6.6.6"}}, {Search: []string{""}}, {Search: []string{strings.Repeat("a", 64)}},
		{Search: slices.Repeat([]string{"a"}, maxSearchDomains+1)},
		{Options: []string{"ndots:1\nx"}}, {Options: []string{""}},
	} {
		var typed *ErrResolvConf
		if c, err := bad.Build(); !errors.As(err, &typed) {
			t.Errorf("%+v: %s, %v", bad, c.Bytes(), err)
		}
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 1.2.3.4\nsearch a b\noptions ndots:1\n"))
	f.Add([]byte("nameserver fe80::1%eth0\r\ndomain .\n#\n;\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := ParseResolvConf(b)
		again := ParseResolvConf(c.Bytes())
		if string(again.Bytes()) != string(c.Bytes()) {
			t.Fatalf("not stable:\n%q\n%q", c.Bytes(), again.Bytes())
		}
		out, err := SandboxResolvConf{Gateway4: netip.MustParseAddr("10.0.0.1"), Host: c}.Build()
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(out.Bytes()), "nameserver"); n != 1+strings.Count(strings.Join(append(out.Search, out.Options...), " "), "nameserver") {
			t.Fatalf("a name server slipped in:\n%s", out.Bytes())
		}
	})
}

func TestHostResolvFollows(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "resolv.conf")
	now := time.Unix(1000, 0)
	h := &hostResolv{path: path, log: slog.New(slog.DiscardHandler), now: func() time.Time { return now }}
	check := func(what string, wantChanged bool, want ...string) {
		t.Helper()
		now = now.Add(resolvCheck)
		c, changed, err := h.get()
		if len(want) == 0 {
			if err == nil || len(c.Nameservers) != 0 || changed != wantChanged {
				t.Fatalf("%s: %v, changed %v, %v", what, c, changed, err)
			}
			return
		}
		var got []string
		for _, a := range c.Nameservers {
			got = append(got, a.String())
		}
		if err != nil || changed != wantChanged || !slices.Equal(got, want) {
			t.Fatalf("%s: %v, changed %v, %v", what, got, changed, err)
		}
	}
	write := func(name, s string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check("missing", false)
	write("resolv.conf", "nameserver 1.1.1.1\n")
	check("there", true, "1.1.1.1")
	check("the same", false, "1.1.1.1")
	write("resolv.conf", "nameserver 2.2.2.2\n") // same size, perhaps the same tick
	check("rewritten", true, "2.2.2.2")
	write("a", "nameserver 3.3.3.3\n")
	write("b", "nameserver 4.4.4.4\n")
	link := func(to string) {
		t.Helper()
		os.Remove(filepath.Join(dir, "new"))
		if err := os.Symlink(to, filepath.Join(dir, "new")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "new"), path); err != nil {
			t.Fatal(err)
		}
	}
	link("a")
	check("a link", true, "3.3.3.3")
	link("b")
	check("the link replaced", true, "4.4.4.4")
	write("new", "nameserver 5.5.5.5\n")
	if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	check("its target replaced", true, "5.5.5.5")
	os.Remove(filepath.Join(dir, "b"))
	check("dangling", true)
	check("still dangling", false)
	write("b", "# nothing\n")
	check("empty means the local machine", true, "127.0.0.1")

	// Between two looks the answer is from memory.
	write("b", "nameserver 6.6.6.6\n")
	if c, _, _ := h.get(); c.Nameservers[0] != mustAddr("127.0.0.1") {
		t.Errorf("looked at the file too soon: %v", c)
	}
}
