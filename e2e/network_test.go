package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

// hostServers starts an HTTP and an echo server on an address of the host.
func hostServers(t *testing.T, addr string) (web, echo string) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: probe.Handler()}
	go func() { _ = srv.Serve(l) }() // ends with ErrServerClosed
	m, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = probe.EchoTCP(m) }() // ends when the listener is closed
	t.Cleanup(func() { srv.Close(); m.Close() })
	return l.Addr().String(), m.Addr().String()
}

// TestHostAddress: from inside, the host's own address is reached like any other.
func TestHostAddress(t *testing.T) {
	e := harness.New(t, harness.BB, harness.Debian)
	addr, ok := harness.HostAddr(t, "4")
	if !ok {
		t.Skip("this machine has no address but loopback")
	}
	web, echo := hostServers(t, addr)
	for _, link := range linkDrivers {
		t.Run(link, func(t *testing.T) {
			e := e.In(t)
			run := func(args ...string) harness.Result {
				return e.Run(append([]string{"run", "--rm", "--link-driver", link}, args...)...)
			}
			for _, c := range [][]string{
				{harness.BB, "/probe", "down", "http://" + web, itoa(few(300_000_000)), "3"},
				{harness.BB, "/probe", "up", "http://" + web, itoa(few(300_000_000)), "4"},
				{harness.BB, "/probe", "many", echo, itoa(few(5000)), "32"},
				{harness.Debian, "curl", "-fsS", "http://" + web + "/"},
				{harness.Debian, "ping", "-c", "2", "-W", "5", addr},
			} {
				if r := run(c...); r.Code != 0 {
					t.Errorf("%v", r)
				}
			}
		})
	}
}

func TestIperf3(t *testing.T) {
	e := harness.New(t, harness.Debian)
	addr, ok := harness.HostAddr(t, "4")
	if !ok {
		t.Skip("this machine has no address but loopback")
	}
	port := fmt.Sprint(e.FreePort())
	srv := exec.Command("iperf3", "--server", "--bind", addr, "--port", port)
	if err := srv.Start(); err != nil {
		t.Fatal(err)
	}
	harness.Helper(srv.Process.Pid)
	defer func() {
		_ = srv.Process.Kill() // it may have ended
		_ = srv.Wait()         // killed, as asked
	}()
	harness.Eventually(t, 10*time.Second, func() error {
		c, err := net.Dial("tcp", net.JoinHostPort(addr, port))
		if err == nil {
			c.Close()
		}
		return err
	})
	for _, flags := range [][]string{nil, {"-R"}, {"-u", "-b", "100M"}, {"-P", "4"}} {
		args := append([]string{"run", "--rm", harness.Debian, "iperf3", "-c", addr, "-p", port, "-t", "2"}, flags...)
		// The server tells one client at a time; the one before may not be quite over.
		harness.Eventually(t, 30*time.Second, func() error {
			if r := e.Run(args...); r.Code != 0 || !strings.Contains(r.Stdout, "receiver") {
				return fmt.Errorf("%v", r)
			}
			return nil
		})
	}
}

// TestRefused: a closed port of the host's address is refused at once, not dropped.
func TestRefused(t *testing.T) {
	e := harness.New(t, harness.BB)
	addr, ok := harness.HostAddr(t, "4")
	if !ok {
		t.Skip("this machine has no address but loopback")
	}
	port := e.FreePort()
	for _, network := range []string{"tcp", "udp"} {
		out := e.Must("run", "--rm", harness.BB, "/probe", "dial", network, fmt.Sprintf("%s:%d", addr, port))
		if !strings.HasPrefix(out, "ECONNREFUSED ") {
			t.Errorf("%s: %q", network, out)
		}
	}
}

// TestHostAccess: the host's loopback is closed, but for the ports that were named.
func TestHostAccess(t *testing.T) {
	e := harness.New(t, harness.BB)
	open, _ := hostServers(t, "127.0.0.1")
	closed, _ := hostServers(t, "127.0.0.1")
	_, openPort, _ := net.SplitHostPort(open)
	_, closedPort, _ := net.SplitHostPort(closed)
	get := func(flags []string, port string) harness.Result {
		return e.Run(append(append([]string{"run", "--rm"}, flags...), harness.BB, "/probe", "get", "http://host.sbx.internal:"+port+"/")...)
	}
	if r := get([]string{"--host-access", openPort}, openPort); r.Code != 0 || r.Stdout != "probe /\n" {
		t.Errorf("%v", r)
	}
	if r := get([]string{"--host-access", openPort}, closedPort); r.Code == 0 {
		t.Errorf("a port that was not named answered: %v", r)
	}
	if r := get(nil, openPort); r.Code == 0 {
		t.Errorf("the loopback is open by default: %v", r)
	}
	for _, bad := range []string{"0", "70000", "x", "80-90x"} {
		e.Fails(125, []string{"host-access"}, "run", "--rm", "--host-access", bad, harness.BB, "true")
	}
}

