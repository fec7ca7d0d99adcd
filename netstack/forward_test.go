package netstack

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

// tcpPair returns the two ends of a connection on the host's loopback.
func tcpPair(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func TestForwardTCP(t *testing.T) {
	l := newLAN(t, nil)
	g, p := l.join(t, 0, DriverTap, nil)
	for _, c := range []struct {
		name         string
		client, want netip.AddrPort
		guest        netip.Addr
	}{
		{"client's own address", netip.MustParseAddrPort("192.0.2.7:4711"), netip.MustParseAddrPort("192.0.2.7:4711"), p.cfg.Addr4},
		{"mapped form", netip.MustParseAddrPort("[::ffff:192.0.2.7]:4712"), netip.MustParseAddrPort("192.0.2.7:4712"), p.cfg.Addr4},
		{"loopback", netip.MustParseAddrPort("127.0.0.1:4713"), netip.AddrPortFrom(l.cfg.Gateway4, 4713), p.cfg.Addr4},
		{"in the subnet", netip.AddrPortFrom(p.cfg.Addr4, 4714), netip.AddrPortFrom(l.cfg.Gateway4, 4714), p.cfg.Addr4},
		{"other family", netip.MustParseAddrPort("192.0.2.7:4715"), netip.AddrPortFrom(l.cfg.Gateway6, 4715), p.cfg.Addr6},
		{"IPv6", netip.MustParseAddrPort("[2001:db8::7]:4716"), netip.MustParseAddrPort("[2001:db8::7]:4716"), p.cfg.Addr6},
		{"IPv6 link-local", netip.MustParseAddrPort("[fe80::7%lo]:4717"), netip.AddrPortFrom(l.cfg.Gateway6, 4717), p.cfg.Addr6},
	} {
		t.Run(c.name, func(t *testing.T) {
			remote := make(chan string, 1)
			go func() {
				r, err := g.try("remote", request{Network: "tcp", Addr: ":8000", Timeout: 10 * time.Second})
				if err != nil {
					r.Text = err.Error()
				}
				remote <- r.Text
			}()
			// The guest's listener may not be there yet: then it refuses.
			for {
				client, host := tcpPair(t)
				if err := client.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				err := l.ForwardTCP(context.Background(), host, c.client, netip.AddrPortFrom(c.guest, 8000))
				if err == nil {
					break
				}
				host.Close()
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Fatal(err)
				}
			}
			if got := <-remote; got != c.want.String() {
				t.Errorf("guest sees %s, want %s", got, c.want)
			}
		})
	}
}

func TestForwardTCPTransfers(t *testing.T) {
	l := newLAN(t, nil)
	g, p := l.join(t, 0, DriverTap, nil)
	g.do("listen", request{Network: "tcp", Addr: ":9000"})
	// Twice the same tuple at once: the second one gets another source port.
	src := netip.MustParseAddrPort("192.0.2.7:4711")
	for _, op := range []byte{'U', 'D'} {
		errs := make(chan error, 4)
		for range 2 {
			client, host := tcpPair(t)
			go func() { errs <- l.ForwardTCP(context.Background(), host, src, netip.AddrPortFrom(p.cfg.Addr4, 9000)) }()
			go func() { errs <- clientTransfer(client, transfer{op, 16 << 20, 1}) }()
		}
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	}
}

// TestForwardTCPOwnRoute is a guest that has a route of its own to the client's
// network, and so cannot answer the client through the gateway.
func TestForwardTCPOwnRoute(t *testing.T) {
	l := newLAN(t, nil)
	g, p := l.join(t, 0, DriverTap, nil)
	g.do("ip", request{Args: []string{"route", "add", "unreachable", "192.0.2.0/24"}})
	g.do("listen", request{Network: "tcp", Addr: ":9000"})
	client, host := tcpPair(t)
	errs := make(chan error, 2)
	go func() {
		errs <- l.ForwardTCP(context.Background(), host, netip.MustParseAddrPort("192.0.2.7:4711"), netip.AddrPortFrom(p.cfg.Addr4, 9000))
	}()
	go func() { errs <- clientTransfer(client, transfer{'U', 1 << 20, 1}) }()
	start := time.Now()
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	}
	if d := time.Since(start); d > 2*ownAddressTimeout {
		t.Errorf("took %v", d)
	}
}

