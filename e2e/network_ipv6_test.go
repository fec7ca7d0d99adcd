package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"golang.org/x/sys/unix"
)

// TestIPv6Network: on a network without IPv4 names, the way out and published ports
// work, for clients of both families; they are back when its process was killed.
func TestIPv6Network(t *testing.T) {
	e := harness.New(t, harness.BB)
	makeNetwork(t, e, "v6-a", "--ipv6", "--ipv4=false", "--subnet", "fd5b:6::/64")
	var ports []int
	for i, driver := range portDrivers {
		ports = append(ports, e.FreePort())
		detached(t, e, "v6-"+driver, "--network", "v6-a", "--ip6", fmt.Sprintf("fd5b:6::%d", 50+i), "-p", fmt.Sprintf("%d:80", ports[i]), "--port-driver", driver, harness.BB, "/probe", "serve", "80")
		until(t, e, "ready", "logs", "v6-"+driver)
	}
	check := func() {
		t.Helper()
		for i, driver := range portDrivers {
			for _, host := range []string{"127.0.0.1", "[::1]"} {
				url := fmt.Sprintf("http://%s:%d/", host, ports[i])
				harness.Eventually(t, 15*time.Second, func() error {
					if got, err := harness.Get(url); err != nil || strings.TrimSpace(got) != "probe /" {
						return fmt.Errorf("%s, driver %s: %q, %v", url, driver, got, err)
					}
					return nil
				})
			}
		}
		e.Must("run", "--rm", "--network", "v6-a", harness.BB, "/probe", "get", "http://v6-"+portDrivers[0]+".v6-a/")
		e.Must("run", "--rm", "--network", "v6-a", harness.BB, "/probe", "get", fmt.Sprintf("http://host.sbx.internal:%d/", ports[0]))
	}
	check()
	out := e.Must("run", "--rm", "--network", "v6-a", harness.BB, "sh", "-c", "cat /etc/resolv.conf; ip -4 addr show dev eth0; ip -4 route; ip -6 route; /probe dial tcp 192.0.2.1:80")
	if !strings.Contains(out, "nameserver fd5b:6::1\n") || !strings.Contains(out, "default via fd5b:6::1 ") || strings.Contains(out, "inet ") || !strings.Contains(out, "ENETUNREACH") {
		t.Error(out)
	}
	pid := e.Must("network", "inspect", "-f", "{{.Status.Pid}} {{.EnableIPv4}}", "v6-a")
	var n int
	if _, err := fmt.Sscanf(pid, "%d false", &n); err != nil {
		t.Fatalf("%q: %v", pid, err)
	}
	if err := unix.Kill(n, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	check()
	e.Fails(125, []string{"has no IPv4"}, "run", "--rm", "--network", "v6-a", "--ip", "10.1.2.3", harness.BB, "true")
	e.Fails(125, []string{"fd5b:6::50: in use by sandbox v6-" + portDrivers[0]}, "run", "--rm", "--network", "v6-a", "--ip6", "fd5b:6::50", harness.BB, "true")
}

// TestHostBinding: ports are published where the network says, unless told otherwise.
func TestHostBinding(t *testing.T) {
	e := harness.New(t, harness.BB)
	makeNetwork(t, e, "hb-a", "-o", "com.docker.network.bridge.host_binding_ipv4=127.0.0.1")
	one, all, later := e.FreePort(), e.FreePort(), e.FreePort()
	detached(t, e, "hb-box", "--network", "hb-a", "-p", fmt.Sprintf("%d:80", one), "-p", fmt.Sprintf("0.0.0.0:%d:80", all), harness.BB, "sleep", "1000")
	e.Must("port", "add", "hb-box", fmt.Sprintf("%d:81", later))
	out := e.Must("port", "hb-box")
	for _, want := range []string{fmt.Sprintf("80/tcp -> 127.0.0.1:%d", one), fmt.Sprintf("80/tcp -> 0.0.0.0:%d", all), fmt.Sprintf("81/tcp -> 127.0.0.1:%d", later)} {
		if !strings.Contains(out, want+"\n") || strings.Count(out, "\n") != 3 {
			t.Errorf("%q lacks %q, or has more", out, want)
		}
	}
}
