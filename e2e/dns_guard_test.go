package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/sandbox"
)

// dnsStats are what a network says of its name server.
func dnsStats(t *testing.T, e *harness.Env, network string) (s struct{ Inside, Limited, Upstream uint64 }) {
	t.Helper()
	var list []sandbox.NetworkInspection
	if err := json.Unmarshal([]byte(e.Must("network", "inspect", network)), &list); err != nil || len(list) != 1 || list[0].Status == nil {
		t.Fatalf("%v, %+v", err, list)
	}
	d := list[0].Status.DNS
	s.Inside, s.Limited, s.Upstream = d.Inside, d.Limited, d.Upstream
	return s
}

// TestRebinding: a name server outside has names with addresses inside. They are counted and
// told, and with -o rebind-protection=true they lead nowhere; whatever the name, what may be
// reached is what the flags of the sandbox say.
func TestRebinding(t *testing.T) {
	e := harness.New(t, harness.BB)
	newMachine(t, e)
	makeNetwork(t, e, "rb-open")
	makeNetwork(t, e, "rb-guard", "-o", "rebind-protection=true")
	inside := map[string]string{"web.test": "10.9.9.9", "me.test": "10.9.0.2", "loop.test": "127.0.0.1", "cloud.test": "169.254.169.254", "six.test": "fd00:9::9"}
	for network, flag := range map[string]string{"rb-open": "refused=false", "rb-guard": "refused=true"} {
		box, cloud := network+"-box", network+"-cloud"
		detached(t, e, box, "--network", network, harness.BB, "sleep", "1000")
		detached(t, e, cloud, "--network", network, "--metadata-access", harness.BB, "sleep", "1000")
		begun := time.Now()
		look := func(name string) string { return strings.TrimSpace(e.Must("exec", box, "/probe", "lookup", name)) }
		for name, addr := range inside {
			if got, want := look(name), map[bool]string{true: addr, false: "error no such host"}[network == "rb-open"]; got != want {
				t.Errorf("%s on %s: %q, want %q", name, network, got, want)
			}
		}
		if n := dnsStats(t, e, network).Inside; n != uint64(len(inside)) {
			t.Errorf("%s counts %d answers, want %d", network, n, len(inside))
		}
		log, err := os.ReadFile(filepath.Join(e.Runtime, "sbx/net", network, "log"))
		if err != nil {
			t.Fatal(err)
		}
		// The first of them, and after each 10 seconds another one.
		lines, most := strings.Count(string(log), "DNS rebinding"), 1+int(time.Since(begun)/(10*time.Second))
		if s := string(log); lines < 1 || lines > most || !strings.Contains(s, flag) || !strings.Contains(s, "client="+endpoint(t, e, box, network).IPAddress) {
			t.Errorf("the log of %s: %s", network, s)
		}
		// What is not outside's is no matter of it.
		for name, addr := range map[string]string{"one.test": "192.0.2.1", cloud: endpoint(t, e, cloud, network).IPAddress, "host.sbx.internal": endpoint(t, e, box, network).Gateway} {
			if got := look(name); !strings.Contains(got+" ", addr+" ") {
				t.Errorf("%s on %s: %q, want %s", name, network, got, addr)
			}
		}
		// Metadata of a cloud, by name and by address, and with the flag.
		reaches := func(box, host string, want bool) {
			if r := e.Run("exec", box, "/probe", "get", "http://"+host+"/"); strings.HasPrefix(r.Stdout, "probe ") != want {
				t.Errorf("%s reaches %s: %v, want %v", box, host, r, want)
			}
		}
		reaches(box, "cloud.test", false)
		reaches(box, "169.254.169.254", false)
		reaches(cloud, "169.254.169.254", true)
		reaches(cloud, "cloud.test", network == "rb-open")
		reaches(box, "web.test", network == "rb-open")
		reaches(box, "10.9.9.9", true)
	}
}

// TestQuestionRate: who asks more of the host's name servers than -o dns-rate lets it is
// refused and counted, and its neighbour's questions are answered meanwhile.
func TestQuestionRate(t *testing.T) {
	e := harness.New(t, harness.BB)
	newMachine(t, e)
	const rate = 20 // four at once
	makeNetwork(t, e, "rate", "-o", fmt.Sprint("dns-rate=", rate))
	makeNetwork(t, e, "slowest", "-o", "dns-rate=1")
	detached(t, e, "neighbour", "--network", "rate", harness.BB, "sleep", "1000")
	detached(t, e, "asker", "--network", "rate", harness.BB, "sleep", "1000")
	// One a second is one, not none.
	detached(t, e, "slow", "--network", "slowest", harness.BB, "sleep", "1000")
	for box, rate := range map[string]float64{"slow": 1, "asker": rate} {
		p := e.Start("exec", box, "/probe", "ask-on", "test")
		var n int
		var took float64
		out := p.WaitOut("\n", 20*time.Second)
		if _, err := fmt.Sscanf(out, "refused after %d %f", &n, &took); err != nil || n < 1 || float64(n) > max(1, rate/5)+1+rate*took {
			t.Errorf("%s: %q: %v", box, out, err)
		}
	}
	before := dnsStats(t, e, "rate")
	if before.Limited == 0 || before.Upstream == 0 {
		t.Errorf("counted %+v", before)
	}
	// A lookup is two questions, which are in nobody's cache.
	for name, want := range map[string]string{"one.test": "192.0.2.1", "web.test": "10.9.9.9"} {
		if got := strings.TrimSpace(e.Must("exec", "neighbour", "/probe", "lookup", name)); got != want {
			t.Errorf("the neighbour's %s: %q", name, got)
		}
	}
	if now := dnsStats(t, e, "rate"); now.Limited <= before.Limited {
		t.Errorf("it was not refused meanwhile: %+v, before %+v", now, before)
	}
}
