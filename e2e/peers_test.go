package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
	"github.com/rootless-sbx/sbx/sandbox"
)

// Cases of other projects' tests, as far as no test of ours had them. docs/testing.md
// says where each of them stands.

// TestNetworkCreateCases goes through those of netavark's 700-create.bats, in its order.
func TestNetworkCreateCases(t *testing.T) {
	e := harness.NewPrivate(t)
	e.Must("network", "create", "--subnet", "10.89.0.0/24", "--subnet", "fd00:89::/64", "used")
	e.Must("network", "create", "--subnet", "10.1.2.0/23", "wide")
	const auto = "AUTO/22 AUTO"
	for i, c := range []struct {
		flags string
		want  string // Driver, Internal, EnableIPv6, and subnet, gateway, range of each family; or words of the error
	}{
		{"", "bridge false true " + auto + " AUTO/64 AUTO"},
		{"--subnet 10.100.0.0/24 --ipv6=false", "bridge false false 10.100.0.0/24 10.100.0.1"},
		{"--internal --ipv6=false", "bridge true false " + auto},
		{"--ipv6=false", "bridge false false " + auto},
		{"--ipv6", "bridge false true " + auto + " AUTO/64 AUTO"},
		{"--subnet 10.100.0.0/24 --gateway 10.100.0.50 --ipv6=false", "bridge false false 10.100.0.0/24 10.100.0.50"},
		{"--subnet 10.100.0.0/24 --gateway 10.200.0.1", "error: gateway 10.200.0.1 is in no subnet"},
		{"--subnet 10.100.0.0/24 --ip-range 10.100.0.16/28 --ipv6=false", "bridge false false 10.100.0.0/24 10.100.0.1 10.100.0.16/28"},
		{"--subnet 10.100.0.0/24 --ip-range 10.200.0.16/28", "error: range 10.200.0.16/28 is in no subnet"},
		{"--subnet 10.100.0.0/24 --ip-range 10.100.0.20-10.100.0.50", "usage: --ip-range"},
		{"--subnet 10.100.0.0/24 --ipv6", "bridge false true 10.100.0.0/24 10.100.0.1 AUTO/64 AUTO"},
		{"--subnet fdcc::/64", "bridge false true " + auto + " fdcc::/64 fdcc::1"},
		{"-o mtu=abc", "error: option mtu=abc: want a number"},
		{"-o vlan=5000", "error: option vlan=5000: want a number from 1 to 4094"},
		{"--ipam-driver none", "usage: --ipam-driver none is not supported"},
		{"--ipam-driver none --subnet 10.100.0.0/24", "usage: --ipam-driver none is not supported"},
		{"-d uplink --parent sbxtap9", "uplink false false"},
		{"-d uplink --parent sbxtap9 --subnet 10.200.0.0/24", "uplink false false 10.200.0.0/24 10.200.0.1"},
		{"-d macvlan", "error: the driver macvlan needs root"},
		{"-d macvlan -o mode=bridge --subnet 10.200.0.0/24", "error: the driver macvlan needs root"},
		{"-d ipvlan", "error: the driver ipvlan needs root"},
		{"-d ipvlan --subnet 10.200.0.0/24", "error: the driver ipvlan needs root"},
		{"--route 192.168.0.0/24,10.100.0.254", "usage: --route is not supported"},
		{"--interface-name podman7", "usage: --interface-name is not supported"},
		{"--subnet 10.1.3.248/30", "error: overlaps 10.1.2.0/23 of network wide"},
		{"--subnet 10.89.0.0/24", "error: overlaps 10.89.0.0/24 of network used"},
		{"--subnet fd00:89::/80", "error: of network used"},
		{"--subnet 10.1.16.0/23 --subnet 10.1.17.248/30", "error: overlap"},
		{"--subnet 10.100.0.0/24 --subnet 10.100.0.0/24", "error: is there twice"},
		{"--subnet 192.168.0.0/32", "error: /8 to /30"},
	} {
		name := fmt.Sprint("pc-", i)
		create := append(append([]string{"network", "create"}, strings.Fields(c.flags)...), name)
		if kind, words, bad := strings.Cut(c.want, ": "); bad {
			e.Fails(map[string]int{"error": 1, "usage": 125}[kind], []string{words}, create...)
			continue
		}
		e.Must(create...)
		got := e.Must("network", "inspect", "-f", "{{.Driver}} {{.Internal}} {{.EnableIPv6}}{{range .IPAM.Config}} {{.Subnet}} {{.Gateway}} {{.IPRange}}{{end}}", name)
		if !matches(t, strings.Fields(got), strings.Fields(c.want)) {
			t.Errorf("%s: %q, want %q", c.flags, got, c.want)
		}
		e.Must("network", "rm", name)
	}
	for name, words := range map[string]string{"used": "exists already", "": "a network needs a name", "badname!": "cannot be the name"} {
		e.Fails(1, []string{words}, "network", "create", name)
	}
	e.Must("network", "create", "--label", "key1=value1", "--label", "key2=value2", "-o", "mtu=1500", "-o", "vlan=100", "-o", "isolate=strict", "pc-opts")
	var list []sandbox.NetworkInspection
	if err := json.Unmarshal([]byte(e.Must("network", "inspect", "pc-opts")), &list); err != nil || len(list) != 1 {
		t.Fatal(err)
	}
	if n := list[0]; fmt.Sprint(n.Labels) != "map[key1:value1 key2:value2]" || fmt.Sprint(n.Options) != "map[isolate:strict mtu:1500 vlan:100]" || len(n.ID) != 64 || n.Created.IsZero() {
		t.Errorf("%+v", n)
	}
	e.Must("network", "rm", "used", "wide", "pc-opts")
}

