package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

// TestGateway: what a sandbox finds on its network with the usual tools: interface,
// routes, name server, a gateway that answers, and nobody where nobody is.
func TestGateway(t *testing.T) {
	e := harness.New(t, harness.Debian)
	detached(t, e, "gw-box", harness.Debian, "sleep", "1000")
	detached(t, e, "gw-other", harness.Debian, "sleep", "1000")
	p := endpoint(t, e, "gw-box", "bridge")
	other := endpoint(t, e, "gw-other", "bridge")
	box := func(command string) harness.Result {
		return e.Run(append([]string{"exec", "gw-box"}, strings.Fields(command)...)...)
	}
	for command, want := range map[string]string{
		"ip -4 -o addr show eth0":                  fmt.Sprintf("%s/%d", p.IPAddress, p.IPPrefixLen),
		"ip -6 -o addr show eth0":                  fmt.Sprintf("%s/%d", p.GlobalIPv6Address, p.GlobalIPv6PrefixLen),
		"ip -o link show eth0":                     p.MacAddress,
		"ip -4 route show default":                 "via " + p.Gateway + " dev eth0",
		"ip -6 route show default":                 "via " + p.IPv6Gateway + " dev eth0",
		"cat /etc/resolv.conf":                     "nameserver " + p.Gateway,
		"dig +short gw-other A":                    other.IPAddress,
		"dig +short gw-other AAAA":                 other.GlobalIPv6Address,
		"dig +short gw-other.bridge A":             other.IPAddress,
		"dig +short +tcp gw-other A":               other.IPAddress,
		"dig +short -x " + other.IPAddress:         "gw-other.",
		"dig none-such.bridge":                     "NXDOMAIN",
		"dig +short host.sbx.internal A":           p.Gateway,
		"dig +short host.docker.internal A":        p.Gateway,
		"dig +short host.containers.internal AAAA": p.IPv6Gateway,
		"dig +short gateway.docker.internal A":     p.Gateway,
		"ping -c1 -W5 localhost":                   " 0% packet loss",
		"ping -c1 -W5 " + p.Gateway:                " 0% packet loss",
		"ping -c1 -W5 " + p.IPv6Gateway:            " 0% packet loss",
		"ping -4 -c1 -W5 gw-other":                 " 0% packet loss",
		"ping -6 -c1 -W5 gw-other":                 " 0% packet loss",
	} {
		if r := box(command); !strings.Contains(r.Stdout, want) {
			t.Errorf("lacks %q: %v", want, r)
		}
	}
	nobody := net.ParseIP(p.IPAddress).To4()
	nobody[3] = 250
	for _, command := range []string{"ping -c1 -W1 none-such", "ping -c1 -W1 " + nobody.String(), "curl -sS -m 5 http://" + nobody.String() + "/"} {
		if r := box(command); r.Code == 0 {
			t.Errorf("nobody has answered: %v", r)
		}
	}
}

// TestPublishFamilies: each family listens and answers for itself, and a server of one
// of them is reached by clients of both.
func TestPublishFamilies(t *testing.T) {
	e := harness.New(t, harness.BB)
	detached(t, e, "fam-both", harness.BB, "/probe", "who", "7")
	detached(t, e, "fam-four", harness.BB, "/probe", "who", "0.0.0.0:7")
	detached(t, e, "fam-six", harness.BB, "sh", "-c", `while read a b; do case $a in fd*) exec /probe who "[$a]:7"; esac; done </etc/hosts`)
	until(t, e, "ready", "logs", "fam-both")
	until(t, e, "ready", "logs", "fam-four")
	until(t, e, "ready", "logs", "fam-six")
	for _, c := range []struct {
		proto    string
		v4, v6   bool
		ip, host string
	}{
		{proto: "tcp", v4: true, v6: true}, {proto: "tcp4", v4: true}, {proto: "tcp6", v6: true},
		{proto: "udp", v4: true, v6: true}, {proto: "udp4", v4: true}, {proto: "udp6", v6: true},
		{proto: "tcp", v4: true, ip: "127.0.0.1:"}, {proto: "tcp", v6: true, ip: "[::1]:"},
		{proto: "udp", v4: true, ip: "0.0.0.0:"}, {proto: "udp", v6: true, ip: "[::]:"},
	} {
		for _, name := range []string{"fam-both", "fam-four", "fam-six"} {
			if name != "fam-both" && c.ip != "" {
				continue
			}
			port := e.FreePort()
			spec := fmt.Sprintf("%s%d:7/%s", c.ip, port, c.proto)
			e.Must("port", "add", name, spec)
			for host, want := range map[string]bool{"127.0.0.1": c.v4, "::1": c.v6} {
				_, err := probe.Ask(c.proto[:3], net.JoinHostPort(host, fmt.Sprint(port)))
				if (err == nil) != want {
					t.Errorf("%s of %s, from %s: %v, want an answer: %v", spec, name, host, err, want)
				}
			}
			e.Must("port", "rm", name, spec)
		}
	}
	// Both families of one port number are two ports.
	port := e.FreePort()
	e.Must("port", "add", "fam-four", fmt.Sprintf("0.0.0.0:%d:7/tcp4", port))
	e.Must("port", "add", "fam-six", fmt.Sprintf("[::]:%d:7/tcp6", port))
	for host, name := range map[string]string{"127.0.0.1": "fam-four", "::1": "fam-six"} {
		id := e.Must("inspect", "-f", "{{.Config.Hostname}}", name)
		if err := probe.Visit("tcp", net.JoinHostPort(host, fmt.Sprint(port)), strings.TrimSpace(id)); err != nil {
			t.Error(err)
		}
	}
}
