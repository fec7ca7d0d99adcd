package netstack

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// blackHole returns a port of 127.0.0.1 on which connect(2) hangs: the backlog
// of its listener is full, so the kernel drops SYNs.
func blackHole(t *testing.T) uint16 {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := sa.(*unix.SockaddrInet4).Port
	for range 4 {
		c, err := net.DialTimeout("tcp", hostPortOf(netip.MustParseAddr("127.0.0.1"), uint16(port)), 200*time.Millisecond)
		if err != nil {
			return uint16(port) // full
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the listener takes more connections than its backlog")
	return 0
}

// TestBlackHole fills one sandbox's attempts: it gets silence, and nobody else
// waits.
func TestBlackHole(t *testing.T) {
	l := newLAN(t, func(c *Config) { c.Limits = Limits{TCPDials: 4, DialTimeout: 20 * time.Second} })
	a, pa := l.join(t, 0, DriverTap, nil)
	b, _ := l.join(t, 1, DriverTap, nil)
	hole, good := hostPortOf(outside4, blackHole(t)), hostPortOf(outside4, listenTCP(t, "127.0.0.1"))

	results := make(chan error, 6)
	for range cap(results) {
		go func() {
			_, err := a.try("dial", request{Network: "tcp", Addr: hole, Timeout: 1500 * time.Millisecond})
			results <- err
		}()
	}
	for start := time.Now(); pa.Stats().TCPDials < 4; time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 5*time.Second {
			t.Fatalf("%d attempts in flight, want 4", pa.Stats().TCPDials)
		}
	}
	if r := b.do("dial", request{Network: "tcp", Addr: good}); r.Elapsed > 500*time.Millisecond {
		t.Errorf("another sandbox waited %v", r.Elapsed)
	}
	for range cap(results) {
		if err := <-results; !errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("connect to a black hole: %v, want a timeout", err)
		}
	}
	if pa.Stats().Drops[DropTCPDials.String()] == 0 {
		t.Error("attempts over the limit were not counted")
	}
}

// TestTCPSamePort: a client whose port is free at once, because the server closed first,
// takes it again.
func TestTCPSamePort(t *testing.T) {
	l := newLAN(t, nil)
	g, _ := l.join(t, 0, DriverTap, nil)
	for _, c := range []struct {
		network, listen string
		outside         netip.Addr
	}{{"tcp4", "127.0.0.1", outside4}, {"tcp6", "::1", outside6}} {
		ln, err := net.Listen("tcp", net.JoinHostPort(c.listen, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		// Each would take 2 s if it had to wait for the end of the one before it.
		g.do("redial", request{Network: c.network, Addr: hostPortOf(c.outside, ln.Addr().(*net.TCPAddr).AddrPort().Port()), Local: ":40000", Sizes: []int{100}, Timeout: 30 * time.Second})
	}
}

func TestTCPFlowsBound(t *testing.T) {
	l := newLAN(t, func(c *Config) { c.Limits.TCPFlows = 2 })
	g, p := l.join(t, 0, DriverTap, nil)
	addr := hostPortOf(outside4, listenTCP(t, "127.0.0.1"))
	done := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := g.try("rate", request{Network: "tcp", Addr: addr, Transfer: transfer{Op: 'S'}, Timeout: time.Second})
			done <- err
		}()
	}
	for start := time.Now(); p.Stats().TCPFlows < 2; time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 5*time.Second {
			t.Fatal("two flows did not start")
		}
	}
	if _, err := g.try("dial", request{Network: "tcp", Addr: addr, Timeout: 300 * time.Millisecond}); !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("a third connection: %v, want a timeout", err)
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	g.do("tcp", request{Network: "tcp", Addr: addr, Transfer: transfer{'U', 1000, 1}})
}

