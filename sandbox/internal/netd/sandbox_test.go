package netd

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/portfwd"
)

func hostAddr(p int) string { return fmt.Sprintf("127.0.0.1:%d", p) }

func guestAddr(b *sandbox, p int) string { return fmt.Sprintf("%s:%d", b.Lease.Addr4, p) }

// check that what must work works: published ports, the network among the
// sandboxes, names, and the opened port of the host.
func (n *network) check(a, b *sandbox, pa, pb []port.Status, hostPort uint16) {
	n.t.Helper()
	for _, ports := range [][]port.Status{pa, pb} {
		for _, p := range ports {
			proto := p.Spec.Proto[:3]
			var got string
			var err error
			for range 300 {
				if got, err = echo(proto, hostAddr(p.Spec.ParentPort)); err == nil {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			if err != nil || !strings.HasSuffix(got, " hello") {
				n.t.Fatalf("published port %+v: %q, %v", p.Spec, got, err)
			}
		}
	}
	want := a.Lease.Addr4.String()
	if got := b.do("dial", order{Addr: guestAddr(a, 7000)}).Text; !strings.HasPrefix(got, b.Lease.Addr4.String()+":") {
		n.t.Errorf("b to a: %q", got)
	}
	if got := a.do("udp", order{Addr: guestAddr(b, 7000)}).Text; !strings.HasPrefix(got, want+":") {
		n.t.Errorf("a to b by UDP: %q", got)
	}
	for _, proto := range []string{"udp", "tcp"} {
		if got := a.do("dns", order{Addr: a.dnsOf(), Name: "host.sbx.internal.", Driver: proto}).Text; !strings.Contains(got, "NOERROR") || !strings.Contains(got, a.Lease.Gateway4.String()) {
			n.t.Errorf("DNS by %s: %s", proto, got)
		}
	}
	gw := fmt.Sprintf("%s:%d", a.Lease.Gateway4, hostPort)
	if got := a.do("dial", order{Addr: gw}).Text; !strings.HasSuffix(got, " hello") {
		n.t.Errorf("port of the host: %q", got)
	}
	if got, err := b.try("dial", order{Addr: gw}); err == nil {
		n.t.Errorf("a port of the host that was not opened for b: %q", got.Text)
	}
}

// echoOnHost serves on the host's loopback.
func echoOnHost(t testing.TB) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 100)
			n, _ := c.Read(b)
			fmt.Fprintf(c, "%s %s", c.RemoteAddr(), b[:n])
			c.Close()
		}
	}()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// TestSandboxes: two sandboxes, each with a monitor in a user namespace of its
// own; then netd is killed, twice, and everything comes back.
func TestSandboxes(t *testing.T) {
	for _, driver := range []string{"tap", "packet"} {
		t.Run(driver, func(t *testing.T) {
			n := newNetwork(t)
			hostPort := echoOnHost(t)
			first := n.ensure() // so that the first process is the host's
			a, b := newSandbox(t), newSandbox(t)
			a.up(n, order{Driver: driver, Lease: LeaseRequest{ID: "a", Name: "web"}, HostPorts: []uint16{hostPort},
				Publish: []portfwd.Spec{{Spec: port.Spec{Proto: "tcp", ParentIP: "127.0.0.1", ChildPort: 7000}}, {Spec: port.Spec{Proto: "udp", ParentIP: "127.0.0.1", ChildPort: 7000}}}})
			b.up(n, order{Driver: driver, Lease: LeaseRequest{ID: "b"}, PortDriver: "stack",
				Publish: []portfwd.Spec{{Spec: port.Spec{Proto: "tcp", ParentIP: "127.0.0.1", ChildPort: 7000}}}})
			if a.Lease.Addr4 == b.Lease.Addr4 || a.Driver != driver || len(a.Ports) != 2 || a.Ports[0].Spec.ParentPort == 0 {
				t.Fatalf("%+v\n%+v", a.outcome, b.outcome)
			}
			a.do("listen", order{Addr: "0.0.0.0:7000"})
			b.do("listen", order{Addr: "0.0.0.0:7000"})
			n.check(a, b, a.Ports, b.Ports, hostPort)
			if st := a.do("stats", order{}); st.Stats.Attached != 2 || st.Stats.Leases != 2 || st.Stats.Port.FromGuest.Frames == 0 || st.Stats.Forward == nil || st.Reattached != 0 {
				t.Errorf("%+v", st)
			}
			extra := a.do("add", order{Spec: port.Spec{Proto: "tcp", ParentIP: "127.0.0.1", ChildPort: 7000}}).Ports[0]
			if got, err := echo("tcp", hostAddr(extra.Spec.ParentPort)); err != nil || !strings.HasSuffix(got, " hello") {
				t.Errorf("added port: %q, %v", got, err)
			}
			a.do("remove", order{ID: a.Ports[0].ID})
			if got, err := echo("tcp", hostAddr(a.Ports[0].Spec.ParentPort)); err == nil {
				t.Errorf("removed port: %q", got)
			}
			ports := a.do("ports", order{}).Ports

			n.kill()
			<-first.Done()
			for range 2 {
				var pid int
				eventually(t, "both attach again", func() bool {
					c := n.ensure()
					defer c.Close()
					st, err := c.Stats(t.Context())
					pid = c.Info().PID
					return err == nil && st.Attached == 2
				})
				n.check(a, b, a.do("ports", order{}).Ports, b.Ports, hostPort)
				if again := a.do("ports", order{}).Ports; fmt.Sprint(again) != fmt.Sprint(ports) {
					t.Errorf("ports %v, before %v", again, ports)
				}
				syscall.Kill(pid, syscall.SIGKILL)
			}
			eventually(t, "attached for the last time", func() bool {
				st, err := b.try("stats", order{})
				return err == nil && st.Stats.Attached == 2 && st.Reattached == 3
			})
			a.do("down", order{})
			b.cmd.Process.Kill() // the connection's end is all that netd needs
			eventually(t, "the process leaves", func() bool {
				files, err := os.ReadDir(n.path(""))
				return err == nil && len(files) == 1
			})
			if got, err := echo("tcp", hostAddr(b.Ports[0].Spec.ParentPort)); err == nil {
				t.Errorf("a published port outlives its sandbox: %q", got)
			}
		})
	}
}

