package netd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/netstack"
	"github.com/rootless-sbx/sbx/portfwd"
	"golang.org/x/sys/unix"
)

// The monitor of the tests is a process in a user namespace of its own, as the
// real one. Its sandbox is a network namespace with a locked thread inside.

type order struct {
	Start      StartConfig
	Lease      LeaseRequest
	Driver     string // link
	PortDriver string
	HostPorts  []uint16
	Publish    []portfwd.Spec
	Spec       port.Spec
	ID         int
	Addr, Name string
	NoSockets  bool
	Kill       bool // the network's process, between lease and attachment
}

type outcome struct {
	Lease      Lease
	Driver     string
	Ports      []port.Status
	Text       string
	Stats      Stats
	Reattached int
}

type monitor struct {
	guest   chan func()
	netns   *os.File
	sockets *SocketServer
	client  *Client
	keeper  *Keeper
	link    *netstack.GuestLink
}

func monitorRole() error {
	conn, err := wire.NewConn(os.NewFile(3, "control"))
	if err != nil {
		return err
	}
	m := &monitor{guest: make(chan func())}
	ready := make(chan error)
	go m.thread(ready)
	if err := <-ready; err != nil {
		return err
	}
	if m.sockets, err = NewSocketServer(m.netns, nil); err != nil {
		return err
	}
	return conn.Serve(func(q *wire.Message) {
		var o order
		err := q.Decode(&o)
		var out outcome
		if err == nil {
			out, err = m.do(q.Type, o)
		}
		if err := conn.Reply(q, out, err); err != nil {
			fmt.Fprintln(os.Stderr, "monitor: reply:", err)
		}
	})
}

// thread is inside the sandbox's network.
func (m *monitor) thread(ready chan error) {
	runtime.LockOSThread()
	err := unix.Unshare(unix.CLONE_NEWNET)
	if err == nil {
		if m.netns, err = os.Open("/proc/thread-self/ns/net"); err == nil {
			err = netstack.SetupLoopback()
		}
	}
	ready <- err
	for f := range m.guest {
		f()
	}
}

func (m *monitor) inside(f func() error) error {
	err := make(chan error)
	m.guest <- func() { err <- f() }
	return <-err
}

func (m *monitor) do(what string, o order) (out outcome, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	switch what {
	case "up":
		return m.up(ctx, o)
	case "listen":
		return out, m.inside(func() error { return serveEcho(o.Addr) })
	case "dial":
		err = m.inside(func() error {
			out.Text, err = echo("tcp", o.Addr)
			return err
		})
	case "udp":
		err = m.inside(func() error {
			out.Text, err = echo("udp", o.Addr)
			return err
		})
	case "dns":
		err = m.inside(func() error {
			q := new(dns.Msg)
			q.SetQuestion(o.Name, dns.TypeA)
			a, _, err := (&dns.Client{Timeout: 5 * time.Second, Net: o.Driver}).Exchange(q, o.Addr)
			if err == nil {
				out.Text = strings.ReplaceAll(fmt.Sprint(dns.RcodeToString[a.Rcode], a.Answer), "\t", " ")
			}
			return err
		})
	case "ports":
		out.Ports, err = m.keeper.ListPorts(ctx)
	case "add":
		var st *port.Status
		if st, err = m.keeper.AddPort(ctx, o.Spec); err == nil {
			out.Ports = []port.Status{*st}
		}
	case "kill and add":
		err = unix.Kill(m.keeper.current().Info().PID, unix.SIGKILL)
		for range 2 {
			var st *port.Status
			if err == nil {
				st, err = m.keeper.AddPort(ctx, o.Spec)
			}
			if err == nil {
				out.Ports = append(out.Ports, *st)
			}
		}
	case "remove":
		err = m.keeper.RemovePort(ctx, o.ID)
	case "stats":
		out.Stats, out.Reattached, err = m.keeper.Stats(ctx)
	case "down":
		err = errors.Join(m.keeper.Close(), m.link.File.Close(), m.sockets.Close())
	default:
		err = fmt.Errorf("unknown order %q", what)
	}
	return out, err
}