// TestTCPMemory is as many flows as the memory allows, all of them busy.
func TestTCPMemory(t *testing.T) {
	const flows, memory = 12, 12*192<<10 + 100
	l := newLAN(t, func(c *Config) { c.Limits.TCPMemory = memory })
	g, p := l.join(t, 0, DriverTap, nil)
	addr := hostPortOf(outside4, listenTCP(t, "127.0.0.1"))
	taken := func() (n, sum int) {
		p.flows.mu.Lock()
		defer p.flows.mu.Unlock()
		for f := range p.flows.flows {
			so := f.ep.SocketOptions()
			sum += int(so.GetSendBufferSize()+so.GetReceiveBufferSize()) + int(f.relayBuf.Load())
		}
		return len(p.flows.flows), sum
	}
	done := make(chan error, flows)
	for i := range flows {
		go func() {
			_, err := g.try("rate", request{Network: "tcp", Addr: addr, Transfer: transfer{Op: "SZ"[i%2]}, Timeout: time.Second})
			done <- err
		}()
	}
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		n, sum := taken()
		if sum > memory {
			t.Fatalf("%d flows may take %d bytes, want at most %d", n, sum, memory)
		}
		if n == flows {
			break
		}
		if time.Since(start) > 5*time.Second {
			t.Fatalf("%d of %d flows started", n, flows)
		}
	}
	if _, err := g.try("dial", request{Network: "tcp", Addr: addr, Timeout: 300 * time.Millisecond}); !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("one flow more: %v, want a timeout", err)
	}
	for range flows {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	// With the smallest buffers everything still arrives, and soon.
	errs := make(chan error, flows)
	start := time.Now()
	for i := range flows {
		go func() {
			_, err := g.try("tcp", request{Network: "tcp", Addr: addr, Transfer: transfer{"UD"[i%2], 4 << 20, uint64(i)}})
			errs <- err
		}()
	}
	for range flows {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("%d transfers of 4 MiB took %v", flows, d)
	}
	for start := time.Now(); p.Stats().TCPFlows != 0; time.Sleep(time.Millisecond) {
		if time.Since(start) > 5*time.Second {
			t.Fatal("flows did not end")
		}
	}
	if p.flows.share <= tcpShareMin {
		t.Errorf("buffers stay at %d bytes", p.flows.share)
	}
}

func TestResets(t *testing.T) {
	l := newLAN(t, nil)
	g, p := l.join(t, 0, DriverTap, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	addr := hostPortOf(outside4, ln.Addr().(*net.TCPAddr).AddrPort().Port())

	t.Run("by the guest", func(t *testing.T) {
		go g.try("hangup", request{Network: "tcp", Addr: addr})
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("host reads %v, want ECONNRESET", err)
		}
	})
	t.Run("by the host", func(t *testing.T) {
		for start := time.Now(); p.Stats().TCPFlows != 0; time.Sleep(time.Millisecond) {
			if time.Since(start) > 5*time.Second {
				t.Fatal("the first flow did not end")
			}
		}
		go func() {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			// A reset before the guest's handshake is a refusal to the guest.
			for start := time.Now(); p.Stats().TCPFlows == 0 && time.Since(start) < 5*time.Second; {
				time.Sleep(time.Millisecond)
			}
			resetConn(c.(*net.TCPConn))
		}()
		if _, err := g.try("read", request{Network: "tcp", Addr: addr, Timeout: 5 * time.Second}); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("guest reads %v, want ECONNRESET", err)
		}
	})
}

// TestCloseUnderLoad detaches a port in the middle of everything.
func TestCloseUnderLoad(t *testing.T) {
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			l := newLAN(t, nil)
			g, p := l.join(t, 0, driver, nil)
			addr := hostPortOf(outside4, listenTCP(t, "127.0.0.1"))
			hole := hostPortOf(outside4, blackHole(t))
			started := time.Now()
			for _, op := range []byte{'S', 'Z'} {
				go g.try("rate", request{Network: "tcp", Addr: addr, Transfer: transfer{Op: op}, Timeout: 2 * time.Second})
			}
			go g.try("dial", request{Network: "tcp", Addr: hole, Timeout: 2 * time.Second})
			g.do("udp", request{Network: "udp", Addr: hostPortOf(outside4, listenUDP(t, "127.0.0.1")), Sizes: []int{1}})
			for s := p.Stats(); s.TCPFlows < 2 || s.TCPDials < 1; s = p.Stats() {
				if time.Since(started) > 5*time.Second {
					t.Fatalf("the load did not start: %+v", s)
				}
				time.Sleep(time.Millisecond)
			}
			start := time.Now()
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(start); d > time.Second {
				t.Errorf("Close took %v", d)
			}
			if s := p.Stats(); s.TCPFlows+s.TCPDials+s.UDPFlows != 0 {
				t.Errorf("left after Close: %+v", s)
			}
			select {
			case <-p.Done():
			default:
				t.Error("Done is open after Close")
			}
		})
	}
}

