package world

import (
	"fmt"
	"net/url"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

// askFrom has an agent ask a server in the sandbox as whom it sees the agent.
func askFrom(agent, network, to string) (string, error) {
	out, err := exec.Command("curl", "-fsS", "-m", "20", "-G", "--data-urlencode", "network="+network, "--data-urlencode", "addr="+to, "http://"+agent+"/ask").CombinedOutput()
	return string(out), err
}

// TestClientAddress: a client on another machine is seen with its own address, on every
// kind of network, whatever the family and the protocol.
func TestClientAddress(t *testing.T) {
	e := harness.New(t, harness.BB)
	for name, flags := range map[string]string{
		"ca-net": "", "ca-isolate": "-o isolate=true", "ca-private": "-o icc=false", "ca-mtu": "-o mtu=1280", "ca-vlan": "-o vlan=10",
		"ca-internal": "--internal", "ca-four": "--ipv6=false", "ca-six": "--ipv4=false",
	} {
		e.AtEnd("network", "rm", "-f", name)
		e.Must(append(append([]string{"network", "create"}, strings.Fields(flags)...), name)...)
	}
	var wg sync.WaitGroup
	for i, flags := range []string{
		"--network bridge", "--network ca-net", "--network ca-isolate", "--network ca-private", "--network ca-mtu", "--network ca-vlan", "--network ca-four", "--network ca-six",
		"--network ca-internal --network ca-net", "--network ca-net --network name=bridge,gw-priority=1",
		"--network bridge --link-driver packet", "--network bridge --port-driver stack", "--network container:ca-owner",
	} {
		name, port := fmt.Sprint("ca-", i), e.FreePort()
		args := append([]string{"run", "-d", "--name", name}, strings.Fields(flags)...)
		published := []string{"-p", fmt.Sprintf("%d:80", port), "-p", fmt.Sprintf("%d:80/udp", port)}
		e.AtEnd("rm", "-f", name)
		if strings.Contains(flags, "ca-owner") { // who listens shares the network of who publishes
			e.AtEnd("rm", "-f", "ca-owner")
			e.Must(append(append([]string{"run", "-d", "--name", "ca-owner"}, published...), harness.BB, "sleep", "1000")...)
			published = nil
		}
		e.Must(append(append(args, published...), harness.BB, "/probe", "who", "80")...)
		wg.Go(func() {
			hosts := map[string][2]string{"203.0.113.10": {"203.0.113.1", far4}, "2001:db8:113::10": {"2001:db8:113::1", far6}}
			switch { // nothing can have an address of the other family there
			case strings.Contains(flags, "ca-four"):
				delete(hosts, "2001:db8:113::10")
			case strings.Contains(flags, "ca-six"):
				delete(hosts, "203.0.113.10")
			}
			harness.Eventually(t, 30*time.Second, func() error {
				_, err := probe.Ask("tcp", fmt.Sprintf("127.0.0.1:%d", port))
				return err
			})
			for _, proto := range []string{"tcp", "udp"} {
				for host, clients := range hosts {
					// The tests run where sbx runs; the router and the one behind it have an agent.
					for i, agent := range []string{"203.0.113.1", far4} {
						if got, err := askFrom(agent, proto, addr(host, strconv.Itoa(port))); err != nil || !strings.HasPrefix(got, addr(clients[i], "")) {
							t.Errorf("%s, %s: the sandbox saw %q, want %s: %v", flags, proto, got, clients[i], err)
						}
					}
				}
				if got, err := probe.Ask(proto, fmt.Sprintf("127.0.0.1:%d", port)); err != nil || got == "" {
					t.Errorf("%s, %s from loopback: %q %v", flags, proto, got, err)
				}
			}
		})
	}
	wg.Wait()
}

// TestClientAddressDirect: without a network of its own and on an uplink the client
// comes to the sandbox itself; on an internal network nobody does.
func TestClientAddressDirect(t *testing.T) {
	e := harness.New(t, harness.BB)
	port := e.FreePort()
	p := e.Start("run", "--rm", "--network", "host", harness.BB, "/probe", "who", strconv.Itoa(port))
	p.WaitOut("ready", 30*time.Second)
	for _, proto := range []string{"tcp", "udp"} {
		for host, client := range map[string]string{"203.0.113.10": far4, "2001:db8:113::10": far6} {
			if got, err := askFrom(far4, proto, addr(host, strconv.Itoa(port))); err != nil || !strings.HasPrefix(got, addr(client, "")) {
				t.Errorf("host, %s: saw %q, want %s: %v", proto, got, client, err)
			}
		}
	}
	p.Stop()

	e.AtEnd("network", "rm", "-f", "ca-in")
	e.Must("network", "create", "--internal", "ca-in")
	p = e.Start("run", "--rm", "--network", "ca-in", "-p", fmt.Sprintf("%d:80", port), harness.BB, "/probe", "who", "80")
	p.WaitOut("ready", 30*time.Second)
	if got, err := askFrom(far4, "tcp", addr("203.0.113.10", strconv.Itoa(port))); err == nil {
		t.Errorf("internal: %q", got)
	}
	p.Stop()

	const router = "192.168.66.1"
	e.AtEnd("network", "rm", "-f", "ca-up")
	e.Must("network", "create", "-d", "uplink", "--parent", "sbxtap", "--subnet", "192.168.66.0/24", "--gateway", router, "--ip-range", "192.168.66.32/28", "ca-up")
	e.AtEnd("rm", "-f", "ca-server", "ca-other")
	e.Must("run", "-d", "--name", "ca-server", "-h", "ca-server", "--network", "ca-up", "--ip", "192.168.66.40", harness.BB, "/probe", "who", "80")
	served(t, e, "ca-server")
	e.Must("run", "-d", "--name", "ca-other", "-h", "ca-other", "--network", "ca-up", "--ip", "192.168.66.41", harness.BB, "/probe", "who", "80")
	for _, proto := range []string{"tcp", "udp"} {
		ask := url.Values{"network": {proto}, "addr": {"192.168.66.40:80"}}.Encode()
		if got := e.Must("exec", "ca-other", "/probe", "get", "http://"+router+"/ask?"+ask); !strings.HasPrefix(got, router+":") || !strings.HasSuffix(strings.TrimSpace(got), " ca-server") {
			t.Errorf("uplink, %s: saw %q, want %s", proto, got, router)
		}
		if got := e.Must("exec", "ca-other", "/probe", "ask", proto, "192.168.66.40:80"); !strings.HasPrefix(got, "192.168.66.41:") {
			t.Errorf("uplink, %s: saw %q", proto, got)
		}
	}
	e.Must("rm", "-f", "ca-server", "ca-other")
	e.Must("network", "rm", "ca-up")
}