func TestForwardTCPFails(t *testing.T) {
	l := newLAN(t, nil)
	_, p := l.join(t, 0, DriverTap, nil)
	src := netip.MustParseAddrPort("192.0.2.7:4711")
	for name, c := range map[string]struct {
		dst  netip.AddrPort
		want error
	}{
		"refused":   {netip.AddrPortFrom(p.cfg.Addr4, 1), syscall.ECONNREFUSED},
		"no member": {netip.MustParseAddrPort("10.99.0.77:80"), ErrNoSuchGuest},
	} {
		t.Run(name, func(t *testing.T) {
			client, host := tcpPair(t)
			if err := l.ForwardTCP(context.Background(), host, src, c.dst); !errors.Is(err, c.want) {
				t.Errorf("ForwardTCP: %v, want %v", err, c.want)
			}
			// For another attempt, at another address.
			if _, err := host.Write([]byte("x")); err != nil {
				t.Errorf("the host's end after it: %v", err)
			}
			host.Close()
			client.SetDeadline(time.Now().Add(5 * time.Second))
			if b, err := io.ReadAll(client); err != nil || string(b) != "x" {
				t.Errorf("the client reads %q, %v", b, err)
			}
		})
	}
	t.Run("canceled", func(t *testing.T) {
		g := newGuest(t)
		g.setup(guestConfig(1, DriverTap, DefaultMTU))
		q, err := l.Attach(portConfig(1, g))
		if err != nil {
			t.Fatal(err)
		}
		g.do("listen", request{Network: "tcp", Addr: ":9000"})
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		client, host := tcpPair(t)
		if err := l.ForwardTCP(ctx, host, src, netip.AddrPortFrom(q.cfg.Addr4, 9000)); err != nil {
			t.Error(err)
		}
		client.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadAll(client); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("client reads %v, want ECONNRESET", err)
		}
	})
}

func TestOpenUDP(t *testing.T) {
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			l := newLAN(t, func(c *Config) { c.MTU = 1500 })
			g, p := l.join(t, 0, driver, nil)
			g.do("listen-udp", request{Network: "udp", Addr: ":9000"})
			for _, dst := range []netip.Addr{p.cfg.Addr4, p.cfg.Addr6} {
				src := netip.MustParseAddrPort("192.0.2.7:4711")
				replies := make(chan string, 16)
				reply := func(_ int, b ...[]byte) { replies <- string(bytes.Join(b, nil)) }
				first, err := l.OpenUDP(src, netip.AddrPortFrom(dst, 9000), reply)
				if err != nil {
					t.Fatal(err)
				}
				second, err := l.OpenUDP(src, netip.AddrPortFrom(dst, 9000), func(_ int, b ...[]byte) { replies <- "second" + string(bytes.Join(b, nil)) })
				if err != nil {
					t.Fatal(err)
				}
				big := string(make([]byte, 60000))
				for _, c := range []struct {
					f          UDPFlow
					send, want string
				}{{first, "x", "x"}, {first, big, big}, {second, "y", "secondy"}} {
					if err := c.f.Send(0, []byte(c.send)); err != nil {
						t.Fatal(err)
					}
					select {
					case got := <-replies:
						if got != c.want {
							t.Errorf("reply of %d bytes, want %d", len(got), len(c.want))
						}
					case <-time.After(5 * time.Second):
						t.Fatal("no reply")
					}
				}
				for _, f := range []UDPFlow{first, second} {
					if err := f.Close(); err != nil {
						t.Error(err)
					}
				}
				if err := first.Send(0, []byte("x")); !errors.Is(err, ErrClosed) {
					t.Errorf("Send after Close: %v", err)
				}

				nobody, err := l.OpenUDP(src, netip.AddrPortFrom(dst, 9001), reply)
				if err != nil {
					t.Fatal(err)
				}
				for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
					if err = nobody.Send(0, []byte("x")); err != nil || time.Since(start) > 2*time.Second {
						break
					}
				}
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("Send to a closed port: %v, want ECONNREFUSED", err)
				}
				if err := nobody.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
