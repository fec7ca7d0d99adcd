package portfwd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"golang.org/x/sys/unix"
)

// serve answers connections of a guest's listener until the test ends.
func serve(t *testing.T, l net.Listener, f func(c *net.TCPConn)) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // a test uses up the descriptors, of this end too
				time.Sleep(5 * time.Millisecond)
				continue
			}
			wg.Go(func() {
				defer c.Close()
				f(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
}

func echo(c *net.TCPConn) {
	if _, err := io.Copy(c, c); err == nil {
		c.CloseWrite()
	}
}

func exchange(t *testing.T, c net.Conn, send string) string {
	t.Helper()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, send); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestTCPEcho(t *testing.T) {
	forEach(t, func(t *testing.T, s *suite) {
		serve(t, s.g.listen(t, "tcp", ":80"), echo)
		st := s.publish(t, port.Spec{Proto: "tcp", ChildPort: 80})
		if st.Spec.ParentPort == 0 {
			t.Fatal("no host port chosen")
		}
		for _, p := range places() {
			c := p.ns.dial(t, "tcp", p.addr(st.Spec.ParentPort))
			if got := exchange(t, c, "hello "+p.name); got != "hello "+p.name {
				t.Errorf("%s: %q", p.name, got)
			}
			c.Close()
		}
	})
}

// What passes by the guest's link is counted at once, and nothing else.
func TestBytesCounted(t *testing.T) {
	for d, want := range map[string]Stats{DriverDirect: {BytesIn: 10, BytesOut: 10}, DriverStack: {}} {
		t.Run(d, func(t *testing.T) {
			run(t, d, Limits{}, func(t *testing.T, s *suite) {
				serve(t, s.g.listen(t, "tcp", ":80"), echo)
				serveUDP(t, s.g.listenUDP(t, "udp", ":80"), same)
				tcp := s.publish(t, port.Spec{Proto: "tcp", ChildPort: 80}).Spec.ParentPort
				udp := s.publish(t, port.Spec{Proto: "udp", ChildPort: 80}).Spec.ParentPort
				c := (*netns)(nil).dial(t, "tcp", net.JoinHostPort("127.0.0.1", fmt.Sprint(tcp)))
				defer c.Close() // it is not over
				c.SetDeadline(time.Now().Add(10 * time.Second))
				if _, err := io.WriteString(c, "seven b"); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(c, make([]byte, 7)); err != nil {
					t.Fatal(err)
				}
				u := (*netns)(nil).dial(t, "udp", net.JoinHostPort("127.0.0.1", fmt.Sprint(udp)))
				defer u.Close()
				if _, err := askUDP(u, []byte("abc")); err != nil {
					t.Fatal(err)
				}
				eventually(t, d+" has counted", func() bool {
					got := s.m.Stats()
					return got.BytesIn == want.BytesIn && got.BytesOut == want.BytesOut
				})
			})
		})
	}
}

// A server of one family is reached by clients of both.
func TestTCPOtherFamily(t *testing.T) {
	for _, d := range []string{DriverDirect, DriverAuto, DriverStack} {
		t.Run(d, func(t *testing.T) {
			run(t, d, Limits{}, func(t *testing.T, s *suite) {
				serve(t, s.g.listen(t, "tcp4", ":81"), echo)
				serve(t, s.g.listen(t, "tcp6", ":82"), echo)
				for host, child := range map[string]int{"::1": 81, "127.0.0.1": 82} {
					st := s.publish(t, port.Spec{Proto: "tcp", ChildPort: child})
					c := (*netns)(nil).dial(t, "tcp", net.JoinHostPort(host, fmt.Sprint(st.Spec.ParentPort)))
					if got := exchange(t, c, "x"); got != "x" {
						t.Errorf("%s -> %d: %q", host, child, got)
					}
				}
			})
		})
	}
}

func TestTCPSource(t *testing.T) {
	forEach(t, func(t *testing.T, s *suite) {
		serve(t, s.g.listen(t, "tcp", ":80"), func(c *net.TCPConn) { fmt.Fprint(c, c.RemoteAddr()) })
		st := s.publish(t, port.Spec{Proto: "tcp", ChildPort: 80})
		for _, p := range places() {
			c := p.ns.dial(t, "tcp", p.addr(st.Spec.ParentPort))
			me := c.LocalAddr().(*net.TCPAddr).AddrPort()
			seen, err := netip.ParseAddrPort(exchange(t, c, ""))
			if err != nil {
				t.Fatal(err)
			}
			seen = netip.AddrPortFrom(seen.Addr().Unmap(), seen.Port())
			checkSource(t, s, p, me, seen)
			c.Close()
		}
	})
}

// checkSource compares the address that the guest saw with what the driver promises.
func checkSource(t *testing.T, s *suite, p place, me, seen netip.AddrPort) {
	t.Helper()
	gw := netip.AddrPortFrom(gateway4, me.Port())
	own := guest4
	if me.Addr().Is6() {
		gw, own = netip.AddrPortFrom(gateway6, me.Port()), guest6
	}
	switch {
	case s.driver == DriverBuiltin:
		own = guest4 // whatever the client's family
		fallthrough
	case s.driver == DriverDirect, s.driver == DriverAuto && p.ns == nil:
		if seen.Addr() != own {
			t.Errorf("%s: the guest saw %s, not its own %s", p.name, seen, own)
		}
	case me.Addr().IsLoopback():
		if seen != gw {
			t.Errorf("%s: the guest saw %s, not the gateway %s", p.name, seen, gw)
		}
	default:
		if seen != me {
			t.Errorf("%s: the guest saw %s, not the client %s", p.name, seen, me)
		}
	}
}

func TestTCPBulk(t *testing.T) {
	const size = 64 << 20
	forEach(t, func(t *testing.T, s *suite) {
		sums := make(chan [32]byte, 1)
		serve(t, s.g.listen(t, "tcp", ":80"), func(c *net.TCPConn) {
			h := sha256.New()
			var wg sync.WaitGroup
			wg.Go(func() { io.Copy(h, c) })
			io.CopyN(c, rand.New(rand.NewSource(2)), size)
			c.CloseWrite()
			wg.Wait()
			sums <- [32]byte(h.Sum(nil))
		})
		st := s.publish(t, port.Spec{Proto: "tcp", ChildPort: 80})
		c := lan.dial(t, "tcp", net.JoinHostPort(hostLan4.String(), fmt.Sprint(st.Spec.ParentPort))).(*net.TCPConn)
		c.SetDeadline(time.Now().Add(60 * time.Second))
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := io.CopyN(c, rand.New(rand.NewSource(1)), size); err != nil {
				t.Error("send:", err)
			}
			c.CloseWrite()
		})
		h := sha256.New()
		if n, err := io.Copy(h, c); n != size || err != nil {
			t.Errorf("received %d bytes: %v", n, err)
		}
		wg.Wait()
		if [32]byte(h.Sum(nil)) != sumOf(2, size) {
			t.Error("to the client: wrong bytes")
		}
		if <-sums != sumOf(1, size) {
			t.Error("to the guest: wrong bytes")
		}
	})
}

