package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// own are the lines of /etc/hosts after those that every sandbox has, without the
// addresses that are chosen for it.
func own(hosts string) (names []string) {
	for line := range strings.Lines(hosts) {
		f := strings.Fields(line)
		if len(f) > 1 && !strings.HasPrefix(f[1], "ip6-") && f[1] != "localhost" {
			names = append(names, strings.Join(f[1:], " "))
		}
	}
	return names
}

// TestHosts: what stands in /etc/hosts in each mode, and how it follows what happens.
func TestHosts(t *testing.T) {
	e := harness.New(t, harness.BB)
	want := func(hosts string, lines ...string) {
		t.Helper()
		if got := own(hosts); strings.Join(got, ", ") != strings.Join(lines, ", ") {
			t.Errorf("%q, want %q: %s", got, lines, hosts)
		}
	}
	run := func(flags ...string) string {
		t.Helper()
		return e.Must(append(append([]string{"run", "--rm", "--name", "once"}, flags...), harness.BB, "cat", "/etc/hosts")...)
	}
	want(run("-h", "me"), "me once", "me once") // both families
	want(run("-h", "me.example.test"), "me.example.test me once", "me.example.test me once")
	want(run("-h", "me", "--add-host", "db:192.0.2.7", "--add-host", "up:host-gateway"), "db", "up", "me once", "me once")
	want(run("-h", "me", "--network", "none", "--add-host", "db:192.0.2.7"), "db", "me once")
	e.Must("run", "--rm", "--network", "none", "-h", "me", harness.BB, "ping", "-c1", "-W5", "me")
	host, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	if got := run("--network", "host"); got != string(host) {
		t.Errorf("with the host's network %q, the host has %q", got, host)
	}
	if got := run("--network", "host", "--add-host", "db:192.0.2.7"); !strings.HasPrefix(got, string(host)) || !strings.HasSuffix(got, "192.0.2.7\tdb\n") {
		t.Errorf("with the host's network and a name more: %q", got)
	}
	mine := filepath.Join(e.Dir(), "hosts")
	if err := os.WriteFile(mine, []byte("192.0.2.9 mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := run("-v", mine+":/etc/hosts:ro"); got != "192.0.2.9 mine\n" {
		t.Errorf("a file of one's own: %q", got)
	}

	// What happens to a sandbox that runs; what its user has written stays.
	e.Must("network", "create", "hosts-far")
	e.AtEnd("network", "rm", "hosts-far")
	e.AtEnd("rm", "-f", "renamed")
	detached(t, e, "box", "-h", "me", harness.BB, "sleep", "1000")
	file := func(name string) string { return e.Must("exec", name, "cat", "/etc/hosts") }
	e.Must("exec", "box", "sh", "-c", "echo 192.0.2.8 late >>/etc/hosts")
	want(file("box"), "me box", "me box", "late")
	e.Must("network", "connect", "--alias", "far", "hosts-far", "box")
	want(file("box"), "late", "me box", "me box", "me box far", "me box far")
	e.Must("rename", "box", "renamed")
	want(file("renamed"), "late", "me renamed", "me renamed", "me renamed far", "me renamed far")
	e.Must("network", "disconnect", "hosts-far", "renamed")
	want(file("renamed"), "late", "me renamed", "me renamed")
	e.Must("restart", "-t", "0", "renamed")
	want(file("renamed"), "me renamed", "me renamed")
}
