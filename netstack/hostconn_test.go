package netstack

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newHosts returns a poller that runs until the test ends.
func newHosts(t *testing.T) *hostPoller {
	t.Helper()
	checkLeaks(t)
	h := new(hostPoller)
	if err := h.init(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- h.run() }()
	t.Cleanup(func() {
		h.close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return h
}

func TestDialHost(t *testing.T) {
	h := newHosts(t)
	cfg := &Config{Limits: Limits{DialTimeout: 200 * time.Millisecond}}
	for _, addr := range []string{"127.0.0.1", "::1"} {
		for _, c := range []struct {
			name string
			to   netip.AddrPort
			want error
		}{
			{"listens", netip.AddrPortFrom(netip.MustParseAddr(addr), listenTCP(t, addr)), nil},
			{"refuses", refusingPort(t, "tcp", addr), syscall.ECONNREFUSED},
		} {
			conn, err := dialHost(t.Context(), h, cfg, c.to)
			if !errors.Is(err, c.want) || (err == nil) != (conn != nil) {
				t.Errorf("%s, %s: %v, want %v", addr, c.name, err, c.want)
			}
			if conn != nil {
				conn.close()
				conn.close() // a second time does nothing
				if err := conn.closeWrite(); !errors.Is(err, os.ErrClosed) {
					t.Errorf("closeWrite after close: %v", err)
				}
			}
		}
	}
	hole := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), blackHole(t))
	if _, err := dialHost(t.Context(), h, cfg, hole); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("black hole: %v, want a timeout", err)
	}
	cfg.Control = func(network, address string, c syscall.RawConn) error { return syscall.EPERM }
	if _, err := dialHost(t.Context(), h, cfg, hole); !errors.Is(err, syscall.EPERM) {
		t.Errorf("control hook that refuses: %v", err)
	}
	if n := len(h.waiting); n != 0 {
		t.Errorf("%d sockets are still watched", n)
	}
}

// TestUrgentData is a host that sends urgent data: a read stops before it, and
// what follows comes without another event.
func TestUrgentData(t *testing.T) {
	l := newLAN(t, nil)
	g, _ := l.join(t, 0, DriverTap, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	sent := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			sent <- err
			return
		}
		defer c.Close()
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err == nil {
			cerr := raw.Control(func(fd uintptr) {
				for _, m := range []struct {
					text  string
					flags int
				}{{"before", 0}, {"!", unix.MSG_OOB}, {"after", 0}} {
					err = errors.Join(err, unix.Sendto(int(fd), []byte(m.text), m.flags, nil))
				}
			})
			err = errors.Join(err, cerr)
		}
		sent <- err
	}()
	r := g.do("read", request{Network: "tcp", Addr: hostPortOf(outside4, ln.Addr().(*net.TCPAddr).AddrPort().Port()), Timeout: 5 * time.Second})
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if r.Text != "beforeafter" {
		t.Errorf("guest reads %q", r.Text)
	}
}

// TestTaskAgain is an event that comes while a worker deals with the one before.
func TestTaskAgain(t *testing.T) {
	checkLeaks(t)
	p := new(Port)
	f := &tcpFlow{port: p}
	began, release, runs := make(chan int), make(chan struct{}), 0
	f.up.flow, f.up.do = f, func(*tcpFlow, *worker) {
		runs++
		began <- runs
		<-release
	}
	f.up.wake()
	for want := 1; want <= 2; want++ {
		if got := <-began; got != want {
			t.Fatalf("run %d, want %d", got, want)
		}
		if want == 1 {
			f.up.wake() // both together are one run more
			f.up.wake()
		}
		release <- struct{}{}
	}
	p.workers.close()
	if runs != 2 || p.workers.start(&f.up) {
		t.Errorf("%d runs, want 2 and no more after close", runs)
	}
}

// TestEventAllocs: what moves the bytes of an established connection does not
// allocate to be woken.
func TestEventAllocs(t *testing.T) {
	checkLeaks(t)
	p := new(Port)
	f := &tcpFlow{port: p}
	ran := make(chan struct{}, 1)
	f.up.flow, f.up.do = f, func(*tcpFlow, *worker) { ran <- struct{}{} }
	n := testing.AllocsPerRun(1000, func() {
		f.up.wake()
		<-ran
		for f.up.state.Load() != taskIdle {
			runtime.Gosched()
		}
	})
	p.workers.close()
	if n != 0 {
		t.Errorf("%v allocations for each event", n)
	}
}
