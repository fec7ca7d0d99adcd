package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// TestReach is the table of who reaches whom in every mode: by name and by address, by
// TCP and UDP, IPv4 and IPv6, and what the host and others publish on its addresses.
func TestReach(t *testing.T) {
	e := harness.New(t, harness.BB)
	makeNetwork(t, e, "rc-net")
	makeNetwork(t, e, "rc-in", "--internal")
	makeNetwork(t, e, "rc-priv", "-o", "icc=false")
	makeNetwork(t, e, "rc-iso", "-o", "isolate=true")
	makeNetwork(t, e, "rc-six", "--ipv6", "--ipv4=false")
	hostPort, published := e.FreePort(), e.FreePort()
	// In each network namespace somebody listens on 7, and who shares it on 8.
	boxes := []struct{ name, network, group, port string }{
		{"rc-one", "bridge", "bridge", "7"},
		{"rc-two", "bridge", "bridge", "7"},
		{"rc-side", "container:rc-one", "bridge", "8"},
		{"rc-path", "ns:", "bridge", "8"}, // of rc-two
		{"rc-far", "rc-net", "rc-net", "7"},
		{"rc-in1", "rc-in", "rc-in", "7"},
		{"rc-in2", "rc-in", "rc-in", "7"},
		{"rc-p1", "rc-priv", "rc-p1", "7"},
		{"rc-p2", "rc-priv", "rc-p2", "7"},
		{"rc-iso1", "rc-iso", "rc-iso", "7"},
		{"rc-six1", "rc-six", "rc-six", "7"},
		{"rc-six2", "rc-six", "rc-six", "7"},
		{"rc-none", "none", "", "7"},
		{"rc-host", "host", "host", fmt.Sprint(hostPort)},
	}
	start := func(i int) {
		b := boxes[i]
		e.AtEnd("rm", "-f", b.name)
		args := []string{"run", "-d", "--name", b.name, "--network", b.network}
		if b.name == "rc-one" {
			args = append(args, "-p", fmt.Sprintf("%d:7", published), "-p", fmt.Sprintf("%d:7/udp", published))
		}
		if r := e.Run(append(args, harness.BB, "/probe", "who", b.port)...); r.Code != 0 {
			t.Errorf("%v", r)
		}
	}
	inspect := func(name, what string) string {
		return strings.TrimSpace(e.Must("inspect", "-f", "{{"+what+"}}", name))
	}
	start(0)
	start(1)
	boxes[3].network = "ns:/proc/" + inspect("rc-two", ".State.Pid") + "/ns/net"
	var wg sync.WaitGroup
	for i := range boxes[2:] {
		wg.Go(func() { start(i + 2) })
	}
	wg.Wait()
	if t.Failed() {
		return
	}

	// target is something to be reached, and the groups that do.
	type target struct {
		addr, port string
		by         []string
	}
	var targets []target
	for _, b := range boxes {
		owner := map[string]string{"rc-side": "rc-one", "rc-path": "rc-two"}[b.name]
		if owner == "" {
			owner = b.name
		}
		switch b.group {
		case "", "host":
			continue
		}
		network := map[bool]string{true: b.group, false: "rc-priv"}[!strings.HasPrefix(b.group, "rc-p")]
		p := endpoint(t, e, owner, network)
		for _, a := range []string{owner, p.IPAddress, p.GlobalIPv6Address} {
			if (a == "") != (network == "rc-six" && a == p.IPAddress) {
				t.Errorf("%s has the addresses %q and %q", owner, p.IPAddress, p.GlobalIPv6Address)
			}
			if a != "" {
				targets = append(targets, target{a, b.port, []string{b.group}})
			}
		}
	}
	outside := []string{"bridge", "rc-net", "rc-p1", "rc-p2"}
	for _, port := range []int{hostPort, published} {
		targets = append(targets, target{"host.sbx.internal", fmt.Sprint(port), append([]string{"rc-six"}, outside...)})
		for family, too := range map[string][]string{"4": {"host"}, "6": {"host", "rc-six"}} {
			if a, ok := harness.HostAddr(t, family); ok {
				targets = append(targets, target{a, fmt.Sprint(port), append(too, outside...)})
			}
		}
	}

	attempts := []string{"/probe", "ask-all"}
	for _, to := range targets {
		for _, network := range []string{"tcp", "udp"} {
			attempts = append(attempts, network+","+net.JoinHostPort(to.addr, to.port))
		}
	}
	for _, b := range boxes { // they listen
		until(t, e, ":", "exec", b.name, "/probe", "ask", "tcp", "127.0.0.1:"+b.port)
	}
	for _, b := range boxes {
		wg.Go(func() {
			reached := strings.Fields(e.Must(append([]string{"exec", b.name}, attempts...)...))
			for i, to := range targets {
				for j, network := range []string{"tcp", "udp"} {
					want := slices.Contains(to.by, b.group)
					if _, err := netip.ParseAddr(to.addr); err != nil && b.name == "rc-path" {
						want = false // its resolver is the host's
					}
					if got := slices.Contains(reached, fmt.Sprint(2*i+j)); got != want {
						t.Errorf("%s -> %s port %s by %s: %v, want %v", b.name, to.addr, to.port, network, got, want)
					}
				}
			}
		})
	}
	wg.Wait()
}
