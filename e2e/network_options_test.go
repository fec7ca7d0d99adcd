package e2e

import (
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// TestInternalNetwork: out of an internal network leads nothing, and nothing is
// published there; from another network of the same sandbox all is as ever.
func TestInternalNetwork(t *testing.T) {
	e := harness.New(t, harness.BB)
	addr, ok := harness.HostAddr(t, "4")
	if !ok {
		t.Skip("this machine has no address but loopback")
	}
	web, _ := hostServers(t, addr)
	makeNetwork(t, e, "in-a", "--internal")
	makeNetwork(t, e, "in-b")
	port := e.FreePort()
	r := e.Run("run", "-d", "--name", "in-peer", "--network", "in-a", "-p", itoa(port)+":80", harness.BB, "/probe", "serve", "80")
	e.AtEnd("rm", "-f", "in-peer")
	if r.Code != 0 || !strings.Contains(r.Stderr, "internal") {
		t.Errorf("a port on an internal network: %v", r)
	}
	until(t, e, "ready", "logs", "in-peer")
	get := func(flags ...string) harness.Result {
		return e.Run(append(append([]string{"run", "--rm"}, flags...), harness.BB, "sh", "-c", "ip route | grep -c default; /probe get http://in-peer/; /probe get http://"+web+"/")...)
	}
	if r := get("--network", "in-a"); r.Code == 0 || r.Stdout != "0\nprobe /\n" {
		t.Errorf("on the internal network alone: %v", r)
	}
	if r := get("--network", "in-a", "--network", "in-b"); r.Code != 0 || r.Stdout != "1\nprobe /\nprobe /\n" {
		t.Errorf("on another one as well: %v", r)
	}
	if r := get("--network", "in-b"); r.Code != 0 || r.Stdout != "1\nprobe /\n" {
		t.Errorf("not on it: %v", r)
	}
}

// TestPrivateNetwork: with icc=false sandboxes reach the world and not each other.
func TestPrivateNetwork(t *testing.T) {
	e := harness.New(t, harness.BB)
	makeNetwork(t, e, "pr-a", "-o", "com.docker.network.bridge.enable_icc=false")
	detached(t, e, "pr-peer", "--network", "pr-a", harness.BB, "/probe", "serve", "80")
	until(t, e, "ready", "logs", "pr-peer")
	p := endpoint(t, e, "pr-peer", "pr-a")
	out := e.Must("run", "--rm", "--network", "pr-a", harness.BB, "sh", "-c",
		"for a in "+p.IPAddress+" "+p.GlobalIPv6Address+"; do ping -c 1 -W 1 $a >/dev/null && echo reached $a; done; ping -c 1 -W 5 "+p.Gateway+" >/dev/null && echo gateway")
	if out != "gateway\n" {
		t.Errorf("%q", out)
	}
}

// TestGatewayPriority: of several networks the highest is the way out.
func TestGatewayPriority(t *testing.T) {
	e := harness.New(t, harness.BB)
	makeNetwork(t, e, "gp-a", "--subnet", "10.206.1.0/24")
	makeNetwork(t, e, "gp-b", "--subnet", "10.206.2.0/24")
	for flags, want := range map[string]string{
		"--network gp-a --network gp-b":                                    "10.206.1.1",
		"--network gp-b --network gp-a":                                    "10.206.2.1",
		"--network gp-a --network name=gp-b,gw-priority=1":                 "10.206.2.1",
		"--network name=gp-a,gw-priority=-1 --network gp-b":                "10.206.2.1",
		"--network name=gp-a,gw-priority=2 --network gp-b --ip 10.206.1.9": "10.206.1.1",
	} {
		out := e.Must(append(append([]string{"run", "--rm"}, strings.Fields(flags)...), harness.BB, "sh", "-c", "ip route get 192.0.2.1; cat /etc/resolv.conf")...)
		if !strings.Contains(out, "via "+want+" ") || !strings.Contains(out, "nameserver "+want+"\n") {
			t.Errorf("%s: %q, want %s", flags, out, want)
		}
	}
}

// TestLink: the legacy --link gives an alias and the other's ports and environment.
func TestLink(t *testing.T) {
	e := harness.New(t, harness.BB)
	makeNetwork(t, e, "lk-a")
	detached(t, e, "lk-db", "-e", "SECRET=x=y", "--expose", "5432", "--expose", "53/udp", harness.BB, "/probe", "serve", "5432")
	until(t, e, "ready", "logs", "lk-db")
	addr := endpoint(t, e, "lk-db", "bridge").IPAddress
	out := e.Must("run", "--rm", "--name", "lk-app", "--link", "lk-db:my-db", harness.BB, "sh", "-c", "env; cat /etc/hosts; /probe get http://my-db:5432/")
	for _, want := range []string{
		"MY_DB_NAME=/lk-app/my-db", "MY_DB_PORT=udp://" + addr + ":53", "MY_DB_PORT_5432_TCP=tcp://" + addr + ":5432", "MY_DB_PORT_5432_TCP_ADDR=" + addr,
		"MY_DB_PORT_5432_TCP_PORT=5432", "MY_DB_PORT_5432_TCP_PROTO=tcp", "MY_DB_ENV_SECRET=x=y", addr + "\tmy-db", addr + "\tlk-db", "probe /",
	} {
		if !strings.Contains(out, want+"\n") {
			t.Errorf("lacks %q: %s", want, out)
		}
	}
	if strings.Contains(out, "MY_DB_ENV_PATH=") {
		t.Errorf("the other's PATH: %s", out)
	}
	bad := func(words []string, flags ...string) {
		t.Helper()
		e.Fails(125, words, append(append([]string{"run", "--rm"}, flags...), harness.BB, "true")...)
	}
	bad([]string{"lk-db is on no network of this sandbox"}, "--network", "lk-a", "--link", "lk-db")
	bad([]string{"no such sandbox"}, "--link", "lk-nobody")
	bad([]string{"SANDBOX:ALIAS"}, "--link", "lk-db:")
	bad([]string{"link"}, "--network", "none", "--link", "lk-db")
	e.Must("network", "connect", "lk-a", "lk-db")
	e.Must("run", "--rm", "--network", "lk-a", "--link", "lk-db:x", harness.BB, "/probe", "get", "http://x:5432/")
	e.Must("stop", "-t", "0", "lk-db")
	bad([]string{"does not run", "sbx start lk-db"}, "--link", "lk-db")
}