// matches compares fields; AUTO stands for an address that was chosen, in none of the
// subnets that are used.
func matches(t *testing.T, got, want []string) bool {
	t.Helper()
	if len(got) != len(want) {
		return false
	}
	for i, w := range want {
		ip, bits, _ := strings.Cut(w, "/")
		if ip != "AUTO" {
			if got[i] != w {
				return false
			}
			continue
		}
		addr, gotBits, _ := strings.Cut(got[i], "/")
		a, err := netip.ParseAddr(addr)
		if err != nil || gotBits != bits {
			return false
		}
		for _, used := range []string{"10.89.0.0/24", "fd00:89::/64", "10.1.2.0/23"} {
			if netip.MustParsePrefix(used).Contains(a) {
				t.Errorf("%s is used", a)
			}
		}
	}
	return true
}

// TestNetworkOrder is netavark's "two networks" and "two networks reversed": devices are
// in the order that was asked for.
func TestNetworkOrder(t *testing.T) {
	e := harness.New(t, harness.BB)
	makeNetwork(t, e, "or-a", "--subnet", "10.207.1.0/24")
	makeNetwork(t, e, "or-b", "--subnet", "10.207.2.0/24")
	for flags, want := range map[string]string{
		"--network or-a --network or-b": "eth0 10.207.1., eth1 10.207.2., ",
		"--network or-b --network or-a": "eth0 10.207.2., eth1 10.207.1., ",
	} {
		out := e.Must(append(append([]string{"run", "--rm"}, strings.Fields(flags)...), harness.BB, "ip", "-4", "-o", "addr", "show", "scope", "global")...)
		got := ""
		for line := range strings.Lines(out) {
			f := strings.Fields(line)
			got += f[1] + " " + f[3][:strings.LastIndex(f[3], ".")+1] + ", "
		}
		if got != want {
			t.Errorf("%s: %q, want %q", flags, got, want)
		}
	}
	for _, alias := range []string{"space 1", "comma,1", "newline\n2"} {
		e.Fails(125, []string{"is not allowed in a domain name"}, "run", "--rm", "--network-alias", alias, harness.BB, "true")
	}
}

// TestSamePort is bypass4netns's case of the same name: the host, a sandbox and what is
// published on the host have the same port number, and each is reached under its own
// address, by connected and unconnected sockets.
func TestSamePort(t *testing.T) {
	e := harness.New(t, harness.BB)
	host, ok := harness.HostAddr(t, "4")
	if !ok {
		t.Skip("this machine has no address but loopback")
	}
	makeNetwork(t, e, "sp-net")
	port := e.FreePort()
	number := strconv.Itoa(port)
	// One of the user's processes on the host's address, a sandbox that publishes the port
	// on a loopback address, and one with neither.
	detached(t, e, "sp-host", "--network", "host", harness.BB, "/probe", "who", net.JoinHostPort(host, number))
	detached(t, e, "sp-pub", "-h", "sp-pub", "-p", "127.0.0.7:"+number+":"+number, "-p", "127.0.0.7:"+number+":"+number+"/udp", harness.BB, "/probe", "who", number)
	detached(t, e, "sp-peer", "-h", "sp-peer", harness.BB, "/probe", "who", number)
	detached(t, e, "sp-far", "-h", "sp-far", "--network", "sp-net", harness.BB, "/probe", "who", number)
	detached(t, e, "sp-client", harness.BB, "sleep", "1000")
	self := e.Must("exec", "sp-host", "hostname")
	to := map[string]string{host: strings.TrimSpace(self), "sp-pub": "sp-pub", "sp-peer": "sp-peer", endpoint(t, e, "sp-peer", "bridge").GlobalIPv6Address: "sp-peer"}
	for addr, want := range to {
		for _, network := range []string{"tcp", "udp"} {
			until(t, e, " "+want+"\n", "exec", "sp-client", "/probe", "ask", network, net.JoinHostPort(addr, number))
		}
	}
	// Through one unconnected socket, whose answers come from whom they were asked of.
	args := []string{"exec", "sp-client", "/probe", "turns", "6"}
	for addr, want := range to {
		if addr, err := netip.ParseAddr(addr); err == nil && addr.Is4() {
			args = append(args, net.JoinHostPort(addr.String(), number)+"="+want)
		}
	}
	for _, name := range []string{"sp-pub", "sp-peer"} {
		args = append(args, net.JoinHostPort(endpoint(t, e, name, "bridge").IPAddress, number)+"="+name)
	}
	e.Must(args...)
	// Published on a loopback address, and on another network: not for the client.
	far := endpoint(t, e, "sp-far", "sp-net")
	for _, addr := range []string{"sp-far", far.IPAddress, far.GlobalIPv6Address, "127.0.0.7"} {
		if r := e.Run("exec", "sp-client", "/probe", "ask", "tcp", net.JoinHostPort(addr, number)); r.Code == 0 {
			t.Errorf("%s answers: %v", addr, r)
		}
	}
	for _, network := range []string{"tcp", "udp"} {
		if err := probe.Visit(network, net.JoinHostPort("127.0.0.7", number), "sp-pub"); err != nil {
			t.Error(err)
		}
	}
}
