package netstack

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// publish forwards what comes to a port of the host's own address to a guest, as a
// published port does, and returns it.
func publish(t *testing.T, l *lan, host netip.Addr, guest netip.AddrPort) uint16 {
	t.Helper()
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(host, 0)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); ln.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			wg.Go(func() {
				if err := l.ForwardTCP(ctx, c, c.RemoteAddr().(*net.TCPAddr).AddrPort(), guest); err != nil {
					c.Close()
				}
			})
		}
	})
	return ln.Addr().(*net.TCPAddr).AddrPort().Port()
}

// TestHairpin: guests reach published ports, their own and others', by the address of
// the gateway and by that of the host, of their own network and of another one, where
// the same port of a guest is published, too.
func TestHairpin(t *testing.T) {
	host, ok := hostAddr(false)
	if !ok {
		t.Skip("this machine has no address but loopback")
	}
	open := func(c *Config) { c.Hairpin, c.Redirect = true, nil }
	one, two := newLAN(t, open), secondLAN(t, open)
	var ports []uint16
	var clients []*guest
	for _, l := range []*lan{one, two} {
		for i := range 2 {
			g, p := l.join(t, i, DriverTap, nil)
			at := netip.AddrPortFrom(p.cfg.Addr4, 80)
			g.do("listen", request{Network: "tcp", Addr: at.String()})
			ports = append(ports, publish(t, l, host, at))
			clients = append(clients, g)
		}
	}
	for i, g := range clients {
		for j, port := range ports {
			for _, a := range []netip.Addr{one.cfg.Gateway4, host} {
				for _, op := range "UD" {
					resp, err := g.try("tcp", request{Network: "tcp", Addr: netip.AddrPortFrom(a, port).String(), Transfer: transfer{Op: byte(op), Size: 100_000, Seed: 3}})
					if err != nil {
						t.Errorf("guest %d to the port of guest %d at %s: %v %v", i, j, a, resp, err)
					}
				}
			}
		}
	}
	// The guest sees the host, an address that it can answer to: neither itself nor a
	// neighbour.
	g, p := one.join(t, 5, DriverTap, nil)
	port := publish(t, one, host, netip.AddrPortFrom(p.cfg.Addr4, 81))
	for name, client := range map[string]*guest{"itself": g, "a neighbour": clients[0], "another network's": clients[3]} {
		ready, seen := make(chan struct{}), make(chan string, 1)
		go func() {
			close(ready)
			resp, err := g.try("remote", request{Network: "tcp", Addr: netip.AddrPortFrom(p.cfg.Addr4, 81).String()})
			if err != nil {
				resp.Text = err.Error()
			}
			seen <- resp.Text
		}()
		<-ready
		var got string
		for got == "" { // until it listens: the forwarder accepts in any case
			if _, err := client.try("dial", request{Network: "tcp", Addr: netip.AddrPortFrom(one.cfg.Gateway4, port).String()}); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			select {
			case got = <-seen:
			case <-time.After(10 * time.Millisecond):
			}
		}
		if a, err := netip.ParseAddrPort(got); err != nil || a.Addr() != host {
			t.Errorf("%s is seen as %q, want %s", name, got, host)
		}
	}
}
