package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

// TestHairpin: a sandbox reaches its own published ports and those of others by the
// host's address, as who is outside does.
func TestHairpin(t *testing.T) {
	e := harness.New(t, harness.BB)
	var hosts []string
	for _, family := range []string{"4", "6"} {
		if a, ok := harness.HostAddr(t, family); ok {
			hosts = append(hosts, a)
		}
	}
	if len(hosts) == 0 {
		t.Skip("this machine has no address but loopback")
	}
	detached(t, e, "client", harness.BB, "sleep", "1000")
	for _, driver := range []string{"", "stack", "builtin"} {
		port := e.FreePort()
		args := []string{"-p", fmt.Sprintf("%d:7", port), "-p", fmt.Sprintf("%d:7/udp", port)}
		if driver != "" {
			args = append(args, "--port-driver", driver)
		}
		server := "server" + driver
		detached(t, e, server, append(args, harness.BB, "/probe", "who", "7")...)
		for _, name := range []string{"client", server} {
			for _, host := range append(hosts, "host.sbx.internal") {
				for _, network := range []string{"tcp", "udp"} {
					to := net.JoinHostPort(host, fmt.Sprint(port))
					until(t, e, ":", "exec", name, "/probe", "ask", network, to)
				}
			}
		}
	}
}

// TestClientOfHost: who connects on this host by its own address is seen with that
// address, and who connects by the loopback as somebody the sandbox can answer.
func TestClientOfHost(t *testing.T) {
	e := harness.New(t, harness.BB)
	port := e.FreePort()
	detached(t, e, "server", "--port-driver", "stack", "-p", fmt.Sprintf("%d:7", port), "-p", fmt.Sprintf("%d:7/udp", port), harness.BB, "/probe", "who", "7")
	gateway := strings.TrimSpace(e.Must("inspect", "-f", "{{.NetworkSettings.Gateway}}", "server"))
	until(t, e, ":", "exec", "server", "/probe", "ask", "tcp", "127.0.0.1:7")
	for _, network := range []string{"tcp", "udp"} {
		want := map[string]string{"127.0.0.1": gateway}
		if a, ok := harness.HostAddr(t, "4"); ok {
			want[a] = a
		}
		if a, ok := harness.HostAddr(t, "6"); ok {
			want[a] = a
		}
		for host, client := range want {
			got, err := probe.Ask(network, net.JoinHostPort(host, fmt.Sprint(port)))
			seen, _, _ := strings.Cut(got, " ")
			if from, _, serr := net.SplitHostPort(seen); err != nil || serr != nil || from != client {
				t.Errorf("%s by %s: seen as %q, want %s: %v", network, host, got, client, err)
			}
		}
	}
}
