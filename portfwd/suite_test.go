package portfwd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
)

// suite is one driver's set-up for the conformance tests.
type suite struct {
	driver string
	g      *guest
	m      Manager
	// resets says that the driver passes resets and refusals on.
	resets bool
	// keepsSource says that clients go through the stack, at least those of other
	// hosts, and are seen with their own address.
	keepsSource bool
}

// forEach runs a test against every driver and checks that nothing stays.
func forEach(t *testing.T, f func(t *testing.T, s *suite)) {
	for _, d := range []string{DriverDirect, DriverStack, DriverAuto, DriverBuiltin} {
		t.Run(d, func(t *testing.T) { run(t, d, Limits{}, f) })
	}
}

func run(t *testing.T, driver string, lim Limits, f func(t *testing.T, s *suite)) {
	checkLeaks(t)
	s := &suite{driver: driver, resets: driver != DriverBuiltin}
	cfg := Config{Driver: driver, Limits: lim, Gateway4: gateway4, Gateway6: gateway6}
	switch driver {
	case DriverStack, DriverAuto:
		s.g, cfg.Stack = newStackGuest(t)
		s.keepsSource = true
	default:
		s.g = newGuest(t)
	}
	if driver == DriverBuiltin {
		cfg.StateDir = t.TempDir()
	}
	cfg.Guest = s.g
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.m = m
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error("close:", err)
		}
		if n := m.Stats(); n.Ports != 0 || n.Conns != 0 || n.UDPFlows != 0 {
			t.Errorf("after Close: %+v", n)
		}
		if n := m.(*manager).pipes.used.Load(); n != 0 {
			t.Errorf("%d pipes in use after Close", n)
		}
		if b := m.(*manager).count.udpBytes.Load(); b != 0 {
			t.Errorf("%d bytes of waiting datagrams after Close", b)
		}
	})
	if driver == DriverBuiltin {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- RunBuiltinChild(ctx, BuiltinOpaque(cfg.StateDir), s.g.file, nil) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error("builtin child:", err)
			}
		})
	}
	f(t, s)
}

// publish adds a port and returns its status.
func (s *suite) publish(t *testing.T, spec port.Spec) *port.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	st, err := s.m.AddPort(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// place is where a client is and what it connects to.
type place struct {
	name string
	ns   *netns // nil: on the host
	host string
}

func places() []place {
	return []place{
		{"loopback4", nil, "127.0.0.1"},
		{"loopback6", nil, "::1"},
		{"own4", nil, hostLan4.String()},
		{"own6", nil, hostLan6.String()},
		{"lan4", lan, hostLan4.String()},
		{"lan4b", lan, hostLan4b.String()},
		{"lan6", lan, hostLan6.String()},
	}
}

func (p place) addr(port int) string { return net.JoinHostPort(p.host, fmt.Sprint(port)) }

// checkLeaks fails the test if, after all its other clean-ups, goroutines or
// descriptors remain.
func checkLeaks(t *testing.T) {
	t.Helper()
	settle()
	g0, f0 := runtime.NumGoroutine(), openFiles(t)
	t.Cleanup(func() {
		var g1 int
		var f1 []string
		for range 60 {
			runtime.GC() // pipes that the runtime keeps for reuse
			g1, f1 = runtime.NumGoroutine(), openFiles(t)
			if g1 <= g0 && len(f1) <= len(f0) {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		if g1 > g0 {
			b := make([]byte, 64<<10)
			t.Errorf("%d goroutines, were %d\n%s", g1, g0, b[:runtime.Stack(b, true)])
		}
		if len(f1) > len(f0) {
			t.Errorf("%d descriptors, were %d: %v", len(f1), len(f0), f1)
		}
	})
}

// settle makes what the runtime and the resolver start once start now.
func settle() {
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
	}
}

func openFiles(t *testing.T) []string {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range d {
		l, err := os.Readlink("/proc/self/fd/" + e.Name())
		if errors.Is(err, os.ErrNotExist) || strings.HasSuffix(l, "/fd") {
			continue // the descriptor that lists them
		}
		out = append(out, l)
	}
	return out
}

// eventually waits up to two seconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 200 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("not so after 2 s:", what)
}
