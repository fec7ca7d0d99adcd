// Package world tests sbx against the namespaces of scripts/world.sh: other
// machines with their own addresses, a DNS zone, a link with latency, destinations
// that are unreachable and one that swallows everything. make test-world runs it.
package world

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

func TestMain(m *testing.M) {
	if os.Getenv("SBX_WORLD") == "" && !probe.IsProbe() {
		fmt.Fprintln(os.Stderr, "e2e/world needs the namespaces of scripts/world.sh: make test-world, as root")
		os.Exit(1)
	}
	os.Exit(harness.Main(m))
}

const (
	near4, near6 = "198.51.100.10", "2001:db8:100::10"
	far4, far6   = "192.0.2.10", "2001:db8:2::10"
	// rough is behind a link that loses, doubles and reorders.
	rough4, rough6 = "192.0.3.10", "2001:db8:3::10"
	hole4, hole6   = "198.18.1.1", "2001:db8:dead::1"
	bad4, bad6     = "198.18.2.1", "2001:db8:bad::1"
)

func addr(ip, port string) string {
	if strings.Contains(ip, ":") {
		ip = "[" + ip + "]"
	}
	return ip + ":" + port
}

func TestTCP(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, link := range []string{"tap", "packet"} {
		for _, ip := range []string{near4, near6, far4, far6} {
			size := "200000000"
			if ip == far4 || ip == far6 {
				size = "20000000"
			}
			for _, way := range []string{"up", "down"} {
				e.Must("run", "--rm", "--link-driver", link, harness.BB, "/probe", way, "http://"+addr(ip, "80"), size, "5")
			}
			e.Must("run", "--rm", "--link-driver", link, harness.BB, "/probe", "many", addr(ip, "7"), "1000", "32")
		}
	}
}

func TestUDP(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, ip := range []string{near4, near6, far4, far6} {
		e.Must("run", "--rm", harness.BB, "/probe", "udp", addr(ip, "7"), "1", "2", "512", "1400", "1473", "9000", "60000")
	}
}

func TestPing(t *testing.T) {
	e := harness.New(t, harness.Debian)
	for _, ip := range []string{near4, near6, far4, far6, "near.world.test", "v6.world.test"} {
		e.Must("run", "--rm", harness.Debian, "ping", "-c", "2", "-i", "0.2", "-W", "5", ip)
	}
	out := e.Must("run", "--rm", harness.Debian, "ping", "-q", "-c", "3", "-i", "0.2", far4)
	_, rtt, _ := strings.Cut(out, "min/avg/max/mdev = ")
	if ms, err := strconv.ParseFloat(strings.SplitN(rtt, "/", 2)[0], 64); err != nil || ms < 49 {
		t.Errorf("the answer comes from far away, and is not made up nearby: %v ms, %v", ms, err)
	}
	for _, ip := range []string{hole4, hole6} {
		if r := e.Run("run", "--rm", harness.Debian, "ping", "-c", "1", "-W", "2", ip); r.Code == 0 {
			t.Errorf("an echo from the black hole: %v", r)
		}
	}
}

// TestRough transfers over a bad internet, in both directions at once, with every
// MTU, over both links.
func TestRough(t *testing.T) {
	e := harness.New(t, harness.BB)
	size := "1000000"
	if os.Getenv("SBX_TEST_LONG") != "" {
		size = "50000000"
	}
	script := `/probe up http://$0 $2 1 & up=$!; /probe down http://$0 $2 2 && wait $up && /probe udp $1 1 512 1400 && /probe many $1 50 10`
	for i, mtu := range []string{"576", "1280", "1500", "9000", "65520"} {
		for _, ip := range []string{rough4, rough6} {
			if mtu == "576" && ip == rough6 {
				continue
			}
			link := []string{"tap", "packet"}[i%2]
			e.Must("run", "--rm", "--link-driver", link, "--mtu", mtu, harness.BB, "sh", "-c", script, addr(ip, "80"), addr(ip, "7"), size)
		}
	}
}

// TestFailures: refused is refused and unreachable is unreachable, soon.
func TestFailures(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, c := range []struct {
		network, ip, port string
		want              []string
	}{
		{"tcp", near4, "81", []string{"ECONNREFUSED"}},
		{"tcp", near6, "81", []string{"ECONNREFUSED"}},
		{"tcp", far4, "81", []string{"ECONNREFUSED"}},
		{"udp", near4, "81", []string{"ECONNREFUSED"}},
		{"udp", far6, "81", []string{"ECONNREFUSED"}},
		{"tcp", bad4, "80", []string{"EHOSTUNREACH", "ENETUNREACH"}},
		{"tcp", bad6, "80", []string{"EHOSTUNREACH", "ENETUNREACH"}},
	} {
		out := e.Must("run", "--rm", harness.BB, "/probe", "dial", c.network, addr(c.ip, c.port))
		word, ms, _ := strings.Cut(strings.TrimSpace(out), " ")
		took, err := strconv.Atoi(ms)
		if err != nil || !strings.Contains(strings.Join(c.want, " "), word) || took > int(harness.Slow(4*time.Second).Milliseconds()) {
			t.Errorf("%s %s: %q, want one of %v within %v", c.network, addr(c.ip, c.port), out, c.want, harness.Slow(4*time.Second))
		}
	}
}