func TestAttachErrors(t *testing.T) {
	n := newNetwork(t)
	host := n.ensure()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port0 := taken.Addr().(*net.TCPAddr).Port
	free := portfwd.Spec{Spec: port.Spec{Proto: "tcp", ParentIP: "127.0.0.1", ChildPort: 80}}
	busy := portfwd.Spec{Spec: port.Spec{Proto: "tcp", ParentIP: "127.0.0.1", ParentPort: port0, ChildPort: 80}}
	a := newSandbox(t)
	o := order{Start: n.StartConfig, Lease: LeaseRequest{ID: "a"}, Publish: []portfwd.Spec{free, busy}}
	if out, err := a.try("up", o); code(err) != "port-in-use" || !strings.Contains(err.Error(), fmt.Sprint(port0)) {
		t.Errorf("%+v, %v", out, err)
	}
	if st, err := host.Stats(t.Context()); err != nil || st.Attached != 0 || st.Leases != 1 {
		t.Errorf("after a failed attach: %+v, %v", st, err)
	}
	a.cmd.Process.Kill()
	eventually(t, "the lease goes with its connection", func() bool {
		st, err := host.Stats(t.Context())
		return err == nil && st.Leases == 0
	})
	// Without sockets from the monitor, ports go through the stack.
	b := newSandbox(t)
	b.up(n, order{Lease: LeaseRequest{ID: "b", Addr4: netip.MustParseAddr(host.Info().Subnet4.Addr().Next().Next().Next().String())}, NoSockets: true, Publish: []portfwd.Spec{{Spec: port.Spec{Proto: "tcp", ParentIP: "127.0.0.1", ChildPort: 7000}}}})
	b.do("listen", order{Addr: "0.0.0.0:7000"})
	if got, err := echo("tcp", hostAddr(b.Ports[0].Spec.ParentPort)); err != nil || !strings.HasPrefix(got, b.Lease.Gateway4.String()+":") {
		t.Errorf("%q, %v", got, err)
	}
	// A port that somebody else took while netd was away costs only itself.
	c := newSandbox(t)
	c.up(n, order{Lease: LeaseRequest{ID: "c"}, Publish: []portfwd.Spec{{Spec: port.Spec{Proto: "tcp", ParentIP: "127.0.0.1", ChildPort: 7000}}, {Spec: port.Spec{Proto: "tcp", ParentIP: "127.0.0.1", ChildPort: 7000}}}})
	c.do("listen", order{Addr: "0.0.0.0:7000"})
	lock, err := openLock(n)
	if err != nil {
		t.Fatal(err)
	}
	n.kill()
	<-host.Done()
	thief, err := net.Listen("tcp", hostAddr(c.Ports[0].Spec.ParentPort))
	if err != nil {
		t.Fatal(err)
	}
	lock.Close() // now they may start another one
	eventually(t, "the other port is back", func() bool {
		got, err := echo("tcp", hostAddr(c.Ports[1].Spec.ParentPort))
		return err == nil && strings.HasSuffix(got, " hello")
	})
	thief.Close()
	start := time.Now()
	eventually(t, "the port is published again", func() bool {
		got, err := echo("tcp", hostAddr(c.Ports[0].Spec.ParentPort))
		return err == nil && strings.HasSuffix(got, " hello")
	})
	if d := time.Since(start); d > portRetry+2*time.Second {
		t.Errorf("after %v", d)
	}
}

// TestKilledMeanwhile: a process that is killed while a sandbox joins, or publishes, is
// followed by one that does it.
func TestKilledMeanwhile(t *testing.T) {
	n := newNetwork(t)
	n.ensure() // so that the first process is the host's
	b := newSandbox(t)
	b.up(n, order{Lease: LeaseRequest{ID: "a", Name: "one"}, Kill: true})
	b.do("listen", order{Addr: guestAddr(b, 80)})
	out := b.do("kill and add", order{Spec: port.Spec{Proto: "tcp", ParentIP: "127.0.0.1", ChildPort: 80}})
	if len(out.Ports) != 2 || out.Ports[0].ID == out.Ports[1].ID {
		t.Fatalf("%+v", out.Ports)
	}
	for _, st := range out.Ports {
		eventually(t, "the port answers", func() bool {
			_, err := echo("tcp", hostAddr(st.Spec.ParentPort))
			return err == nil
		})
	}
	if out := b.do("stats", order{}); out.Reattached != 1 {
		t.Errorf("%+v", out)
	}
	b.do("down", order{})
	eventually(t, "the process leaves", func() bool {
		files, err := os.ReadDir(n.path(""))
		return err == nil && len(files) == 1
	})
}

func openLock(n *network) (*os.File, error) {
	d, err := openDir(n.RuntimeDir, n.Name)
	if err != nil {
		return nil, err
	}
	defer d.close()
	return d.lock(n.t.Context())
}