func TestHostPorts(t *testing.T) {
	tcp4, tcp6, udp4, udp6 := listenTCP(t, "127.0.0.1"), listenTCP(t, "::1"), listenUDP(t, "127.0.0.1"), listenUDP(t, "::1")
	l := newLAN(t, nil)
	g, _ := l.join(t, 0, DriverTap, func(pc *PortConfig) { pc.HostPorts = []uint16{udp6, tcp4, tcp6, udp4} })
	for _, gw := range []netip.Addr{l.cfg.Gateway4, l.cfg.Gateway6} {
		for _, port := range []uint16{tcp4, tcp6} {
			g.do("tcp", request{Network: "tcp", Addr: hostPortOf(gw, port), Transfer: transfer{'U', 100000, 1}})
		}
		for _, port := range []uint16{udp4, udp6} {
			g.do("udp", request{Network: "udp", Addr: hostPortOf(gw, port), Sizes: []int{1, 9000, 60000}, Timeout: time.Second})
		}
	}
	other := listenTCP(t, "127.0.0.1")
	if _, err := g.try("dial", request{Network: "tcp", Addr: hostPortOf(l.cfg.Gateway4, other)}); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a port that is not given: %v, want ECONNREFUSED", err)
	}
}

// dnsStub answers with what it was asked.
type dnsStub struct{}

func (dnsStub) Exchange(_ context.Context, query []byte, from netip.Addr, tcp bool) []byte {
	if tcp {
		return []byte("tcp " + string(query) + " " + from.String())
	}
	return []byte("udp " + string(query) + " " + from.String())
}

func TestDNSPort(t *testing.T) {
	l := newLAN(t, func(c *Config) { c.DNS = dnsStub{} })
	g, p := l.join(t, 0, DriverTap, nil)
	// It is one client, whichever of its addresses it uses: its bounds are not for each of them.
	self := p.cfg.Addr4.String()
	for _, gw := range []netip.Addr{l.cfg.Gateway4, l.cfg.Gateway6} {
		if got, want := g.do("exchange", request{Network: "udp", Addr: hostPortOf(gw, 53)}).Text, "udp query "+self; got != want {
			t.Errorf("over UDP: %q, want %q", got, want)
		}
		want := strings.Repeat("tcp query "+self+";", 2)
		if got := g.do("dns-tcp", request{Network: "tcp", Addr: hostPortOf(gw, 53)}).Text; got != want {
			t.Errorf("over TCP: %q, want %q", got, want)
		}
	}
}

func TestUDPFlowsBound(t *testing.T) {
	l := newLAN(t, func(c *Config) { c.Limits.UDPFlows = 2 })
	g, p := l.join(t, 0, DriverTap, nil)
	addr := hostPortOf(outside4, listenUDP(t, "127.0.0.1"))
	for range 2 {
		g.do("udp", request{Network: "udp", Addr: addr, Sizes: []int{1}})
	}
	if _, err := g.try("udp", request{Network: "udp", Addr: addr, Sizes: []int{1}, Timeout: 200 * time.Millisecond}); !errors.Is(err, os.ErrDeadlineExceeded) && err == nil {
		t.Error("a third source port got an answer")
	}
	if s := p.Stats(); s.UDPFlows != 2 || s.Drops[DropUDPFlows.String()] == 0 {
		t.Errorf("stats: %+v", s)
	}
	// Idle mappings go, and make room.
	p.expire(time.Now().Add(121 * time.Second))
	g.do("udp", request{Network: "udp", Addr: addr, Sizes: []int{1}})
}

// TestUDPFilter is RFC 4787's address-dependent filtering: a host socket's
// port is open to those alone whom the guest has written to.
func TestUDPFilter(t *testing.T) {
	l := newLAN(t, nil)
	g, p := l.join(t, 0, DriverTap, nil)
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	answer := make(chan string, 1)
	go func() {
		r, err := g.try("exchange", request{Network: "udp", Addr: hostPortOf(outside4, server.LocalAddr().(*net.UDPAddr).AddrPort().Port()), Timeout: 5 * time.Second})
		if err != nil {
			r.Text = err.Error()
		}
		answer <- r.Text
	}()
	b := make([]byte, 100)
	_, from, err := server.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), from.Port())))
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if _, err := stranger.Write([]byte("forged")); err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); p.Stats().Drops[DropUDPFiltered.String()] == 0; time.Sleep(time.Millisecond) {
		if time.Since(start) > 2*time.Second {
			t.Fatal("a stranger's datagram was not dropped")
		}
	}
	if _, err := server.WriteToUDPAddrPort([]byte("real"), from); err != nil {
		t.Fatal(err)
	}
	if got := <-answer; got != "real" {
		t.Errorf("guest received %q, want the server's answer", got)
	}
}
