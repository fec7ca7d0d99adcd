package portfwd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/netstack"
)

func ping(t *testing.T, c net.Conn, b []byte) error {
	t.Helper()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(b); err != nil {
		return err
	}
	got := make([]byte, len(b))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, b) {
		return errors.New("wrong bytes")
	}
	return nil
}

func (s *suite) loopback(st *port.Status) string {
	return net.JoinHostPort("127.0.0.1", fmt.Sprint(st.Spec.ParentPort))
}

func TestConnLimit(t *testing.T) {
	for _, d := range []string{DriverDirect, DriverStack} {
		t.Run(d, func(t *testing.T) {
			run(t, d, Limits{Conns: 2}, func(t *testing.T, s *suite) {
				serve(t, s.g.listen(t, "tcp", ":80"), echo)
				st := s.publish(t, port.Spec{Proto: "tcp", ChildPort: 80})
				first := (*netns)(nil).dial(t, "tcp", s.loopback(st))
				second := (*netns)(nil).dial(t, "tcp", s.loopback(st))
				for _, c := range []net.Conn{first, second} {
					if err := ping(t, c, []byte("x")); err != nil {
						t.Fatal(err)
					}
				}
				err := (*netns)(nil).tryDial("tcp", s.loopback(st), func(c net.Conn) error {
					defer c.Close()
					return ping(t, c, []byte("x"))
				})
				if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
					t.Error("third connection:", err)
				}
				if n := s.m.Stats(); n.OverLimit != 1 || n.Conns != 2 {
					t.Errorf("%+v", n)
				}
				first.Close()
				eventually(t, "room again", func() bool { return s.m.Stats().Conns == 1 })
				if err := ping(t, (*netns)(nil).dial(t, "tcp", s.loopback(st)), []byte("x")); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A guest that never answers holds the dials of its own port only, and only for
// the time allowed.
func TestDialLimit(t *testing.T) {
	run(t, DriverDirect, Limits{DialsPerPort: 1, DialTimeout: 200 * time.Millisecond}, func(t *testing.T, s *suite) {
		serve(t, s.g.listen(t, "tcp", ":80"), echo)
		// An address on the guest's link where nobody is.
		hole := s.publish(t, port.Spec{Proto: "tcp", ChildIP: "10.99.0.200", ChildPort: 80})
		good := s.publish(t, port.Spec{Proto: "tcp", ChildPort: 80})
		start := time.Now()
		var clients []net.Conn
		for range 2 {
			clients = append(clients, (*netns)(nil).dial(t, "tcp", s.loopback(hole)))
		}
		if err := ping(t, (*netns)(nil).dial(t, "tcp", s.loopback(good)), []byte("x")); err != nil {
			t.Error("the other port:", err)
		}
		for _, c := range clients {
			c.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Error("black hole:", err)
			}
		}
		if d := time.Since(start); d < 400*time.Millisecond {
			t.Errorf("two dials one after the other took %v", d)
		}
		if n := s.m.Stats().DialErrors; n != 2 {
			t.Errorf("%d dial errors counted", n)
		}
	})
}

func pipesOpen(t *testing.T) (n int) {
	for _, l := range openFiles(t) {
		if strings.HasPrefix(l, "pipe:") {
			n++
		}
	}
	return n
}

// The kernel moves the bytes, and an idle connection holds no pipe.
func TestSplice(t *testing.T) {
	run(t, DriverDirect, Limits{}, func(t *testing.T, s *suite) {
		serve(t, s.g.listen(t, "tcp", ":80"), func(c *net.TCPConn) {
			b := make([]byte, 1) // not io.Copy, which holds pipes
			for {
				if _, err := c.Read(b); err != nil {
					return
				}
				c.Write(b)
			}
		})
		st := s.publish(t, port.Spec{Proto: "tcp", ChildPort: 80})
		pool := s.m.(*manager).pipes
		before := pipesOpen(t)
		for range 50 {
			if err := ping(t, (*netns)(nil).dial(t, "tcp", s.loopback(st)), []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "pipes were used and given back", func() bool { return len(pool.free) > 0 })
		if n := pipesOpen(t) - before; n > 2*cap(pool.free) {
			t.Errorf("50 idle connections hold %d pipe ends", n)
		}
	})
}

// Out of descriptors: established connections go on, new ones wait.
func TestOutOfDescriptors(t *testing.T) {
	run(t, DriverDirect, Limits{SocketPool: -1}, func(t *testing.T, s *suite) {
		serve(t, s.g.listen(t, "tcp", ":80"), echo)
		st := s.publish(t, port.Spec{Proto: "tcp", ChildPort: 80})
		old := (*netns)(nil).dial(t, "tcp", s.loopback(st))
		late := dialFD(t, st.Spec.ParentPort)             // made now, connected later
		if err := ping(t, old, []byte("x")); err != nil { // accepted at the other end, too
			t.Fatal(err)
		}

		restore := exhaustFiles(t)
		big := bytes.Repeat([]byte("0123456789abcdef"), 8<<10)
		if err := ping(t, old, big); err != nil {
			t.Error("established connection:", err)
		}
		if err := late.connect(); err != nil {
			t.Error("connect:", err)
		}
		eventually(t, "accept errors are counted", func() bool { return s.m.Stats().AcceptErrors > 0 })
		restore()
		if err := late.ping(); err != nil {
			t.Error("the connection that waited:", err)
		}
	})
}

// exhaustFiles lowers the limit to what is open.
func exhaustFiles(t *testing.T) (restore func()) {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	low := old
	low.Cur = 0 // no new descriptor at all; the open ones stay
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	restored := false
	restore = func() {
		if !restored {
			restored = true
			if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(restore)
	return restore
}

// lateClient is a blocking socket that is made before it is connected.
type lateClient struct {
	fd   int
	port int
}

func dialFD(t *testing.T, port int) *lateClient {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	return &lateClient{fd, port}
}

func (l *lateClient) connect() error {
	return syscall.Connect(l.fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: l.port})
}

func (l *lateClient) ping() error {
	tv := syscall.Timeval{Sec: 10}
	if err := syscall.SetsockoptTimeval(l.fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &tv); err != nil {
		return err
	}
	if _, err := syscall.Write(l.fd, []byte("x")); err != nil {
		return err
	}
	n, err := syscall.Read(l.fd, make([]byte, 1))
	if err == nil && n != 1 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func TestNewErrors(t *testing.T) {
	checkLeaks(t)
	g := &guest{v4: guest4}
	for name, cfg := range map[string]Config{
		"no guest":          {},
		"no guest address":  {Guest: &guest{}},
		"unknown driver":    {Guest: g, Driver: "x"},
		"no stack":          {Guest: g, Driver: DriverStack},
		"no gateway":        {Guest: g, Driver: DriverStack, Stack: &netstack.Network{}},
		"wrong gateway":     {Guest: g, Driver: DriverStack, Stack: &netstack.Network{}, Gateway6: gateway6},
		"no state dir":      {Guest: g, Driver: DriverBuiltin},
		"long state dir":    {Guest: g, Driver: DriverBuiltin, StateDir: "/tmp/" + strings.Repeat("x", 110)},
		"missing state dir": {Guest: g, Driver: DriverBuiltin, StateDir: t.TempDir() + "/none"},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Without its child, the builtin driver answers in time and can be closed.
func TestBuiltinWithoutChild(t *testing.T) {
	checkLeaks(t)
	dir := t.TempDir()
	m, err := New(Config{Driver: DriverBuiltin, StateDir: dir, Guest: &guest{v4: netip.MustParseAddr("10.99.0.2")}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := m.AddPort(ctx, port.Spec{Proto: "tcp", ChildPort: 80}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Error("left behind:", left, err)
	}
}
