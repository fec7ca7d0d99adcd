package portfwd

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"

	"golang.org/x/sys/unix"
)

// plain leaves out that there is no choice of host ports.
func plain(t *testing.T, specs []Spec) (out []port.Spec) {
	t.Helper()
	for _, s := range specs {
		if s.ParentEnd != 0 {
			t.Errorf("%s is a choice", s)
		}
		out = append(out, s.Spec)
	}
	return out
}

// A range of host ports for one container port is a choice.
func TestParsePublishChoice(t *testing.T) {
	for in, want := range map[string]Spec{
		"8000-8010:80":               {port.Spec{Proto: "tcp", ParentPort: 8000, ChildPort: 80}, 8010},
		"127.0.0.1:8000-8001:53/udp": {port.Spec{Proto: "udp", ParentIP: "127.0.0.1", ParentPort: 8000, ChildPort: 53}, 8001},
	} {
		got, err := ParsePublish([]string{in})
		if err != nil || len(got) != 1 || got[0] != want {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
	}
	// Which of them is taken is not known yet.
	if _, err := ParsePublish([]string{"8000:80", "8000-8001:81", "8000-8001:82"}); err != nil {
		t.Error(err)
	}
}

func TestParsePublish(t *testing.T) {
	for in, want := range map[string][]port.Spec{
		"80":                       {{Proto: "tcp", ChildPort: 80}},
		"80/UDP":                   {{Proto: "udp", ChildPort: 80}},
		":80":                      {{Proto: "tcp", ChildPort: 80}},
		"0:80":                     {{Proto: "tcp", ChildPort: 80}},
		"8080:80":                  {{Proto: "tcp", ParentPort: 8080, ChildPort: 80}},
		"8080:80/tcp6":             {{Proto: "tcp6", ParentPort: 8080, ChildPort: 80}},
		"127.0.0.1:8080:80":        {{Proto: "tcp", ParentIP: "127.0.0.1", ParentPort: 8080, ChildPort: 80}},
		"127.0.0.1::80":            {{Proto: "tcp", ParentIP: "127.0.0.1", ChildPort: 80}},
		"0.0.0.0:8080:80":          {{Proto: "tcp", ParentIP: "0.0.0.0", ParentPort: 8080, ChildPort: 80}},
		"[::1]:8080:80/udp":        {{Proto: "udp", ParentIP: "::1", ParentPort: 8080, ChildPort: 80}},
		"[2001:DB8::0:1]:8080:80":  {{Proto: "tcp", ParentIP: "2001:db8::1", ParentPort: 8080, ChildPort: 80}},
		"[::ffff:127.0.0.1]:81:80": {{Proto: "tcp", ParentIP: "127.0.0.1", ParentPort: 81, ChildPort: 80}},
		"80-81":                    {{Proto: "tcp", ChildPort: 80}, {Proto: "tcp", ChildPort: 81}},
		"0:80-81":                  {{Proto: "tcp", ChildPort: 80}, {Proto: "tcp", ChildPort: 81}},
		"90-91:80-81/udp":          {{Proto: "udp", ParentPort: 90, ChildPort: 80}, {Proto: "udp", ParentPort: 91, ChildPort: 81}},
		"65535:65535":              {{Proto: "tcp", ParentPort: 65535, ChildPort: 65535}},
	} {
		got, err := ParsePublish([]string{in})
		if err != nil || !reflect.DeepEqual(plain(t, got), want) {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
	}
}

func TestParsePublishErrors(t *testing.T) {
	for in, why := range map[string]string{
		"":                      "no container port",
		"8080:":                 "no container port",
		"8080:80/sctp":          "SCTP",
		"80/":                   "unknown protocol",
		"80/tcp/udp":            "unknown protocol",
		"80/icmp":               "unknown protocol",
		"8080:0":                "container port 0",
		"8080:65536":            "container port",
		"65536:80":              "host port",
		"-1:80":                 "host port",
		"+80:80":                "not a number",
		"http:80":               "not a number",
		"8080:http":             "not a number",
		"81-80":                 "container port",
		"0-1:80-81":             "starts at 0",
		"8081-8080:80":          "host port",
		"8080:80-81":            "1 host ports for 2",
		"8080-8082:80-81":       "3 host ports for 2",
		"::1:8080:80":           "needs brackets",
		"[::1:8080:80":          "not closed",
		"[127.0.0.1]:8080:80":   "brackets are for IPv6",
		"[fe80::1%eth0]:81:80":  "zone",
		"224.0.0.1:81:80":       "multicast",
		"localhost:8080:80":     "not an IP address",
		"1.2.3:8080:80":         "not an IP address",
		"::80":                  "host address is empty",
		"[::1]":                 "no container port",
		"127.0.0.1:81:80/tcp6":  "does not fit",
		"[::1]:81:80/udp4":      "does not fit",
		"1-5000":                "limit is",
		"8080:80:90:100":        "not an IP address",
		"8080 : 80":             "not a number",
		"127.0.0.1:8080:80\x00": "not a number",
	} {
		_, err := ParsePublish([]string{in})
		var e *SpecError
		if !errors.As(err, &e) || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v, want one about %q", in, err, why)
		}
	}
}

func TestParsePublishClashes(t *testing.T) {
	for _, tc := range []struct {
		specs []string
		ok    bool
	}{
		{[]string{"80:80", "80:81"}, false},
		{[]string{"80:80", "80:80"}, false},
		{[]string{"80:80", "127.0.0.1:80:81"}, false},
		{[]string{"[::1]:80:80", "80:81"}, false},
		{[]string{"0.0.0.0:80:80", "127.0.0.1:80:81"}, false},
		{[]string{"80:80/tcp4", "80:80"}, false},
		{[]string{"80-90:80-90", "85:1"}, false},
		{[]string{"80:80/tcp4", "80:80/tcp6"}, true},
		{[]string{"80:80", "80:80/udp"}, true},
		{[]string{"127.0.0.1:80:80", "[::1]:80:80"}, true},
		{[]string{"127.0.0.1:80:80", "127.0.0.2:80:80"}, true},
		{[]string{"0.0.0.0:80:80", "[::]:80:80"}, true},
		{[]string{"80", "80"}, true}, // two random ports for one
	} {
		_, err := ParsePublish(tc.specs)
		if (err == nil) != tc.ok {
			t.Errorf("%q: %v", tc.specs, err)
		}
	}
	if _, err := ParsePublish([]string{"1-4096", "5000"}); err == nil {
		t.Error("more than MaxSpecs accepted")
	}
}

func TestParseExpose(t *testing.T) {
	got, err := ParseExpose([]string{"80", "53/udp", "80-81/tcp"})
	want := []port.Spec{{Proto: "tcp", ChildPort: 80}, {Proto: "udp", ChildPort: 53}, {Proto: "tcp", ChildPort: 81}}
	if err != nil || !reflect.DeepEqual(plain(t, got), want) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"80:80", "", "0", "x", "80/sctp"} {
		if _, err := ParseExpose([]string{bad}); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

// What is accepted is valid, and reads the same when written out again.
func FuzzParsePublish(f *testing.F) {
	for _, s := range []string{"80", "8080:80/udp", "[::1]:1-2:3-4/TCP", "127.0.0.1::80", "0:80-81", "8000-8010:80", "a:b:c/d", "[::ffff:1.2.3.4]:1:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParsePublish([]string{s})
		if err != nil {
			if got != nil {
				t.Error("specs with an error")
			}
			return
		}
		if len(got) == 0 || len(got) > MaxSpecs {
			t.Fatalf("%d specs", len(got))
		}
		for _, spec := range got {
			if _, _, err := validate(spec); err != nil {
				t.Errorf("%+v: %v", spec, err)
			}
			again, err := ParsePublish([]string{spec.String()})
			if err != nil || len(again) != 1 || again[0] != spec {
				t.Errorf("%+v -> %q -> %+v, %v", spec, spec.String(), again, err)
			}
		}
	})
}

func FuzzParseLocal(f *testing.F) {
	data := func(l localAddr) []byte { return l.control()[unix.CmsgLen(0):] }
	f.Add(data(localAddr{ip: hostLan4})[:unix.SizeofInet4Pktinfo])
	f.Add(data(localAddr{ip: hostLan6})[:unix.SizeofInet6Pktinfo])
	f.Fuzz(func(t *testing.T, b []byte) {
		l := parseLocal(b)
		if !l.ip.IsValid() {
			return
		}
		size := unix.SizeofInet4Pktinfo
		if l.ip.Is6() {
			size = unix.SizeofInet6Pktinfo
		}
		if back := parseLocal(data(l)[:size]); back != l {
			t.Errorf("%v -> %v", l, back)
		}
	})
}

func TestVisibleSource(t *testing.T) {
	m := &manager{cfg: Config{Guest: &guest{v4: guest4, v6: guest6}, Gateway4: gateway4, Gateway6: gateway6,
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24"), netip.MustParsePrefix("fd99::/64")}}}
	for in, want := range map[string]string{
		"203.0.113.50:7":       "203.0.113.50:7",
		"[2001:db8::1]:7":      "[2001:db8::1]:7",
		"127.0.0.1:7":          "10.99.0.1:7",
		"[::1]:7":              "[fd99::1]:7",
		"169.254.1.1:7":        "10.99.0.1:7",
		"[fe80::1%2]:7":        "[fd99::1]:7",
		"10.99.0.2:7":          "10.99.0.1:7",
		"10.99.0.77:7":         "10.99.0.1:7",
		"[fd99::77]:7":         "[fd99::1]:7",
		"[::ffff:127.0.0.1]:7": "[fd99::1]:7",
	} {
		a := netip.MustParseAddrPort(in)
		dst := guest4
		if a.Addr().Is6() {
			dst = guest6
		}
		if got := m.visibleSource(a, dst); got != netip.MustParseAddrPort(want) {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
