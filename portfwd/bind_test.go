package portfwd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/internal/wire"
	"golang.org/x/sys/unix"
)

func TestPortInUse(t *testing.T) {
	forEach(t, func(t *testing.T, s *suite) {
		base := 20000
		for _, tc := range []struct{ network, have, want string }{
			{"tcp4", "127.0.0.1", ""},
			{"tcp4", "127.0.0.1", "127.0.0.1"},
			{"tcp4", "127.0.0.1", "0.0.0.0"},
			{"tcp4", "0.0.0.0", "127.0.0.1"},
			{"tcp4", "0.0.0.0", ""},
			{"tcp6", "[::]", ""},
			{"tcp6", "[::]", "::1"},
			{"tcp6", "[::1]", "::"},
			{"tcp", "[::]", "127.0.0.1"}, // one socket for both families
			{"udp4", "127.0.0.1", ""},
			{"udp4", "0.0.0.0", "127.0.0.1"},
			{"udp6", "[::]", "::1"},
			{"udp", "[::]", "127.0.0.1"},
		} {
			base++
			pid := hold(t, tc.network, fmt.Sprintf("%s:%d", tc.have, base))
			_, err := s.m.AddPort(context.Background(), port.Spec{Proto: tc.network[:3], ParentIP: tc.want, ParentPort: base, ChildPort: 80})
			var e *ErrPortInUse
			if !errors.As(err, &e) {
				t.Errorf("%+v: %v", tc, err)
				continue
			}
			if e.OwnerPID != pid || !strings.Contains(err.Error(), fmt.Sprintf("pid %d (", pid)) {
				t.Errorf("%+v: owner %d %q, want pid %d", tc, e.OwnerPID, e.Owner, pid)
			}
			if e.Free == 0 || int(e.Free) == base {
				t.Errorf("%+v: suggests port %d", tc, e.Free)
			}
			if !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("%+v: not EADDRINUSE: %v", tc, err)
			}
		}
		if l, _ := s.m.ListPorts(context.Background()); len(l) != 0 {
			t.Error("ports after failures:", l)
		}
	})
}

// Neighbours that do not clash.
func TestPortNotInUse(t *testing.T) {
	forEach(t, func(t *testing.T, s *suite) {
		hold(t, "tcp4", "127.0.0.1:21000")
		for _, spec := range []port.Spec{
			{Proto: "tcp", ParentIP: "::1", ParentPort: 21000, ChildPort: 80},
			{Proto: "tcp", ParentIP: hostLan4.String(), ParentPort: 21000, ChildPort: 80},
			{Proto: "udp", ParentPort: 21000, ChildPort: 80},
			{Proto: "tcp6", ParentPort: 21001, ChildPort: 80},
			{Proto: "tcp4", ParentPort: 21001, ChildPort: 80},
		} {
			s.publish(t, spec)
		}
	})
}

func TestOwnPortInUse(t *testing.T) {
	forEach(t, func(t *testing.T, s *suite) {
		s.publish(t, port.Spec{Proto: "tcp", ParentPort: 22000, ChildPort: 80})
		_, err := s.m.AddPort(context.Background(), port.Spec{Proto: "tcp4", ParentIP: "127.0.0.1", ParentPort: 22000, ChildPort: 81})
		var e *ErrPortInUse
		if !errors.As(err, &e) || !strings.Contains(e.Owner, "this sandbox") {
			t.Error(err)
		}
	})
}

func TestPortInUseOverWire(t *testing.T) {
	checkWire(t, &ErrPortInUse{Proto: "tcp", Addr: netip.MustParseAddrPort("127.0.0.1:80"), Owner: "pid 7 (x)", Free: 81}, "port-in-use", syscall.EADDRINUSE)
	checkWire(t, &ErrPrivilegedPort{Proto: "udp", Addr: netip.MustParseAddrPort("[::]:53"), Start: 1024, Free: 8053}, "port-privileged", syscall.EACCES)
	checkWire(t, &ErrNoSuchAddress{Proto: "tcp", Addr: netip.MustParseAddrPort("192.0.2.1:80")}, "port-address", syscall.EADDRNOTAVAIL)
}

