package e2e

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// TestNetworksApart: what a sandbox sends to another network is refused at once, also
// when that network is made later; it never takes the host's default route. The
// counters say so.
func TestNetworksApart(t *testing.T) {
	e := harness.New(t, harness.BB)
	e.AtEnd("network", "rm", "-f", "ap-b") // last: ap-one will be on it
	makeNetwork(t, e, "ap-a")
	detached(t, e, "ap-one", "--network", "ap-a", harness.BB, "sleep", "1000")
	detached(t, e, "ap-default", harness.BB, "sleep", "1000")
	makeNetwork(t, e, "ap-b")
	detached(t, e, "ap-two", "--network", "ap-b", harness.BB, "sleep", "1000")
	refused := map[string]int{}
	on := map[string]string{"ap-one": "ap-a", "ap-two": "ap-b", "ap-default": "bridge"}
	for from := range on {
		script := ""
		for to, network := range on {
			if from == to {
				continue
			}
			p := endpoint(t, e, to, network)
			for _, a := range []string{p.IPAddress, p.GlobalIPv6Address, p.Gateway, p.IPv6Gateway} {
				for _, proto := range []string{"tcp", "udp"} {
					script += fmt.Sprintf("/probe dial %s %s; ", proto, net.JoinHostPort(a, "80"))
					refused[from]++
				}
			}
		}
		for line := range strings.Lines(e.Must("exec", from, "sh", "-c", script)) {
			if !strings.HasPrefix(line, "EHOSTUNREACH ") && !strings.HasPrefix(line, "EACCES ") {
				t.Errorf("%s: %q", from, line)
			}
		}
	}
	for box, network := range on {
		got := e.Must("network", "inspect", "-f", fmt.Sprintf(`{{range .Containers}}{{if eq .Name %q}}{{index .Counters.Drops "other-network"}}{{end}}{{end}}`, box), network)
		// Who has to wait for an answer asks twice.
		if n, err := strconv.Atoi(strings.TrimSpace(got)); err != nil || n < refused[box] || n > 2*refused[box] {
			t.Errorf("%s counts %q of %s, want %d", network, got, box, refused[box])
		}
	}
	// A sandbox that is on both is on its own way.
	e.Must("network", "connect", "ap-b", "ap-one")
	e.Must("exec", "ap-one", "ping", "-c", "1", "-W", "9", endpoint(t, e, "ap-two", "ap-b").IPAddress)
}