func sumOf(seed, size int64) [32]byte {
	h := sha256.New()
	io.CopyN(h, rand.New(rand.NewSource(seed)), size)
	return [32]byte(h.Sum(nil))
}

func TestTCPHalfClose(t *testing.T) {
	forEach(t, func(t *testing.T, s *suite) {
		big := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
		// Answers only after the client's end of stream.
		serve(t, s.g.listen(t, "tcp", ":80"), func(c *net.TCPConn) {
			io.Copy(io.Discard, c)
			time.Sleep(50 * time.Millisecond)
			c.Write(big)
		})
		// Ends its own stream first and goes on reading.
		got := make(chan int64, 1)
		serve(t, s.g.listen(t, "tcp", ":81"), func(c *net.TCPConn) {
			c.CloseWrite()
			n, err := io.Copy(io.Discard, c)
			if err != nil {
				n = -1
			}
			got <- n
		})
		st := s.publish(t, port.Spec{Proto: "tcp", ChildPort: 80})
		c := lan.dial(t, "tcp", net.JoinHostPort(hostLan4.String(), fmt.Sprint(st.Spec.ParentPort)))
		if b := exchange(t, c, "question"); b != string(big) {
			t.Errorf("%d bytes after the client's half-close, want %d", len(b), len(big))
		}
		st = s.publish(t, port.Spec{Proto: "tcp", ChildPort: 81})
		c = lan.dial(t, "tcp", net.JoinHostPort(hostLan4.String(), fmt.Sprint(st.Spec.ParentPort)))
		if b, err := io.ReadAll(c); err != nil || len(b) != 0 {
			t.Errorf("%q, %v", b, err)
		}
		if _, err := c.Write(big); err != nil {
			t.Error("write after the server's half-close:", err)
		}
		c.Close()
		if n := <-got; n != int64(len(big)) {
			t.Errorf("the guest got %d bytes after its half-close, want %d", n, len(big))
		}
	})
}

func TestTCPRefused(t *testing.T) {
	forEach(t, func(t *testing.T, s *suite) {
		st := s.publish(t, port.Spec{Proto: "tcp", ChildPort: 9})
		for _, p := range places() {
			err := p.ns.tryDial("tcp", p.addr(st.Spec.ParentPort), func(c net.Conn) error {
				defer c.Close()
				c.SetDeadline(time.Now().Add(5 * time.Second))
				_, err := c.Read(make([]byte, 1))
				return err
			})
			if s.resets && !errors.Is(err, syscall.ECONNRESET) || !s.resets && err == nil {
				t.Errorf("%s: %v", p.name, err)
			}
		}
		if s.resets {
			eventually(t, "all are counted as refused", func() bool { return s.m.Stats().Refused == uint64(len(places())) })
		}
	})
}