func checkWire(t *testing.T, err error, code string, errno syscall.Errno) {
	t.Helper()
	b, jerr := json.Marshal(wire.ToError("start", fmt.Errorf("sandbox: %w", err)))
	if jerr != nil {
		t.Fatal(jerr)
	}
	got := &wire.Error{}
	if err := json.Unmarshal(b, got); err != nil {
		t.Fatal(err)
	}
	if got.Code != code || !errors.Is(got, errno) || got.Fix == "" || got.Path == "" {
		t.Errorf("%s: %+v", b, got)
	}
	if s := err.Error(); !strings.Contains(s, got.Fix) || !strings.Contains(s, got.Path) {
		t.Errorf("text lacks the fix or the address: %s", s)
	}
}

func TestPrivilegedPort(t *testing.T) {
	forEach(t, func(t *testing.T, s *suite) {
		// The test's user is root of its namespace: without this capability, on
		// this thread, the kernel treats it as anybody.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		setNetBindService(t, false)
		defer setNetBindService(t, true)
		_, err := s.m.AddPort(context.Background(), port.Spec{Proto: "tcp", ParentPort: 80, ChildPort: 80})
		var e *ErrPrivilegedPort
		if !errors.As(err, &e) {
			t.Fatal(err)
		}
		if e.Start != 1024 || e.Free < 8080 || !errors.Is(err, syscall.EACCES) {
			t.Errorf("%+v", e)
		}
		if !strings.Contains(err.Error(), "sysctl -w net.ipv4.ip_unprivileged_port_start=80") {
			t.Error("no sysctl line:", err)
		}
	})
}

func setNetBindService(t *testing.T, on bool) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		t.Fatal(err)
	}
	data[0].Effective &^= 1 << unix.CAP_NET_BIND_SERVICE
	if on {
		data[0].Effective |= 1 << unix.CAP_NET_BIND_SERVICE
	}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		t.Fatal(err)
	}
}

func TestNoSuchAddress(t *testing.T) {
	forEach(t, func(t *testing.T, s *suite) {
		_, err := s.m.AddPort(context.Background(), port.Spec{Proto: "tcp", ParentIP: "198.51.100.7", ParentPort: 23000, ChildPort: 80})
		var e *ErrNoSuchAddress
		if !errors.As(err, &e) {
			t.Error(err)
		}
	})
}

// Of several host ports the first is taken that is free for all addresses.
func TestChoice(t *testing.T) {
	forEach(t, func(t *testing.T, s *suite) {
		ctx := context.Background()
		s.publish(t, port.Spec{Proto: "tcp", ParentIP: "::1", ParentPort: 24500, ChildPort: 80})
		choice := Spec{port.Spec{Proto: "tcp", ParentPort: 24500, ChildPort: 80}, 24502}
		for _, want := range []int{24501, 24502} {
			st, err := s.m.Publish(ctx, choice)
			if err != nil || st.Spec.ParentPort != want {
				t.Fatalf("want port %d: %+v, %v", want, st, err)
			}
		}
		_, err := s.m.Publish(ctx, choice)
		var used *ErrPortInUse
		if !errors.As(err, &used) || used.Last != 24502 || !strings.Contains(err.Error(), "24500-24502/tcp: all of these") {
			t.Errorf("%v", err)
		}
		for _, bad := range []Spec{{port.Spec{Proto: "tcp", ChildPort: 80}, 80}, {port.Spec{Proto: "tcp", ParentPort: 81, ChildPort: 80}, 80}, {port.Spec{Proto: "tcp", ParentPort: 81, ChildPort: 80}, 65536}} {
			var e *SpecError
			if _, err := s.m.Publish(ctx, bad); !errors.As(err, &e) {
				t.Errorf("%+v: %v", bad, err)
			}
		}
	})
}

func TestAddListRemove(t *testing.T) {
	forEach(t, func(t *testing.T, s *suite) {
		ctx := context.Background()
		specs, err := ParsePublish([]string{"24000-24004:80-84", "127.0.0.1::53/udp", "81"})
		if err != nil {
			t.Fatal(err)
		}
		for i, spec := range specs {
			st := s.publish(t, spec.Spec)
			if st.ID != i+1 || st.Spec.ParentPort == 0 || spec.ParentPort != 0 && st.Spec != spec.Spec {
				t.Errorf("%+v became %+v", spec, st)
			}
		}
		l, err := s.m.ListPorts(ctx)
		if err != nil || len(l) != 7 {
			t.Fatal(l, err)
		}
		for i, st := range l {
			if st.ID != i+1 {
				t.Error("not sorted:", l)
			}
			if err := s.m.RemovePort(ctx, st.ID); err != nil {
				t.Error(err)
			}
		}
		if err := s.m.RemovePort(ctx, 1); !errors.Is(err, ErrUnknownPort) {
			t.Error("removed twice:", err)
		}
		// All are free again, at once.
		for _, st := range l {
			s.publish(t, st.Spec)
		}
		if err := s.m.Close(); err != nil {
			t.Error(err)
		}
		if _, err := s.m.AddPort(ctx, specs[0].Spec); !errors.Is(err, ErrClosed) {
			t.Error("after Close:", err)
		}
		if err := s.m.Close(); err != nil {
			t.Error("second Close:", err)
		}
	})
}