func (m *monitor) up(ctx context.Context, o order) (out outcome, err error) {
	spawn := &spawner{role: "netd"}
	cfg := Config{StartConfig: o.Start, Start: spawn.start}
	if m.client, err = Ensure(ctx, cfg); err != nil {
		return out, err
	}
	lease, err := m.client.Lease(ctx, o.Lease)
	if err != nil {
		return out, err
	}
	gc := lease.GuestConfig()
	gc.Driver = o.Driver
	err = m.inside(func() error {
		m.link, err = netstack.SetupGuest(gc)
		return err
	})
	if err != nil {
		return out, err
	}
	kc := KeepConfig{Config: cfg, Lease: lease, Link: m.link.File, Sockets: m.sockets,
		Attach: AttachRequest{Driver: m.link.Driver, HdrLen: m.link.HdrLen, HostPorts: o.HostPorts, Publish: o.Publish, PortDriver: o.PortDriver},
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))}
	if o.NoSockets {
		kc.Sockets = nil
	}
	if o.Kill {
		if err := unix.Kill(m.client.Info().PID, unix.SIGKILL); err != nil {
			return out, err
		}
	}
	if m.keeper, err = Keep(ctx, m.client, kc); err != nil {
		return out, err
	}
	out.Lease, out.Driver = *lease, m.link.Driver
	out.Ports, err = m.keeper.ListPorts(ctx)
	return out, err
}

// serveEcho answers each line, TCP and UDP, with the client's address and the line.
func serveEcho(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	u, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b, _ := io.ReadAll(io.LimitReader(c, 100))
				fmt.Fprintf(c, "%s %s", c.RemoteAddr(), b)
			}()
		}
	}()
	go func() {
		b := make([]byte, 2000)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			u.WriteTo(fmt.Appendf(nil, "%s %s", from, b[:n]), from)
		}
	}()
	return nil
}

func echo(network, addr string) (string, error) {
	c, err := net.DialTimeout(network, addr, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		return "", err
	}
	if tc, ok := c.(*net.TCPConn); ok {
		if err := tc.CloseWrite(); err != nil {
			return "", err
		}
		b, err := io.ReadAll(c)
		return string(b), err
	}
	b := make([]byte, 2000)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// sandbox is a monitor process as the test sees it.
type sandbox struct {
	t    testing.TB
	cmd  *exec.Cmd
	conn *wire.Conn
	outcome
}

func newSandbox(t testing.TB) *sandbox {
	t.Helper()
	ours, theirs, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"=monitor")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start a monitor in a user namespace: %v", err)
	}
	theirs.Close()
	conn, err := wire.NewConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); conn.Serve(func(*wire.Message) {}) }()
	b := &sandbox{t: t, cmd: cmd, conn: conn}
	t.Cleanup(func() {
		conn.Close()
		<-served
		if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() >= 0 {
			t.Errorf("monitor: %v", err)
		}
	})
	return b
}

func (b *sandbox) try(what string, o order) (out outcome, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m, err := b.conn.Call(ctx, what, o, &out)
	if err == nil {
		m.CloseFiles()
	}
	return out, err
}

func (b *sandbox) do(what string, o order) outcome {
	b.t.Helper()
	out, err := b.try(what, o)
	if err != nil {
		b.t.Fatalf("%s %s%s: %v", what, o.Addr, o.Name, err)
	}
	return out
}

func (b *sandbox) up(n *network, o order) {
	b.t.Helper()
	o.Start = n.StartConfig
	b.outcome = b.do("up", o)
}

// dnsOf is the name server's address.
func (b *sandbox) dnsOf() string { return netip.AddrPortFrom(b.Lease.DNS[0], 53).String() }
