package security

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

// floods are what a sandbox sends at full speed, and the drop that its network counts.
var floods = []struct {
	kinds, drop string
	flags       []string
}{
	{"udp", "udp-flows", nil},
	{"udp-one,fragments,malformed", "fragments", nil},
	{"syn", "", nil},
	{"ping,ping-gateway,arp,nd", "ping", nil},
	{"dns", "", nil},
	{"broadcast,multicast", "flood", nil},
	{"sockets", "", []string{"--cap-drop", "ALL"}},
	{"streams", "", []string{"--cap-drop", "ALL"}},
}

// What the others keep of their round trips and of their throughput while one floods,
// at least: on its own network, and on another one. Most of what they lose is processor
// time that the flooding programs take, for the test sets no limit.
const (
	shareSame  = 1.0 / 100
	shareOther = 1.0 / 20
)

// paced is what one sandbox gets from an echo server.
type paced struct{ rounds, p50, p99, bytes float64 }

func (p paced) String() string {
	return fmt.Sprintf("%4.0f round trips, p50 %.0f p99 %.0f us, %.2f Gbit/s", p.rounds, p.p50, p.p99, p.bytes*8/paceWindow.Seconds()/1e9)
}

const paceWindow = 120 * time.Millisecond

// TestFlood: a sandbox that floods its network takes neither latency nor throughput from
// those of the same and of another network, but for a share.
func TestFlood(t *testing.T) {
	host, ok := harness.HostAddr(t, "4")
	if !ok {
		t.Skip("this machine has no address but loopback")
	}
	e := harness.New(t, harness.BB)
	ln, err := net.Listen("tcp", host+":0")
	must(t, err)
	defer ln.Close()
	go probe.EchoTCP(ln)
	outside := ln.Addr().String()
	for _, n := range []string{"flooded", "quiet"} {
		e.Must("network", "create", n)
		e.AtEnd("network", "rm", n)
	}
	for name, network := range map[string]string{"peer": "flooded", "same": "flooded", "other": "quiet"} {
		e.AtEnd("rm", "-f", name)
		e.Must("run", "-d", "--name", name, "--network", network, harness.BB, "/probe", "echo", "7")
		harness.Eventually(t, 20*time.Second, func() error {
			if r := e.Run("logs", name); !strings.Contains(r.Stdout, "ready") {
				return fmt.Errorf("%s does not serve: %v", name, r)
			}
			return nil
		})
	}
	ways := []struct {
		name, box, addr string
		share           float64
	}{
		{"same network, peer", "same", "peer:7", shareSame},
		{"same network, host", "same", outside, shareSame},
		{"another network, host", "other", outside, shareOther},
	}
	pace := func(t *testing.T, box, addr string) (p paced) {
		_, err := fmt.Sscan(e.In(t).Must("exec", box, "/probe", "pace", addr, fmt.Sprint(paceWindow.Milliseconds())), &p.rounds, &p.p50, &p.p99, &p.bytes)
		must(t, err)
		return p
	}
	alone := map[string]paced{}
	for _, w := range ways {
		alone[w.name] = pace(t, w.box, w.addr)
		t.Logf("nobody floods: %s: %v", w.name, alone[w.name])
	}
	for _, f := range floods {
		t.Run(f.kinds, func(t *testing.T) {
			e := e.In(t)
			defer e.Run("rm", "-f", "bad")
			e.Must(append(append([]string{"run", "-d", "--name", "bad", "--network", "flooded"}, f.flags...), harness.BB, "sleep", "1000")...)
			target := host
			if f.kinds == "streams" {
				target = outside
			}
			p := e.Start("exec", "bad", "/probe", "storm", f.kinds, target)
			p.WaitOut("storm", 10*time.Second)
			for _, w := range ways {
				// A busy machine may take the time of one window; a flood takes it of all.
				var got paced
				for range 5 {
					got = pace(t, w.box, w.addr)
					if got.rounds >= w.share*alone[w.name].rounds && got.bytes >= w.share*alone[w.name].bytes {
						break
					}
				}
				t.Logf("%s: %v", w.name, got)
				if got.rounds < w.share*alone[w.name].rounds || got.bytes < w.share*alone[w.name].bytes {
					t.Errorf("%s: less than %.0f %% are left: %v; alone %v", w.name, 100*w.share, got, alone[w.name])
				}
			}
			c := counters(t, e, "flooded")["bad"]
			flood := func() bool { return c.FromGuest.Frames >= 1000 && (f.drop == "" || c.Drops[f.drop] > 0) }
			harness.Eventually(t, 20*time.Second, func() error { // it has what a busy machine leaves it
				if c = counters(t, e, "flooded")["bad"]; !flood() {
					return fmt.Errorf("that was no flood: %+v", c)
				}
				return nil
			})
			t.Logf("counted: %+v", c)
		})
	}
	for name, c := range counters(t, e, "flooded") {
		for reason, n := range c.Drops {
			if n > 1000 { // some come with every interface
				t.Errorf("%s, who did nothing: %d frames dropped: %s", name, n, reason)
			}
		}
	}
}

// TestNetworkLimits: a network's own limits hold, what exceeds them is counted, and so
// is a question for a cloud's secrets.
func TestNetworkLimits(t *testing.T) {
	host, ok := harness.HostAddr(t, "4")
	if !ok {
		t.Skip("this machine has no address but loopback")
	}
	e := harness.New(t, harness.BB)
	e.AtEnd("network", "rm", "small")
	e.Must("network", "create", "-o", "udp-flows=5", "-o", "tcp-flows=7", "-o", "rebind-protection=true", "small")
	e.AtEnd("rm", "-f", "box")
	e.Must("run", "-d", "--name", "box", "--network", "small", harness.BB, "sleep", "1000")
	for _, to := range []string{"169.254.169.254:80", "[fd00:ec2::254]:80"} {
		if out := e.Must("exec", "box", "/probe", "dial", "tcp", to); strings.HasPrefix(out, "ok") || strings.HasPrefix(out, "ETIMEDOUT") {
			t.Errorf("%s: %s", to, out)
		}
	}
	p := e.Start("exec", "box", "/probe", "storm", "udp", host)
	p.WaitOut("storm", 10*time.Second)
	harness.Eventually(t, 10*time.Second, func() error {
		c := counters(t, e, "small")["box"]
		if c.UDPFlows != 5 || c.Drops["udp-flows"] == 0 || c.Drops["metadata"] < 2 {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
}

// count is what a network counted of a sandbox.
type count struct {
	FromGuest, ToGuest                  struct{ Frames, Bytes uint64 }
	TCPFlows, TCPDials, UDPFlows, Pings int
	Drops                               map[string]uint64
}

// counters of a network, by the names of its sandboxes.
func counters(t *testing.T, e *harness.Env, network string) map[string]count {
	t.Helper()
	var list []struct {
		Containers map[string]struct {
			Name     string
			Counters count
		}
	}
	must(t, json.Unmarshal([]byte(e.In(t).Must("network", "inspect", network)), &list))
	found := map[string]count{}
	for _, c := range list[0].Containers {
		found[c.Name] = c.Counters
	}
	return found
}