// Adds, removals and Close at the same time leave nothing.
func TestConcurrentAddClose(t *testing.T) {
	forEach(t, func(t *testing.T, s *suite) {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					st, err := s.m.AddPort(context.Background(), port.Spec{Proto: "tcp", ChildPort: 80})
					if errors.Is(err, ErrClosed) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					if st.ID%3 == 0 {
						if err := s.m.RemovePort(context.Background(), st.ID); err != nil && !errors.Is(err, ErrUnknownPort) {
							t.Error(err)
						}
					}
				}
			})
		}
		eventually(t, "some ports", func() bool { return s.m.Stats().Ports > 20 })
		if err := s.m.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}

func TestRandomPortBothFamilies(t *testing.T) {
	run(t, DriverDirect, Limits{}, func(t *testing.T, s *suite) {
		for range 20 {
			st := s.publish(t, port.Spec{Proto: "tcp", ChildPort: 80})
			for _, host := range []string{"127.0.0.1", "::1"} {
				if l, err := net.Listen("tcp", net.JoinHostPort(host, fmt.Sprint(st.Spec.ParentPort))); err == nil {
					l.Close()
					t.Errorf("%s:%d is not taken", host, st.Spec.ParentPort)
				}
			}
		}
	})
}

func TestBadSpecs(t *testing.T) {
	run(t, DriverStack, Limits{Ports: 1}, func(t *testing.T, s *suite) {
		for _, spec := range []port.Spec{
			{},
			{Proto: "sctp", ParentPort: 1, ChildPort: 1},
			{Proto: "tcp", ParentPort: -1, ChildPort: 80},
			{Proto: "tcp", ParentPort: 65536, ChildPort: 80},
			{Proto: "tcp", ParentPort: 80},
			{Proto: "tcp", ParentIP: "x", ChildPort: 80},
			{Proto: "tcp6", ParentIP: "127.0.0.1", ChildPort: 80},
			{Proto: "tcp", ParentIP: "224.0.0.1", ChildPort: 80},
			{Proto: "tcp", ChildIP: "127.0.0.1", ChildPort: 80}, // not through the stack
		} {
			_, err := s.m.AddPort(context.Background(), spec)
			var e *SpecError
			if !errors.As(err, &e) {
				t.Errorf("%+v: %v", spec, err)
			}
		}
		s.publish(t, port.Spec{Proto: "tcp", ChildPort: 80})
		if _, err := s.m.AddPort(context.Background(), port.Spec{Proto: "tcp", ChildPort: 80}); !errors.Is(err, ErrTooManyPorts) {
			t.Error(err)
		}
	})
}

func TestHolders(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0000000000000000 100 0 0 10 0
   1: 00000000:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 222 1 0000000000000000 100 0 0 10 0
   2: 0100007F:1F92 0100007F:0050 01 00000000:00000000 00:00000000 00000000  1000        0 333 1 0000000000000000 100 0 0 10 0
`
	for want, inode := range map[string]string{
		"127.0.0.1:8080": "111", "0.0.0.0:8080": "111", "127.0.0.2:8080": "",
		"192.0.2.1:8081": "222", "127.0.0.1:8082": "",
	} {
		got := ""
		for _, h := range holders(strings.NewReader(table), "tcp", netip.MustParseAddrPort(want)) {
			got += h.inode
		}
		if got != inode {
			t.Errorf("%s: %q, want %q", want, got, inode)
		}
	}
}

func FuzzHolders(f *testing.F) {
	if b, err := os.ReadFile("/proc/net/tcp6"); err == nil {
		f.Add(string(b))
	}
	f.Add("0: 0100007F:1F90 x 0A x x x 0 x 1")
	f.Fuzz(func(t *testing.T, s string) {
		for _, h := range holders(strings.NewReader(s), "tcp", netip.MustParseAddrPort("[::]:8080")) {
			if h.inode == "" {
				t.Error("no inode")
			}
		}
	})
}
