package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

// TestOverlappingPorts: the same port of sandboxes on two networks, published on ports
// of the host's and on the same one of two addresses; each answer is from whom it was
// asked of, also for a sandbox that is on both networks.
func TestOverlappingPorts(t *testing.T) {
	e := harness.New(t, harness.BB)
	makeNetwork(t, e, "ov-a")
	makeNetwork(t, e, "ov-b")
	shared, own := e.FreePort(), map[string]int{"ov-one": e.FreePort(), "ov-two": e.FreePort()}
	at := map[string]string{"ov-one": "127.0.0.1", "ov-two": "127.0.0.2"}
	on := map[string]string{"ov-one": "ov-a", "ov-two": "ov-b"}
	for name, network := range on {
		args := []string{"--hostname", name, "--network", "name=" + network + ",alias=ov-shared"}
		for _, proto := range []string{"tcp", "udp"} {
			args = append(args, "-p", fmt.Sprintf("%d:80/%s", own[name], proto), "-p", fmt.Sprintf("%s:%d:80/%s", at[name], shared, proto))
		}
		detached(t, e, name, append(args, harness.BB, "/probe", "who", "80")...)
		until(t, e, "ready", "logs", name)
	}
	detached(t, e, "ov-both", "--network", "ov-b", "--network", "ov-a", harness.BB, "sleep", "1000")
	asked := func(how string, got string, err error, want string) {
		t.Helper()
		if err != nil || !strings.HasSuffix(strings.TrimSpace(got), want) {
			t.Errorf("%s: %q, %v; want it from %s", how, got, err, want)
		}
	}
	for name, network := range on {
		other := map[string]string{"ov-one": "ov-two", "ov-two": "ov-one"}[name]
		p := endpoint(t, e, name, network)
		for _, proto := range []string{"tcp", "udp"} {
			for _, to := range []string{fmt.Sprintf("127.0.0.1:%d", own[name]), fmt.Sprintf("[::1]:%d", own[name]), fmt.Sprintf("%s:%d", at[name], shared)} {
				got, err := probe.Ask(proto, to)
				asked(proto+" "+to, got, err, name)
			}
			for _, host := range []string{name, "ov-shared." + network, p.IPAddress, "[" + p.GlobalIPv6Address + "]"} {
				got := e.Must("exec", "ov-both", "/probe", "ask", proto, host+":80")
				asked("ov-both by "+proto+" "+host, got, nil, name)
			}
			// By the host's address to each other's, through two gateways.
			got := e.Must("exec", other, "/probe", "ask", proto, fmt.Sprintf("host.sbx.internal:%d", own[name]))
			asked(other+" by "+proto+" and the host", got, nil, name)
		}
	}
	e.Fails(125, []string{fmt.Sprint(shared), "in use"}, "run", "--rm", "--network", "ov-a", "-p", fmt.Sprintf("127.0.0.2:%d:80", shared), harness.BB, "true")
}