func TestTCPReset(t *testing.T) {
	forEach(t, func(t *testing.T, s *suite) {
		ended := make(chan error, 1)
		serve(t, s.g.listen(t, "tcp", ":80"), func(c *net.TCPConn) {
			c.Write([]byte("x"))
			_, err := c.Read(make([]byte, 1))
			ended <- err
		})
		serve(t, s.g.listen(t, "tcp", ":81"), func(c *net.TCPConn) {
			c.Read(make([]byte, 1))
			c.SetLinger(0)
		})
		st := s.publish(t, port.Spec{Proto: "tcp", ChildPort: 80})
		c := lan.dial(t, "tcp", net.JoinHostPort(hostLan4.String(), fmt.Sprint(st.Spec.ParentPort))).(*net.TCPConn)
		c.Read(make([]byte, 1))
		c.SetLinger(0)
		c.Close()
		select {
		case err := <-ended:
			if s.driver == DriverDirect && !errors.Is(err, syscall.ECONNRESET) {
				t.Error("the guest after the client's reset:", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("the guest's end stayed open after the client's reset")
		}
		st = s.publish(t, port.Spec{Proto: "tcp", ChildPort: 81})
		c = lan.dial(t, "tcp", net.JoinHostPort(hostLan4.String(), fmt.Sprint(st.Spec.ParentPort))).(*net.TCPConn)
		c.SetDeadline(time.Now().Add(5 * time.Second))
		c.Write([]byte("x"))
		_, err := c.Read(make([]byte, 1))
		if s.resets && !errors.Is(err, syscall.ECONNRESET) || err == nil {
			t.Error("the client after the guest's reset:", err)
		}
	})
}

// A client that has ended its stream and then dies is noticed although nothing
// is read from it nor written to it.
func TestTCPResetAfterHalfClose(t *testing.T) {
	run(t, DriverDirect, Limits{}, func(t *testing.T, s *suite) {
		conns := make(chan *net.TCPConn, 1)
		release := make(chan struct{})
		serve(t, s.g.listen(t, "tcp", ":80"), func(c *net.TCPConn) {
			io.Copy(io.Discard, c)
			conns <- c
			<-release
		})
		defer close(release)
		st := s.publish(t, port.Spec{Proto: "tcp", ChildPort: 80})
		c := lan.dial(t, "tcp", net.JoinHostPort(hostLan4.String(), fmt.Sprint(st.Spec.ParentPort))).(*net.TCPConn)
		c.CloseWrite()
		inGuest := <-conns
		time.Sleep(20 * time.Millisecond)
		if tcpState(t, inGuest) != tcpCloseWait {
			t.Fatal("the guest's end is not half-closed")
		}
		reset(c)
		eventually(t, "the guest's end is reset", func() bool { return tcpState(t, inGuest) == tcpClose })
	})
}

const (
	tcpClose     = 7
	tcpCloseWait = 8
)

func tcpState(t *testing.T, c *net.TCPConn) (state uint8) {
	err := control(c, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			state = info.State
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return state
}

func TestTCPManyShort(t *testing.T) {
	const total, workers = 2000, 8
	forEach(t, func(t *testing.T, s *suite) {
		serve(t, s.g.listen(t, "tcp", ":80"), echo)
		st := s.publish(t, port.Spec{Proto: "tcp", ChildPort: 80})
		addr := net.JoinHostPort("127.0.0.1", fmt.Sprint(st.Spec.ParentPort))
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for range total / workers {
					if err := shortConn(addr); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

func shortConn(addr string) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	var b [4]byte
	_, err = io.ReadFull(c, b[:])
	return err
}

func TestCloseResetsConnections(t *testing.T) {
	for _, d := range []string{DriverDirect, DriverStack} {
		t.Run(d, func(t *testing.T) {
			run(t, d, Limits{}, func(t *testing.T, s *suite) {
				serve(t, s.g.listen(t, "tcp", ":80"), echo)
				st := s.publish(t, port.Spec{Proto: "tcp", ChildPort: 80})
				addr := net.JoinHostPort(hostLan4.String(), fmt.Sprint(st.Spec.ParentPort))
				c := lan.dial(t, "tcp", addr)
				io.WriteString(c, "x")
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				if err := s.m.RemovePort(context.Background(), st.ID); err != nil {
					t.Fatal(err)
				}
				c.SetDeadline(time.Now().Add(5 * time.Second))
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Error("after RemovePort:", err)
				}
				if err := lan.do(func() error { _, err := net.Dial("tcp", addr); return err }); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Error("dial after RemovePort:", err)
				}
			})
		})
	}
}

// reset closes a connection with a RST.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}