// TestBlackHole: two hundred connections into nowhere delay nobody else, neither in
// the same sandbox nor in another one.
func TestBlackHole(t *testing.T) {
	e := harness.New(t, harness.BB)
	p := e.Start("run", "--rm", harness.BB, "sh", "-c", fmt.Sprintf(
		"for i in $(seq 100); do /probe dial tcp %s >/dev/null & /probe dial tcp %s >/dev/null & done; sleep 1; echo in-hole; time /probe many %s 100 8 && echo same-ok; sleep 20",
		addr(hole4, "80"), addr(hole6, "80"), addr(near4, "7")))
	p.WaitOut("in-hole", 60*time.Second)
	start := time.Now()
	e.Must("run", "--rm", harness.BB, "/probe", "many", addr(near4, "7"), "100", "8")
	if d := time.Since(start); d > harness.Slow(10*time.Second) {
		t.Errorf("another sandbox waited %v", d)
	}
	p.WaitOut("same-ok", 15*time.Second)
	p.Stop()
}

func TestDNS(t *testing.T) {
	e := harness.New(t, harness.Debian)
	for _, c := range []struct{ query, want string }{
		{"near.world.test A", near4},
		{"near.world.test AAAA", near6},
		{"alias.world.test A", "near.world.test.\n" + near4},
		{"small.world.test TXT", `"hello"`},
		{"world.test MX", "10 near.world.test."},
		{"world.test NS", "near.world.test."},
		{"_http._tcp.world.test SRV", "1 2 80 near.world.test."},
		{"-x " + near4, "near.world.test."},
	} {
		for _, how := range []string{"+notcp", "+tcp"} {
			out := e.Must(append([]string{"run", "--rm", harness.Debian, "dig", "+short", "+tries=2", how}, strings.Fields(c.query)...)...)
			if strings.TrimSpace(out) != c.want {
				t.Errorf("%s %s: %q, want %q", how, c.query, out, c.want)
			}
		}
	}
	out := e.Must("run", "--rm", harness.Debian, "dig", "big.world.test", "TXT")
	if n := strings.Count(out, "xxxx"); !strings.Contains(out, "NOERROR") || n == 0 || len(out) < 1800 {
		t.Errorf("a long answer: %q", out)
	}
	for query, status := range map[string]string{"none.world.test": "NXDOMAIN", "v4.world.test AAAA": "NOERROR", "outside.example": "REFUSED"} {
		out := e.Must(append([]string{"run", "--rm", harness.Debian, "dig"}, strings.Fields(query)...)...)
		if !strings.Contains(out, "status: "+status) {
			t.Errorf("%s: want %s: %s", query, status, out)
		}
	}
	// Search domain and resolver of the host, through libc.
	if out := e.Must("run", "--rm", harness.Debian, "curl", "-fsS", "http://near/"); out != "probe /\n" {
		t.Errorf("search domain: %q", out)
	}
	if out := e.Must("run", "--rm", "--dns", "198.51.100.53", harness.Debian, "curl", "-fsS", "http://near.world.test/"); out != "probe /\n" {
		t.Errorf("--dns: %q", out)
	}
}

func TestIperf3(t *testing.T) {
	e := harness.New(t, harness.Debian)
	for _, ip := range []string{near4, near6, far4, far6} {
		for _, flags := range [][]string{nil, {"-R"}, {"-P", "4"}} {
			args := append([]string{"run", "--rm", harness.Debian, "iperf3", "-c", ip, "-t", "2"}, flags...)
			harness.Eventually(t, 30*time.Second, func() error {
				if r := e.Run(args...); r.Code != 0 {
					return fmt.Errorf("%v", r)
				}
				return nil
			})
		}
	}
}

// served waits until the program of a sandbox says that it serves.
func served(t *testing.T, e *harness.Env, name string) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, func() error {
		if r := e.Run("logs", name); !strings.Contains(r.Stdout, "ready") {
			return fmt.Errorf("%s does not serve: %v", name, r)
		}
		return nil
	})
}

// TestUplink: sandboxes as hosts of a segment, through a TAP that root has given to the
// user: with addresses from its DHCP server, and with their own.
func TestUplink(t *testing.T) {
	e := harness.New(t, harness.BB)
	const router, here = "192.168.66.1", "192.168.66."
	address := func(network string) string {
		out := e.Must("run", "--rm", "--network", network, harness.BB, "sh", "-c",
			"/probe get http://"+router+"/ >/dev/null && /probe get http://router.lab.example/ >/dev/null && while read a b; do case $a in "+here+"*) echo $a;; esac; done </etc/hosts")
		return strings.TrimSpace(out)
	}
	e.Must("network", "create", "-d", "uplink", "--parent", "sbxtap", "lan")
	if a := address("lan"); !strings.HasPrefix(a, here+"1") || len(a) != len(here)+3 { // .100 to .199
		t.Errorf("address %q, want one of the server's", a)
	}
	// One process at a time has the device.
	e.Must("network", "rm", "lan")

	e.Must("network", "create", "-d", "uplink", "--parent", "sbxtap", "--subnet", "192.168.66.0/24", "--gateway", router, "--ip-range", "192.168.66.32/28", "own")
	e.Must("run", "-d", "--name", "server", "--network", "own", "--ip", "192.168.66.40", harness.BB, "/probe", "serve", "80")
	served(t, e, "server")
	e.Must("run", "--rm", "--network", "own", "--dns", router, harness.BB, "/probe", "get", "http://192.168.66.40/")
	e.Must("run", "--rm", "--network", "own", "--dns", router, harness.BB, "/probe", "get", "http://router.lab.example/")
	// It has all ports of its own address: none are to be published.
	e.Fails(1, []string{"uplink"}, "port", "add", "server", "8080:80")
	e.Must("rm", "-f", "server")
	e.Must("network", "rm", "own")

	for parent, want := range map[string]string{"brseg": "bridge device, not a TAP", "nosuch": "Link not found"} {
		e.Must("network", "create", "-d", "uplink", "--parent", parent, "bad")
		e.Fails(125, []string{want}, "run", "--rm", "--network", "bad", harness.BB, "true")
		e.Must("network", "rm", "bad")
	}
}