func TestNetworkNone(t *testing.T) {
	e := harness.New(t, harness.BB)
	out := e.Must("run", "--rm", "--network", "none", harness.BB, "sh", "-c", "ls /sys/class/net; ping -c1 -W1 127.0.0.1 >/dev/null && echo loopback; cat /etc/hosts")
	if !strings.HasPrefix(out, "lo\nloopback\n") || !strings.Contains(out, "localhost") {
		t.Errorf("%q", out)
	}
	if out := e.Must("run", "--rm", "--network", "none", harness.BB, "/probe", "dial", "tcp", "198.51.100.1:80"); !strings.HasPrefix(out, "ENETUNREACH") {
		t.Errorf("%q", out)
	}
}

func TestNetworkHost(t *testing.T) {
	e := harness.New(t, harness.BB)
	web, _ := hostServers(t, "127.0.0.1")
	if out := e.Must("run", "--rm", "--network", "host", harness.BB, "/probe", "get", "http://"+web+"/"); out != "probe /\n" {
		t.Errorf("%q", out)
	}
	out := e.Must("run", "--rm", "--network", "host", harness.BB, "readlink", "/proc/self/ns/net")
	if mine, err := os.Readlink("/proc/self/ns/net"); err != nil || strings.TrimSpace(out) != mine {
		t.Errorf("%q is not the host's network: %v", out, err)
	}
	e.Fails(125, []string{"network"}, "run", "--rm", "--network", "no-such", harness.BB, "true")
}

// TestTwoSandboxes reach each other by address, over both links, and leave one network process.
func TestTwoSandboxes(t *testing.T) {
	e := harness.New(t, harness.BB, harness.Debian)
	for _, link := range linkDrivers {
		t.Run(link, func(t *testing.T) {
			e := e.In(t)
			p := e.Start("run", "--rm", "--link-driver", link, harness.BB, "sh", "-c", "/probe echo 7 & exec /probe serve 80")
			p.WaitOut("ready ", 30*time.Second)
			harness.Eventually(t, 30*time.Second, func() error { // both programs say so, in whatever order
				if r := p.Result(); strings.Count(r.Stdout, "\n") < 2 {
					return fmt.Errorf("%v", r)
				}
				return nil
			})
			first, _, _ := strings.Cut(p.Result().Stdout, "\n")
			addrs := strings.Fields(first)[1:]
			if len(addrs) < 2 {
				t.Fatalf("addresses: %q", first)
			}
			for _, a := range addrs {
				base := "http://" + net.JoinHostPort(a, "80")
				for _, cmd := range [][]string{
					{harness.BB, "/probe", "up", base, "200000000", "1"},
					{harness.BB, "/probe", "down", base, "200000000", "2"},
					{harness.BB, "/probe", "udp", net.JoinHostPort(a, "7"), "1", "1400", "60000"},
					{harness.Debian, "ping", "-c", "1", "-W", "5", a},
				} {
					other := linkDrivers[0]
					if r := e.Run(append([]string{"run", "--rm", "--link-driver", other}, cmd...)...); r.Code != 0 {
						t.Errorf("%v", r)
					}
				}
				if out := e.Must("run", "--rm", harness.BB, "/probe", "dial", "tcp", net.JoinHostPort(a, "81")); !strings.HasPrefix(out, "ECONNREFUSED") {
					t.Errorf("%q", out)
				}
			}
			p.Stop()
		})
	}
}

func TestHostsAndResolver(t *testing.T) {
	e := harness.New(t, harness.BB)
	out := e.Must("run", "--rm", "--hostname", "me", "--add-host", "other:192.0.2.7", "--dns", "192.0.2.53", "--dns-search", "example.test", "--dns-option", "ndots:3", harness.BB, "cat", "/etc/hosts", "/etc/resolv.conf")
	for _, want := range []string{"127.0.0.1", "localhost", "192.0.2.7", "other", "me", "nameserver 192.0.2.53", "search example.test", "options ndots:3"} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q: %s", want, out)
		}
	}
	e.Fails(125, []string{"add-host"}, "run", "--rm", "--add-host", "bogus", harness.BB, "true")
	e.Fails(125, []string{"dns"}, "run", "--rm", "--dns", "bogus", harness.BB, "true")
}

func TestMTU(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, link := range linkDrivers {
		for _, mtu := range []string{"1280", "1500", "9000"} {
			out := e.Must("run", "--rm", "--link-driver", link, "--mtu", mtu, harness.BB, "sh", "-c", "cat /sys/class/net/[!l]*/mtu")
			if strings.TrimSpace(out) != mtu {
				t.Errorf("%s: %q, want %s", link, out, mtu)
			}
		}
	}
	e.Fails(125, []string{"mtu"}, "run", "--rm", "--mtu", "100", harness.BB, "true")
	e.Fails(125, []string{"mtu"}, "run", "--rm", "--mtu", "70000", harness.BB, "true")
}

func TestUnknownDrivers(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, flag := range []string{"--link-driver", "--port-driver", "--storage-driver", "--userns", "--pull", "--network", "--platform"} {
		e.Fails(125, []string{"bogus"}, "run", "--rm", flag, "bogus", harness.BB, "true")
	}
}
