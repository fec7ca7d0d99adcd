package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// TestNetworkRecords: what dig sees of sandboxes that come, go, connect and publish, in
// the moment after the command, or after a kill; names that are shared, and those that
// a search list completes.
func TestNetworkRecords(t *testing.T) {
	e := harness.New(t, harness.Debian)
	makeNetwork(t, e, "nr-net")
	makeNetwork(t, e, "nr-other")
	run := func(name string, flags ...string) {
		t.Helper()
		detached(t, e, name, append(flags, harness.Debian, "sleep", "1000")...)
	}
	run("nr-client", "--network", "nr-net", "--dns-search", "nr-net.sbx.internal", "--dns-option", "ndots:2", "--dns-option", "timeout:3")
	is := func(question string, want ...string) {
		t.Helper()
		got := strings.Fields(e.Must(append([]string{"exec", "nr-client", "dig", "+short", "+timeout=3"}, strings.Fields(question)...)...))
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", question, got, want)
		}
	}
	const in = ".nr-net.sbx.internal"

	// It comes.
	run("nr-a", "--network", "nr-net", "--network-alias", "nr-web")
	a := endpoint(t, e, "nr-a", "nr-net")
	is("nr-a"+in+" A", a.IPAddress)
	is("nr-a"+in+" AAAA", a.GlobalIPv6Address)
	is("-x "+a.IPAddress, "nr-a.")
	is("-x "+a.GlobalIPv6Address, "nr-a.")
	is("_8080._tcp.nr-a" + in + " SRV")

	// It publishes.
	spec := fmt.Sprintf("127.0.0.1:%d:8080", e.FreePort())
	e.Must("port", "add", "nr-a", spec, spec+"/udp")
	is("_8080._tcp.nr-a"+in+" SRV", "0", "1", "8080", "nr-a.")
	is("_8080._udp.nr-web"+in+" SRV", "0", "1", "8080", "nr-a.")
	e.Must("port", "rm", "nr-a", "8080")
	is("_8080._tcp.nr-a" + in + " SRV")

	// Another one with the same alias comes from elsewhere: by turns they are first.
	run("nr-b", "--network", "nr-other")
	is("nr-web"+in+" A", a.IPAddress)
	e.Must("network", "connect", "--alias", "nr-web", "nr-net", "nr-b")
	b := endpoint(t, e, "nr-b", "nr-net")
	is("nr-web"+in+" A", a.IPAddress, b.IPAddress)
	first := map[string]int{}
	for range 6 {
		got := strings.Fields(e.Must("exec", "nr-client", "dig", "+short", "+timeout=3", "nr-web"+in, "A"))
		first[got[0]]++
	}
	if first[a.IPAddress] != 3 || first[b.IPAddress] != 3 {
		t.Errorf("of six answers these were first: %v", first)
	}
	e.Must("network", "disconnect", "nr-net", "nr-b")
	is("nr-web"+in+" A", a.IPAddress)
	is("nr-b" + in + " A")

	// The resolver's file, and what is made of it.
	if got := e.Must("exec", "nr-client", "cat", "/etc/resolv.conf"); got != "nameserver "+a.Gateway+"\nsearch nr-net.sbx.internal\noptions ndots:2 timeout:3\n" {
		t.Errorf("resolv.conf: %q", got)
	}
	if got := e.Must("exec", "nr-client", "dig", "+search", "+noall", "+answer", "nr-a", "A"); !strings.HasPrefix(got, "nr-a"+in+".") {
		t.Errorf("the search list: %q", got)
	}
	if got := e.Must("exec", "nr-client", "getent", "ahostsv4", "nr-a"); !strings.HasPrefix(got, a.IPAddress+" ") {
		t.Errorf("libc: %q", got)
	}

	// It is killed, and gone when its end is known.
	var pid int
	fmt.Sscan(e.Must("inspect", "-f", "{{.State.Pid}}", "nr-a"), &pid)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	e.Must("wait", "nr-a")
	is("nr-a" + in + " A")
	is("nr-web" + in + " A")
	is("-x " + a.IPAddress)
}
