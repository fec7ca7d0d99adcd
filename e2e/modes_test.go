package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// TestNetworkContainer: two sandboxes in one network have everything of it in common.
func TestNetworkContainer(t *testing.T) {
	e := harness.New(t, harness.BB)
	port := e.FreePort()
	web := detached(t, e, "web", "-p", fmt.Sprintf("127.0.0.1:%d:80", port), "--hostname", "shop", "--add-host", "other:192.0.2.7", harness.BB, "/probe", "serve", "80")
	detached(t, e, "side", "--network", "container:web", harness.BB, "/probe", "serve", "81")
	detached(t, e, "third", "--network", "container:side", "--init", harness.BB, "sleep", "1000")
	const look = "readlink /proc/self/ns/net; ip addr; cat /etc/hosts /etc/resolv.conf /etc/hostname; hostname"
	want := e.Must("exec", "web", "sh", "-c", look)
	if !strings.Contains(want, "other") || !strings.HasSuffix(want, "shop\nshop\n") {
		t.Errorf("%q", want)
	}
	for _, name := range []string{"side", "third"} {
		if got := e.Must("exec", name, "sh", "-c", look); got != want {
			t.Errorf("%s has %q, web %q", name, got, want)
		}
		for _, p := range []string{"80", "81"} {
			until(t, e, "probe /", "exec", name, "/probe", "get", "http://127.0.0.1:"+p+"/")
		}
	}
	if got, want := e.Must("exec", "side", "readlink", "/proc/1/ns/user"), e.Must("exec", "web", "readlink", "/proc/1/ns/user"); got != want {
		t.Errorf("user namespaces %q and %q: who has the network must own it", got, want)
	}
	out := e.Must("inspect", "-f", "{{.HostConfig.NetworkMode}} {{len .NetworkSettings.Networks}} {{.Config.Hostname}}", "side")
	if out != "container:"+web+" 0 shop\n" {
		t.Errorf("inspect: %q", out)
	}
	// What one of them writes, the other reads.
	e.Must("exec", "side", "sh", "-c", "echo 192.0.2.9 late >>/etc/hosts")
	if out := e.Must("exec", "web", "cat", "/etc/hosts"); !strings.Contains(out, "late") {
		t.Errorf("/etc/hosts of web: %q", out)
	}
}

// TestNetworkContainerRestart: whoever shares a network joins the one that is there
// when it starts.
func TestNetworkContainerRestart(t *testing.T) {
	e := harness.New(t, harness.BB)
	detached(t, e, "web", harness.BB, "/probe", "serve", "80")
	detached(t, e, "side", "--network", "container:web", harness.BB, "sleep", "1000")
	e.Must("restart", "-t", "0", "side")
	get := []string{"exec", "side", "/probe", "get", "http://127.0.0.1:80/"}
	until(t, e, "probe /", get...)
	e.Must("restart", "-t", "0", "web")
	if r := e.Run(get...); r.Code == 0 {
		t.Errorf("side is in a network that it did not join: %v", r)
	}
	e.Must("restart", "-t", "0", "side")
	until(t, e, "probe /", get...)
	e.Must("stop", "-t", "0", "web")
	e.Fails(1, []string{"web", "does not run", "sbx start web"}, "restart", "-t", "0", "side")
	e.Fails(125, []string{"web", "does not run", "sbx start web"}, "run", "--rm", "--network", "container:web", harness.BB, "true")
	e.Must("start", "web")
	e.Must("start", "side")
	until(t, e, "probe /", get...)
	e.Must("rm", "-f", "web")
	e.Fails(1, []string{"none any more"}, "restart", "-t", "0", "side")
}

