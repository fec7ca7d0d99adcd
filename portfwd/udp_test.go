package portfwd

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
)

// serveUDP answers datagrams of a guest's socket until the test ends.
func serveUDP(t *testing.T, c *net.UDPConn, answer func(b []byte, from netip.AddrPort) []byte) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 65535)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			c.WriteToUDPAddrPort(answer(b[:n], from), from)
		}
	})
	t.Cleanup(func() {
		c.Close()
		wg.Wait()
	})
}

func same(b []byte, _ netip.AddrPort) []byte { return b }

// askUDP sends a datagram once and waits for the answer. The client's socket is
// connected, so an answer from another address would not arrive.
func askUDP(c net.Conn, b []byte) ([]byte, error) {
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write(b); err != nil {
		return nil, err
	}
	in := make([]byte, 65535)
	n, err := c.Read(in)
	return in[:n], err
}

// udpPlaces leaves out the second address of the host for the driver that always
// answers from the first.
func (s *suite) udpPlaces() []place {
	return slices.DeleteFunc(places(), func(p place) bool { return p.name == "lan4b" && s.driver == DriverBuiltin })
}

func TestUDPSizes(t *testing.T) {
	forEach(t, func(t *testing.T, s *suite) {
		serveUDP(t, s.g.listenUDP(t, "udp", ":53"), same)
		st := s.publish(t, port.Spec{Proto: "udp", ChildPort: 53})
		for _, p := range s.udpPlaces() {
			c := p.ns.dial(t, "udp", p.addr(st.Spec.ParentPort))
			largest := 65507
			if s.keepsSource && strings.Contains(p.host, ":") {
				largest = 65487 // the stack's own limit for IPv6
			}
			for _, n := range []int{1, 512, 1472, 1473, 9000, 60000, largest} {
				b := bytes.Repeat([]byte{byte(n)}, n)
				got, err := askUDP(c, b)
				if err != nil || !bytes.Equal(got, b) {
					t.Errorf("%s, %d bytes: got %d, %v", p.name, n, len(got), err)
				}
			}
			c.Close()
		}
	})
}

func TestUDPSource(t *testing.T) {
	forEach(t, func(t *testing.T, s *suite) {
		serveUDP(t, s.g.listenUDP(t, "udp", ":53"), func(_ []byte, from netip.AddrPort) []byte { return []byte(from.String()) })
		st := s.publish(t, port.Spec{Proto: "udp", ChildPort: 53})
		for _, p := range s.udpPlaces() {
			c := p.ns.dial(t, "udp", p.addr(st.Spec.ParentPort))
			b, err := askUDP(c, []byte("who am I"))
			if err != nil {
				t.Fatalf("%s: %v", p.name, err)
			}
			seen, err := netip.ParseAddrPort(string(b))
			if err != nil {
				t.Fatal(err)
			}
			seen = netip.AddrPortFrom(seen.Addr().Unmap(), seen.Port())
			checkSource(t, s, p, c.LocalAddr().(*net.UDPAddr).AddrPort(), seen)
			c.Close()
		}
	})
}

// The first datagram of a client reaches a server of the other family, too.
func TestUDPOtherFamily(t *testing.T) {
	run(t, DriverDirect, Limits{}, func(t *testing.T, s *suite) {
		serveUDP(t, s.g.listenUDP(t, "udp4", ":53"), same)
		serveUDP(t, s.g.listenUDP(t, "udp6", ":54"), same)
		for host, child := range map[string]int{"::1": 53, "127.0.0.1": 54} {
			st := s.publish(t, port.Spec{Proto: "udp", ChildPort: child})
			c := (*netns)(nil).dial(t, "udp", net.JoinHostPort(host, fmt.Sprint(st.Spec.ParentPort)))
			if got, err := askUDP(c, []byte("x")); err != nil || string(got) != "x" {
				t.Errorf("%s -> %d: %q, %v", host, child, got, err)
			}
		}
	})
}

func TestUDPManyClients(t *testing.T) {
	const clients, rounds = 100, 20
	forEach(t, func(t *testing.T, s *suite) {
		serveUDP(t, s.g.listenUDP(t, "udp", ":53"), same)
		st := s.publish(t, port.Spec{Proto: "udp", ChildPort: 53})
		var wg sync.WaitGroup
		for i := range clients {
			c := lan.dial(t, "udp", net.JoinHostPort(hostLan4.String(), fmt.Sprint(st.Spec.ParentPort)))
			wg.Go(func() {
				defer c.Close()
				for r := range rounds {
					want := fmt.Sprintf("client %d round %d", i, r)
					if got, err := askUDP(c, []byte(want)); err != nil || string(got) != want {
						t.Errorf("%s: %q, %v", want, got, err)
						return
					}
				}
			})
		}
		wg.Wait()
		if n := s.m.Stats(); s.driver != DriverBuiltin && (n.UDPFlows != clients || n.UDPDropped != 0) {
			t.Errorf("%+v", n)
		}
	})
}

func TestUDPLimits(t *testing.T) {
	for _, d := range []string{DriverDirect, DriverStack} {
		t.Run(d, func(t *testing.T) {
			lim := Limits{UDPFlows: 2, UDPIdle: 300 * time.Millisecond, UDPUnreplied: 300 * time.Millisecond}
			run(t, d, lim, func(t *testing.T, s *suite) {
				serveUDP(t, s.g.listenUDP(t, "udp", ":53"), same)
				st := s.publish(t, port.Spec{Proto: "udp", ChildPort: 53})
				addr := net.JoinHostPort("127.0.0.1", fmt.Sprint(st.Spec.ParentPort))
				for range 2 {
					if _, err := askUDP((*netns)(nil).dial(t, "udp", addr), []byte("x")); err != nil {
						t.Fatal(err)
					}
				}
				third := (*netns)(nil).dial(t, "udp", addr)
				third.Write([]byte("x"))
				eventually(t, "the third client's datagram is counted as dropped", func() bool { return s.m.Stats().UDPDropped == 1 })
				eventually(t, "idle flows end", func() bool { return s.m.Stats().UDPFlows == 0 })
				if _, err := askUDP(third, []byte("x")); err != nil {
					t.Error("after the others' end:", err)
				}
			})
		})
	}
}

// A guest port that is closed at first is served once a server starts.
func TestUDPServerStartsLate(t *testing.T) {
	run(t, DriverDirect, Limits{}, func(t *testing.T, s *suite) {
		st := s.publish(t, port.Spec{Proto: "udp", ChildPort: 53})
		c := (*netns)(nil).dial(t, "udp", net.JoinHostPort("127.0.0.1", fmt.Sprint(st.Spec.ParentPort)))
		c.Write([]byte("lost"))
		eventually(t, "refusals on both families", func() bool { return s.m.Stats().Refused >= 2 })
		serveUDP(t, s.g.listenUDP(t, "udp", ":53"), same)
		if got, err := askUDP(c, []byte("x")); err != nil || string(got) != "x" {
			t.Errorf("%q, %v", got, err)
		}
	})
}
