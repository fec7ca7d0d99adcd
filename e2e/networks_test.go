package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/sandbox"
)

// makeNetwork makes a network that is removed at the end of the test. The shared data
// directory is other tests' too: the name is this test's own.
func makeNetwork(t *testing.T, e *harness.Env, name string, flags ...string) {
	t.Helper()
	e.AtEnd("network", "rm", "-f", name)
	e.Must(append(append([]string{"network", "create"}, flags...), name)...)
}

// endpoint is a sandbox's place in a network.
func endpoint(t *testing.T, e *harness.Env, box, network string) sandbox.InspectEndpoint {
	t.Helper()
	var list []sandbox.Inspection
	if err := json.Unmarshal([]byte(e.Must("inspect", box)), &list); err != nil || len(list) != 1 {
		t.Fatal(err)
	}
	p := list[0].NetworkSettings.Networks[network]
	if p == nil {
		t.Fatalf("%s is not on %s", box, network)
	}
	return *p
}

// TestWhoReachesWhom has sandboxes on networks, and each tries every other one by its
// name and by every address, IPv4 and IPv6. They do if they share a network.
func TestWhoReachesWhom(t *testing.T) {
	e := harness.New(t, harness.Debian)
	on := map[string][]string{
		"wrw-one": {"wrw-a"}, "wrw-two": {"wrw-a"}, "wrw-far": {"wrw-b"}, "wrw-both": {"wrw-a", "wrw-b"},
		"wrw-chain": {"wrw-b", "wrw-in"}, "wrw-end": {"wrw-in"}, "wrw-default": {"bridge"}, "wrw-other": {"bridge"},
	}
	makeNetwork(t, e, "wrw-a")
	makeNetwork(t, e, "wrw-b")
	makeNetwork(t, e, "wrw-in", "--internal")
	var wg sync.WaitGroup
	for name, networks := range on {
		e.AtEnd("rm", "-f", name)
		args := []string{"run", "-d", "--name", name}
		for _, n := range networks {
			args = append(args, "--network", n)
		}
		wg.Go(func() {
			if r := e.Run(append(args, harness.Debian, "sleep", "1000")...); r.Code != 0 {
				t.Errorf("%v", r)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	// What each tries, one after the other in a line: TARGET HOW FAMILY ADDRESS.
	var tries strings.Builder
	for name, networks := range on {
		for _, family := range []string{"4", "6"} {
			fmt.Fprintf(&tries, "%s name %s %s\n", name, family, name)
			for _, n := range networks {
				p := endpoint(t, e, name, n)
				fmt.Fprintf(&tries, "%s %s %s %s\n", name, n, family, map[string]string{"4": p.IPAddress, "6": p.GlobalIPv6Address}[family])
			}
		}
	}
	const script = `while read -r who how family addr; do
	(ping -n -q -$family -c 1 -W 1 $addr >/dev/null 2>&1; echo $who $how $family $?) &
done; wait`
	share := func(a, b string) bool {
		return slices.ContainsFunc(on[a], func(n string) bool { return slices.Contains(on[b], n) })
	}
	for from := range on {
		wg.Go(func() {
			// On a slow machine an answer may come too late for an attempt.
			reached := map[string]bool{}
			harness.Eventually(t, time.Minute, func() error {
				r := e.RunInput(strings.NewReader(tries.String()), "exec", "-i", from, "sh", "-c", script)
				if n, want := strings.Count(r.Stdout, "\n"), strings.Count(tries.String(), "\n"); n != want {
					return fmt.Errorf("%d answers, want %d: %v", n, want, r)
				}
				var wrong []error
				for line := range strings.Lines(r.Stdout) {
					f := strings.Fields(line)
					what := fmt.Sprintf("%s to %s by %s, IPv%s", from, f[0], f[1], f[2])
					reached[what] = reached[what] || f[3] == "0"
					// A name leads to the network that both are on; an address is on one.
					want := share(from, f[0])
					if f[1] != "name" && from != f[0] {
						want = slices.Contains(on[from], f[1])
					}
					if reached[what] && !want {
						t.Errorf("%s: reached", what)
					} else if want && !reached[what] {
						wrong = append(wrong, fmt.Errorf("%s: not reached", what))
					}
				}
				return errors.Join(wrong...)
			})
		})
	}
	wg.Wait()
}

// dig asks the name server of a sandbox.
func dig(t *testing.T, e *harness.Env, box string, args ...string) []string {
	t.Helper()
	return strings.Fields(e.Must(append([]string{"exec", box, "dig", "+short", "+timeout=3", "+search"}, args...)...))
}

// TestNetworkNames: what sandboxes are called on custom networks and on the default one.
func TestNetworkNames(t *testing.T) {
	e := harness.New(t, harness.Debian)
	makeNetwork(t, e, "nm-a")
	makeNetwork(t, e, "nm-b")
	run := func(name string, flags ...string) string {
		t.Helper()
		return detached(t, e, name, append(flags, harness.Debian, "sleep", "1000")...)
	}
	run("nm-one", "--network", "name=nm-a,alias=nm-web,alias=nm-solo", "--hostname", "nm-host")
	two := run("nm-two", "--network", "nm-a", "--network", "name=nm-b,alias=NM-Web", "--network-alias", "nm-web", "-p", "127.0.0.1::80")
	run("nm-three", "--network", "nm-b")
	run("nm-four", "--network-alias", "nm-default")
	run("nm-five", "--network", "nm-a")
	a1, a2, b2, b3 := endpoint(t, e, "nm-one", "nm-a"), endpoint(t, e, "nm-two", "nm-a"), endpoint(t, e, "nm-two", "nm-b"), endpoint(t, e, "nm-three", "nm-b")
	d4 := endpoint(t, e, "nm-four", "bridge")
	for _, tc := range []struct {
		from, name string
		want       []string
	}{
		{"nm-one", "nm-one", []string{a1.IPAddress}},
		{"nm-one", "nm-two", []string{a2.IPAddress}},
		{"nm-one", two[:12], []string{a2.IPAddress}},
		{"nm-one", "nm-two.nm-a", []string{a2.IPAddress}},
		{"nm-one", "NM-Two.nm-a.sbx.internal", []string{a2.IPAddress}},
		{"nm-two", "nm-host", []string{a1.IPAddress}},
		{"nm-one", "nm-web", []string{a1.IPAddress, a2.IPAddress}},
		{"nm-two", "nm-solo", []string{a1.IPAddress}},
		{"nm-three", "nm-web", []string{b2.IPAddress}},
		{"nm-three", "nm-two", []string{b2.IPAddress}},
		{"nm-two", "nm-three", []string{b3.IPAddress}}, // of its second network
		{"nm-two", "nm-two.nm-b", []string{b2.IPAddress}},
		{"nm-one", "nm-three", nil},
		{"nm-three", "nm-one", nil},
		{"nm-one", "nm-two.nm-b", nil},
		{"nm-four", "nm-default", []string{d4.IPAddress}},
		{"nm-four", "nm-four.bridge", []string{d4.IPAddress}},
		{"nm-four", "nm-one", nil},
	} {
		got := dig(t, e, tc.from, tc.name, "A")
		slices.Sort(got)
		slices.Sort(tc.want)
		// The host's servers may say what they like about a name that is none of ours.
		if !slices.Equal(got, tc.want) && (tc.want != nil || slices.Contains(got, a1.IPAddress) || slices.Contains(got, b2.IPAddress) || slices.Contains(got, b3.IPAddress)) {
			t.Errorf("%s asks for %s: %q, want %q", tc.from, tc.name, got, tc.want)
		}
	}
	if got := dig(t, e, "nm-one", "nm-two", "AAAA"); !slices.Equal(got, []string{a2.GlobalIPv6Address}) {
		t.Errorf("AAAA: %q", got)
	}
	for _, addr := range []string{a2.IPAddress, a2.GlobalIPv6Address} {
		if got := dig(t, e, "nm-one", "-x", addr); len(got) != 1 || !strings.HasPrefix(got[0], "nm-two.") {
			t.Errorf("PTR of %s: %q", addr, got)
		}
	}
	if got := dig(t, e, "nm-two", "-x", b3.IPAddress); len(got) != 1 || !strings.HasPrefix(got[0], "nm-three.") {
		t.Errorf("PTR of another network: %q", got)
	}
	if got := dig(t, e, "nm-one", "_80._tcp.nm-two", "SRV"); len(got) != 4 || got[2] != "80" {
		t.Errorf("SRV of a published port: %q", got)
	}
	// Killed, the networks' processes come back, and know of each other again.
	for _, pid := range e.Role("sbx-netd") {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	until(t, e, b3.IPAddress+"\n", "exec", "nm-two", "dig", "+short", "+timeout=1", "+search", "nm-three", "A")
	until(t, e, a1.IPAddress+"\n", "exec", "nm-two", "dig", "+short", "+timeout=1", "+search", "nm-one", "A")
	// What changes is so as soon as the command has ended.
	e.Must("rename", "nm-three", "nm-renamed")
	e.AtEnd("rm", "-f", "nm-renamed")
	if got := dig(t, e, "nm-two", "nm-renamed", "A"); !slices.Equal(got, []string{b3.IPAddress}) {
		t.Errorf("after a rename: %q", got)
	}
	e.Must("rm", "-f", "nm-one")
	// A network's process that has asked another one for names does not keep it.
	defer func() {
		e.Must("rm", "-f", "nm-two", "nm-renamed")
		e.Must("network", "rm", "nm-b")
	}()
	if got := dig(t, e, "nm-two", "nm-web", "A"); !slices.Equal(got, []string{a2.IPAddress}) {
		t.Errorf("after the end of one of two: %q", got)
	}
}

// TestLiveConnect connects and disconnects what runs, beside a connection that goes on.
func TestLiveConnect(t *testing.T) {
	e := harness.New(t, harness.BB)
	makeNetwork(t, e, "lc-a")
	makeNetwork(t, e, "lc-b", "--subnet", "10.203.77.0/24", "-o", "mtu=1400")
	detached(t, e, "lc-peer", "--network", "lc-a", harness.BB, "/probe", "echo", "7")
	detached(t, e, "lc-far", "--network", "lc-b", harness.BB, "/probe", "serve", "80")
	detached(t, e, "lc-box", "--network", "lc-a", harness.BB, "sleep", "1000")
	box := func(cmd string) string { t.Helper(); return e.Must("exec", "lc-box", "sh", "-c", cmd) }
	until(t, e, "ready", "logs", "lc-peer")
	until(t, e, "ready", "logs", "lc-far")
	// Numbers go there and back for as long as the test lasts.
	p := e.Start("exec", "lc-box", "sh", "-c", "i=0; while i=$((i+1)); do echo n$i. || exit; sleep 0.02; done | nc lc-peer 7")
	goesOn := func(when string) {
		t.Helper()
		all := p.WaitOut("n1.", 20*time.Second)
		whole := regexp.MustCompile(`n(\d+)\.\n`).FindAllStringSubmatch(all, -1) // but for a line that comes just now
		if whole == nil {
			t.Fatalf("%s: %q", when, all)
		}
		n := 0
		fmt.Sscan(whole[len(whole)-1][1], &n)
		p.WaitOut(fmt.Sprintf("n%d.", n+3), 20*time.Second)
	}
	goesOn("before")
	e.Must("network", "connect", "--ip", "10.203.77.50", "--alias", "lc-alias", "lc-b", "lc-box")
	if got := box("cat /sys/class/net/eth1/mtu; ip -4 -o addr show eth1; cat /etc/hosts; /probe get http://lc-far/"); !strings.HasPrefix(got, "1400\n") ||
		!strings.Contains(got, "10.203.77.50/24") || !strings.Contains(got, "10.203.77.50\t") || !strings.HasSuffix(got, "probe /\n") {
		t.Errorf("after connect: %q", got)
	}
	if got := endpoint(t, e, "lc-box", "lc-b"); got.IPAddress != "10.203.77.50" || !slices.Contains(got.DNSNames, "lc-alias") || got.Device != "eth1" {
		t.Errorf("inspect: %+v", got)
	}
	e.Must("exec", "lc-far", "ping", "-c", "1", "-W", "5", "lc-alias")
	goesOn("after connect")
	e.Fails(1, []string{"on network lc-b already"}, "network", "connect", "lc-b", "lc-box")
	e.Fails(1, []string{"lc-b is in use", "lc-box", "lc-far"}, "network", "rm", "lc-b")
	e.Must("network", "disconnect", "lc-b", "lc-box")
	if got := box("ls /sys/class/net; cat /etc/hosts"); strings.Contains(got, "eth1") || strings.Contains(got, "10.203.77") {
		t.Errorf("after disconnect: %q", got)
	}
	if r := e.Run("exec", "lc-far", "ping", "-c", "1", "-W", "1", "lc-alias"); r.Code == 0 {
		t.Errorf("the name is still there: %v", r)
	}
	e.Fails(1, []string{"not on network lc-b"}, "network", "disconnect", "lc-b", "lc-box")
	goesOn("after disconnect")
	p.Stop()

	// It stays so, with the same address, when it is started again.
	e.Must("network", "connect", "lc-b", "lc-box")
	before := endpoint(t, e, "lc-box", "lc-b").IPAddress
	e.Must("restart", "-t", "0", "lc-box")
	if got := endpoint(t, e, "lc-box", "lc-b").IPAddress; got != before || before == "" {
		t.Errorf("%q, before the restart %q", got, before)
	}
	// The way out, the name server and what is published move with the networks.
	e.Must("network", "disconnect", "lc-a", "lc-box")
	if got := box("ip route; cat /etc/resolv.conf; /probe get http://lc-far/"); !strings.Contains(got, "default via 10.203.77.1 ") || !strings.Contains(got, "nameserver 10.203.77.1\n") {
		t.Errorf("on the other network alone: %q", got)
	}
	e.Must("network", "disconnect", "lc-b", "lc-box")
	if got := box("ls /sys/class/net; ip route"); got != "lo\n" {
		t.Errorf("on none: %q", got)
	}
	// While it does not run.
	e.Must("stop", "-t", "0", "lc-box")
	e.Must("network", "connect", "--ip", "10.203.77.60", "lc-b", "lc-box")
	e.Must("start", "lc-box")
	if got := box("ip -4 -o addr show eth0"); !strings.Contains(got, "10.203.77.60/24") {
		t.Errorf("connected while it did not run: %q", got)
	}
	e.Must("stop", "-t", "0", "lc-box")
	e.Must("network", "disconnect", "lc-b", "lc-box")
	e.Must("network", "connect", "bridge", "lc-box")
	e.Must("start", "lc-box")
	if got := e.Must("inspect", "-f", "{{range $k, $v := .NetworkSettings.Networks}}{{$k}} {{end}}", "lc-box"); got != "bridge \n" {
		t.Errorf("networks: %q", got)
	}
	detached(t, e, "lc-host", "--network", "host", harness.BB, "sleep", "1000")
	e.Fails(1, []string{"--network host"}, "network", "connect", "lc-b", "lc-host")
	e.Fails(1, []string{"cannot be connected to host"}, "network", "connect", "host", "lc-box")
}

// TestPortsMove: what is published goes with the way out.
func TestPortsMove(t *testing.T) {
	e := harness.New(t, harness.BB)
	makeNetwork(t, e, "pm-a")
	makeNetwork(t, e, "pm-b")
	port := e.FreePort()
	detached(t, e, "pm-box", "--network", "pm-a", "--network", "pm-b", "-p", fmt.Sprintf("127.0.0.1:%d:80", port), harness.BB, "/probe", "serve", "80")
	answers := func() {
		t.Helper()
		harness.Eventually(t, 10*time.Second, func() error {
			_, err := harness.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
			return err
		})
	}
	answers()
	e.Must("network", "disconnect", "pm-a", "pm-box")
	answers()
	e.Must("network", "connect", "--gw-priority", "5", "pm-a", "pm-box")
	answers()
	if got := e.Must("port", "pm-box"); got != fmt.Sprintf("80/tcp -> 127.0.0.1:%d\n", port) {
		t.Errorf("port: %q", got)
	}
	if got := e.Must("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "pm-box"); strings.TrimSpace(got) != endpoint(t, e, "pm-box", "pm-a").IPAddress {
		t.Errorf("the way out is %q", got)
	}
}

// TestLeases: wishes, what stands against them, and that addresses stay.
func TestLeases(t *testing.T) {
	e := harness.New(t, harness.BB)
	makeNetwork(t, e, "ls-a", "--subnet", "10.204.5.0/29", "--subnet", "fd4e:77::/64", "--aux-address", "router=10.204.5.6")
	run := func(name string, flags ...string) {
		t.Helper()
		detached(t, e, name, append(flags, harness.BB, "sleep", "1000")...)
	}
	bad := func(code int, words []string, flags ...string) {
		t.Helper()
		e.Fails(code, words, append(append([]string{"run", "--rm"}, flags...), harness.BB, "true")...)
	}
	run("ls-one", "--network", "ls-a", "--ip", "10.204.5.4", "--ip6", "fd4e:77::44", "--mac-address", "02:00:00:00:00:99")
	if p := endpoint(t, e, "ls-one", "ls-a"); p.IPAddress != "10.204.5.4" || p.GlobalIPv6Address != "fd4e:77::44" || p.MacAddress != "02:00:00:00:00:99" || p.IPAMConfig == nil || p.IPAMConfig.IPv4Address != "10.204.5.4" {
		t.Errorf("%+v", p)
	}
	if got := e.Must("exec", "ls-one", "sh", "-c", "cat /sys/class/net/eth0/address; ip -o addr show eth0"); !strings.HasPrefix(got, "02:00:00:00:00:99\n") || !strings.Contains(got, "10.204.5.4/29") || !strings.Contains(got, "fd4e:77::44/64") {
		t.Errorf("inside: %q", got)
	}
	bad(125, []string{"10.204.5.4", "in use by sandbox ls-one"}, "--network", "ls-a", "--ip", "10.204.5.4")
	bad(125, []string{"fd4e:77::44", "in use by sandbox ls-one"}, "--network", "name=ls-a,ip6=fd4e:77::44")
	bad(125, []string{"02:00:00:00:00:99", "in use by sandbox ls-one"}, "--network", "ls-a", "--mac-address", "02:00:00:00:00:99")
	bad(125, []string{"10.99.0.4 is not in 10.204.5.0/29"}, "--network", "ls-a", "--ip", "10.99.0.4")
	bad(125, []string{"gateway"}, "--network", "ls-a", "--ip", "10.204.5.1")
	bad(125, []string{"broadcast"}, "--network", "ls-a", "--ip", "10.204.5.7")
	bad(125, []string{"--ip", "garbage"}, "--network", "ls-a", "--ip", "garbage")
	bad(125, []string{"--ip", "IPv4"}, "--network", "ls-a", "--ip", "fd4e:77::5")
	bad(125, []string{"mac"}, "--network", "ls-a", "--mac-address", "01:00:00:00:00:01")
	bad(125, []string{"no such network: ls-none"}, "--network", "ls-none")
	bad(125, []string{"bridge is there twice"}, "--network", "bridge", "--network", "default")
	bad(125, []string{"none"}, "--network", "none", "--network", "ls-a")
	bad(125, []string{"bogus"}, "--network", "name=ls-a,bogus=1")

	run("ls-two", "--network", "ls-a")
	run("ls-three", "--network", "ls-a")
	two := endpoint(t, e, "ls-two", "ls-a").IPAddress
	e.Must("stop", "-t", "0", "ls-two")
	run("ls-four", "--network", "ls-a")
	// 8 addresses: the network's, the gateway's, the router's, the broadcast, and four.
	bad(125, []string{"no free address in 10.204.5.0/29"}, "--network", "ls-a")
	bad(125, []string{two, "in use by sandbox ls-two"}, "--network", "ls-a", "--ip", two)
	for _, pid := range e.Role("sbx-netd") {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	e.Must("start", "ls-two")
	if got := endpoint(t, e, "ls-two", "ls-a").IPAddress; got != two {
		t.Errorf("%s, before the stop %s", got, two)
	}
	e.Must("rm", "-f", "ls-three")
	e.Must("run", "--rm", "--network", "ls-a", harness.BB, "true")
}

// TestNetworkRemovedNext: the network of a sandbox that was removed can be removed in the
// next moment, also when its process has not come to notice the end.
func TestNetworkRemovedNext(t *testing.T) {
	e := harness.New(t, harness.BB)
	for range 5 {
		makeNetwork(t, e, "rn-a")
		detached(t, e, "rn-box", "--network", "rn-a", harness.BB, "sleep", "1000")
		netd := e.Role("sbx-netd")[0]
		if err := syscall.Kill(netd, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		e.Must("rm", "-f", "rn-box")
		p := e.Start("network", "rm", "rn-a")
		time.Sleep(100 * time.Millisecond) // until it asks; any moment will do
		if err := syscall.Kill(netd, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if r := p.Wait(20 * time.Second); r.Code != 0 {
			t.Errorf("%v", r)
		}
	}
}

// TestNetworkVerbs goes through the commands about networks.
func TestNetworkVerbs(t *testing.T) {
	e := harness.NewPrivate(t)
	id := strings.TrimSpace(e.Must("network", "create", "--label", "a=b", "--attachable", "-d", "bridge", "nv-a"))
	e.Must("network", "create", "--subnet", "10.205.0.0/16", "--ip-range", "10.205.7.0/24", "--gateway", "10.205.0.9", "--ipv6=false", "--internal", "-o", "icc=false", "nv-b")
	lines := strings.Split(e.Must("network", "ls"), "\n")
	if !regexp.MustCompile(`^NETWORK ID +NAME +DRIVER +SCOPE$`).MatchString(lines[0]) || len(lines) != 7 {
		t.Errorf("ls: %q", lines)
	}
	for args, want := range map[string]string{
		"-q --no-trunc -f name=nv-a":                                     id,
		"--format {{.Name}} -f type=custom":                              "nv-a nv-b",
		"--format {{.Name}} -f type=builtin":                             "bridge host none",
		"--format {{.Name}} -f driver=null":                              "none",
		"--format {{.Name}} -f label=a":                                  "nv-a",
		"--format {{.Name}} -f label=a=c":                                "",
		"--format {{.Name}} -f dangling=true":                            "nv-a nv-b",
		"--format {{.Name}} -f id=" + id[:6]:                             "nv-a",
		"--format {{.Name}}:{{.Driver}}:{{.Scope}}:{{.IPv6}} -f name=nv": "nv-a:bridge:local:true nv-b:bridge:local:false",
		"--format {{.Internal}}:{{.Labels}} -f name=nv-b":                "true:",
		"--format {{.ID}} -f name=nv-a":                                  id[:12],
		"-f scope=local -q -f name=host --format {{.Name}}":              "host",
	} {
		r := e.Run(append([]string{"network", "ls"}, strings.Fields(args)...)...)
		if got := strings.Join(strings.Fields(r.Stdout), " "); got != want {
			t.Errorf("ls %s: %v, want %q", args, r, want)
		}
	}
	var list []sandbox.NetworkInspection
	if err := json.Unmarshal([]byte(e.Must("network", "inspect", "nv-b", id[:8])), &list); err != nil || len(list) != 2 {
		t.Fatal(err)
	}
	if b := list[0]; b.Name != "nv-b" || !b.Internal || b.EnableIPv6 || b.Scope != "local" || b.Driver != "bridge" || len(b.IPAM.Config) != 1 ||
		!reflect.DeepEqual(b.IPAM.Config[0], sandbox.InspectSubnet{Subnet: "10.205.0.0/16", IPRange: "10.205.7.0/24", Gateway: "10.205.0.9"}) || b.Options["icc"] != "false" {
		t.Errorf("%+v", b)
	}
	if a := list[1]; a.ID != id || !a.Attachable || a.Labels["a"] != "b" || len(a.IPAM.Config) != 2 || a.Status != nil || a.Containers == nil {
		t.Errorf("%+v", a)
	}
	if got := e.Must("network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", "nv-b"); got != "10.205.0.0/16\n" {
		t.Errorf("inspect -f: %q", got)
	}
	if got := e.Must("inspect", "-f", "{{.Name}} {{.Driver}}", "--type", "network", "nv-b"); got != "nv-b bridge\n" {
		t.Errorf("inspect of any kind: %q", got)
	}
	def := e.Must("network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", "bridge")
	for _, tc := range []struct {
		code  int
		words []string
		args  []string
	}{
		{1, []string{"nv-a exists already"}, []string{"create", "nv-a"}},
		{1, []string{"overlaps 10.205.0.0/16 of network nv-b"}, []string{"create", "--subnet", "10.205.9.0/24", "nv-c"}},
		{1, []string{"of network bridge"}, []string{"create", "--subnet", strings.TrimSpace(def), "nv-c"}},
		{1, []string{"is in no subnet"}, []string{"create", "--gateway", "10.1.2.3", "nv-c"}},
		{1, []string{"always there"}, []string{"create", "host"}},
		{1, []string{"needs root"}, []string{"create", "-d", "macvlan", "nv-c"}},
		{1, []string{"no option"}, []string{"create", "-o", "x=y", "nv-c"}},
		{125, []string{"--subnet", "10.1.2.3"}, []string{"create", "--subnet", "10.1.2.3", "nv-c"}},
		{125, []string{"--aux-address"}, []string{"create", "--aux-address", "10.1.2.3", "nv-c"}},
		{125, []string{"ipam-driver"}, []string{"create", "--ipam-driver", "none", "nv-c"}},
		{1, []string{"has no addresses"}, []string{"create", "--ipv4=false", "--ipv6=false", "nv-c"}},
		{125, []string{"config-only"}, []string{"create", "--config-only", "nv-c"}},
		{125, []string{"create"}, []string{"create"}},
		{125, []string{"no filter"}, []string{"ls", "-f", "color=red"}},
		{1, []string{"no such network: nv-c"}, []string{"inspect", "nv-c"}},
		{1, []string{"no such network: nv-c"}, []string{"rm", "nv-c"}},
		{1, []string{"always there"}, []string{"rm", "bridge"}},
		{1, []string{"always there"}, []string{"rm", "none"}},
		{1, []string{"no such sandbox"}, []string{"connect", "nv-a", "nobody"}},
	} {
		e.Fails(tc.code, tc.words, append([]string{"network"}, tc.args...)...)
	}
	e.Must("network", "rm", "-f", "nv-c")
	if got := e.Must("network", "rm", id[:10]); got != id[:10]+"\n" {
		t.Errorf("rm: %q", got)
	}
	if got := e.Must("network", "prune", "-f"); got != "Deleted Networks:\nnv-b\n" {
		t.Errorf("prune: %q", got)
	}
	// Of many who make the same network one does.
	var wg sync.WaitGroup
	codes := make([]int, 8)
	for i := range codes {
		wg.Go(func() { codes[i] = e.Run("network", "create", "nv-race").Code })
	}
	wg.Wait()
	slices.Sort(codes)
	if !slices.Equal(codes, []int{0, 1, 1, 1, 1, 1, 1, 1}) {
		t.Errorf("%v", codes)
	}
	e.Must("network", "rm", "nv-race")
}