// TestNetworkContainerRefused: what the owner of the network decides, in Docker's words.
func TestNetworkContainerRefused(t *testing.T) {
	e := harness.New(t, harness.BB)
	detached(t, e, "web", "--network", "none", harness.BB, "sleep", "1000")
	for flags, words := range map[string][]string{
		"-p 8080:80":         {"conflicting options: port publishing and the container type network mode", "give it to web"},
		"-P":                 {"conflicting options: port publishing"},
		"--expose 80":        {"conflicting options: port exposing"},
		"--hostname x":       {"conflicting options: hostname"},
		"--dns 192.0.2.1":    {"conflicting options: dns"},
		"--dns-search x":     {"conflicting options: dns"},
		"--add-host a:::1":   {"conflicting options: custom host-to-IP mapping"},
		"--host-access 80":   {"conflicting options: access to the host's ports"},
		"--metadata-access":  {"conflicting options: access to metadata"},
		"--mtu 1500":         {"conflicting options: mtu"},
		"--userns single":    {"user namespace", "auto", "single"},
		"--link-driver tap":  {"conflicting options: link driver"},
		"--port-driver tack": {"--port-driver"},
	} {
		e.Fails(125, words, append(append([]string{"run", "--rm", "--network", "container:web"}, strings.Fields(flags)...), harness.BB, "true")...)
	}
	e.Fails(125, []string{"no such sandbox"}, "run", "--rm", "--network", "container:none-such", harness.BB, "true")
	e.Fails(125, []string{"container:web"}, "run", "--rm", "--network", "container:", harness.BB, "true")
	if out := e.Must("run", "--rm", "--network", "container:web", harness.BB, "ls", "/sys/class/net"); out != "lo\n" {
		t.Errorf("the network of one without a network: %q", out)
	}
}

// TestNetworkContainerOfHost: the host's network is the host's, by whatever name.
func TestNetworkContainerOfHost(t *testing.T) {
	e := harness.New(t, harness.BB)
	mine, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	detached(t, e, "first", "--network", "host", harness.BB, "sleep", "1000")
	detached(t, e, "second", "--network", "container:first", harness.BB, "sleep", "1000")
	if out := e.Must("exec", "second", "readlink", "/proc/1/ns/net"); strings.TrimSpace(out) != mine {
		t.Errorf("%q, the host has %q", out, mine)
	}
}

// holder is a process with a network namespace of its own.
func holder(t *testing.T, flags ...string) (path string, end func()) {
	t.Helper()
	cmd := exec.Command("unshare", append(flags, "sh", "-c", "ip link set lo up; echo ready; exec sleep 1000")...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	harness.Helper(cmd.Process.Pid)
	end = func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // killed, as asked
	}
	t.Cleanup(end)
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatalf("unshare %v: %v", flags, err)
	}
	return fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid), end
}

// TestNetworkPath: a network namespace that somebody else of the user's has made.
func TestNetworkPath(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, flags := range [][]string{{"-Urn"}, {"-rn", "--map-auto"}} {
		path, end := holder(t, flags...)
		want, err := os.Readlink(path)
		if err != nil {
			t.Fatal(err)
		}
		out := e.Must("run", "--rm", "--network", "ns:"+path, "--dns", "192.0.2.53", harness.BB, "sh", "-c", "readlink /proc/self/ns/net; ping -c1 -W5 127.0.0.1 >/dev/null && cat /etc/resolv.conf")
		if out != want+"\nnameserver 192.0.2.53\n" {
			t.Errorf("%v: %q, want %q", flags, out, want)
		}
		end()
		e.Fails(125, []string{path, "its process may have ended"}, "run", "--rm", "--network", "ns:"+path, harness.BB, "true")
	}
	for path, words := range map[string][]string{
		"relative":           {"absolute path"},
		"":                   {"absolute path"},
		"/proc/self/ns/net":  {"the host's", "--network host"},
		"/proc/self/ns/user": {"another kind"},
		"/etc/passwd":        {"not a namespace"},
		"/dev/null":          {"not a namespace"},
		"/none-such":         {"there is none"},
	} {
		e.Fails(125, words, "run", "--rm", "--network", "ns:"+path, harness.BB, "true")
	}
	path, _ := holder(t, "-Urn")
	e.Fails(125, []string{"conflicting options: port publishing"}, "run", "--rm", "-p", "80", "--network", "ns:"+path, harness.BB, "true")
}
