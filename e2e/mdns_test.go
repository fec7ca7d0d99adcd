package e2e

import (
	"strings"
	"sync"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// avahi answers for the host name on every link, and is what getent asks for it.
const avahi = `mkdir -p /run/avahi-daemon
printf '[server]\nenable-dbus=no\n[publish]\npublish-workstation=no\n' >/tmp/avahi.conf
sed -i 's/^hosts:.*/hosts: files mdns_minimal/' /etc/nsswitch.conf
exec avahi-daemon --no-drop-root --no-chroot --no-rlimits -f /tmp/avahi.conf`

// TestMulticastDNS has avahi-daemon in sandboxes: they find each other's NAME.local on a
// network that both are on, by IPv4 and IPv6 multicast, and on no other.
func TestMulticastDNS(t *testing.T) {
	e := harness.New(t, harness.Debian)
	makeNetwork(t, e, "md-a")
	makeNetwork(t, e, "md-b")
	makeNetwork(t, e, "md-six", "--ipv4=false")
	makeNetwork(t, e, "md-priv", "-o", "icc=false")
	on := map[string][]string{
		"md-one": {"md-a"}, "md-two": {"md-a"}, "md-far": {"md-b"}, "md-both": {"md-b", "md-six"}, "md-six1": {"md-six"},
		"md-p1": {"md-priv"}, "md-p2": {"md-priv"},
	}
	each := func(f func(name string, networks []string)) {
		var wg sync.WaitGroup
		for name, networks := range on {
			wg.Go(func() { f(name, networks) })
		}
		wg.Wait()
	}
	each(func(name string, networks []string) {
		e.AtEnd("rm", "-f", name)
		args := []string{"run", "-d", "--name", name, "--hostname", name}
		for _, n := range networks {
			args = append(args, "--network", n)
		}
		if r := e.Run(append(args, harness.Debian, "sh", "-c", avahi)...); r.Code != 0 {
			t.Errorf("%v", r)
		}
	})
	if t.Failed() {
		return
	}
	find := func(from, name, family string) {
		t.Helper()
		script := "for i in $(seq 100); do getent ahosts$1 $0.local && exit; sleep 0.1; done; exit 1"
		if r := e.Run("exec", from, "sh", "-c", script, name, family); r.Code != 0 || !strings.Contains(r.Stdout, name+".local") {
			t.Errorf("%s does not find %s by IP%s: %v", from, name, family, r)
		}
	}
	each(func(name string, networks []string) { // they are up
		find(name, name, "v6")
	})
	find("md-one", "md-two", "v4")
	find("md-two", "md-one", "v6")
	find("md-both", "md-far", "v4")
	find("md-six1", "md-both", "v6")
	// An answer would have come in some 20 ms.
	each(func(name string, _ []string) {
		apart := map[string]string{"md-one": "md-far", "md-far": "md-two", "md-six1": "md-far", "md-p1": "md-p2", "md-p2": "md-p1", "md-two": "md-both", "md-both": "md-one"}
		if r := e.Run("exec", name, "timeout", "2", "getent", "ahostsv4", apart[name]+".local"); r.Code == 0 || strings.Contains(r.Stdout, ".local") {
			t.Errorf("%s finds %s: %v", name, apart[name], r)
		}
	})
	// A link that comes later brings its neighbours.
	e.Must("network", "connect", "md-b", "md-one")
	find("md-one", "md-far", "v4")
	find("md-far", "md-one", "v6")
	e.Must("network", "disconnect", "md-b", "md-one")
}
