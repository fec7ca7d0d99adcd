package netd

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/netstack"
	"golang.org/x/sys/unix"
)

// raw connects without hello.
func (n *network) raw() *Client {
	n.t.Helper()
	d, err := openDir(n.RuntimeDir, n.Name)
	if err != nil {
		n.t.Fatal(err)
	}
	defer d.close()
	uc, err := d.dial()
	if err != nil {
		n.t.Fatal(err)
	}
	c := newClient(wire.NewUnixConn(uc))
	n.t.Cleanup(func() { c.Close() })
	return c
}

func TestMisuse(t *testing.T) {
	n := newNetwork(t)
	c := n.ensure()
	ctx := t.Context()
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()

	r := n.raw()
	if _, err := r.Lease(ctx, LeaseRequest{ID: "x"}); code(err) != CodeMisuse {
		t.Errorf("lease before hello: %v", err)
	}
	if err := r.call(ctx, msgHello, Hello{Name: "other"}, nil); code(err) != CodeMisuse {
		t.Errorf("hello to another network: %v", err)
	}
	if err := r.call(ctx, msgHello, Hello{Name: "default"}, nil); err != nil {
		t.Errorf("hello: %v", err)
	}
	for what, call := range map[string]func() error{
		"hello twice":         func() error { return c.call(ctx, msgHello, Hello{Name: "default"}, nil) },
		"unknown":             func() error { return c.call(ctx, "nonsense", nil, nil) },
		"attach before lease": func() error { _, err := c.Attach(ctx, AttachRequest{}, null, nil); return err },
		"rename before lease": func() error { return c.Rename(ctx, "x") },
		"port before attach":  func() error { _, err := c.AddPort(ctx, port.Spec{}); return err },
		"list before attach":  func() error { _, err := c.ListPorts(ctx); return err },
	} {
		if err := call(); code(err) != CodeMisuse {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := c.call(ctx, msgStats, strings.Repeat("x", maxRequestBody), nil); code(err) != CodeTooMany {
		t.Errorf("long request: %v", err)
	}
	if err := c.call(ctx, msgLease, "not an object", nil); err == nil {
		t.Error("lease of a string")
	}
	for _, id := range []string{"", strings.Repeat("x", 1000)} {
		if _, err := c.Lease(ctx, LeaseRequest{ID: id}); err == nil {
			t.Errorf("lease for id %q", id)
		}
	}
	if _, err := c.Lease(ctx, LeaseRequest{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Lease(ctx, LeaseRequest{ID: "b"}); code(err) != CodeMisuse {
		t.Errorf("second lease: %v", err)
	}
	if _, err := n.ensure().Lease(ctx, LeaseRequest{ID: "a"}); code(err) != CodeLeaseTaken {
		t.Errorf("the same sandbox twice: %v", err)
	}
	if err := c.call(ctx, msgAttach, AttachRequest{}, nil); code(err) != CodeMisuse {
		t.Errorf("attach without a link: %v", err)
	}
	// /dev/null is no link, but netd cannot tell before it reads it; the
	// connection that brought it is what goes.
	if _, err := c.Attach(ctx, AttachRequest{}, null, null); err == nil {
		t.Error("attached a /dev/null, with itself for sockets")
	}
	if _, err := n.ensure().Stats(ctx); err != nil {
		t.Errorf("the others: %v", err)
	}
}

// TestHostileClients: one floods and does not read, one sends garbage, many
// connect; another client notices nothing.
func TestHostileClients(t *testing.T) {
	n := newNetwork(t)
	good := n.ensure()
	d, err := openDir(n.RuntimeDir, n.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	dial := func() *net.UnixConn {
		t.Helper()
		uc, err := d.dial()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { uc.Close() })
		return uc
	}
	flood := dial()
	flood.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	for i := 0; ; i++ {
		if _, err := flood.Write(fmt.Appendf(nil, `{"v":%d,"t":"hello","id":%d,"b":{"name":"default"}}`, wire.Version, i+1)); err != nil {
			break
		}
	}
	for _, garbage := range []string{"x", "{", `{"v":99,"t":"hello"}`, `{"v":1,"t":"attach","files":["link","link"]}`, `{"v":1,"spill":true}`, strings.Repeat("{", 60000)} {
		dial().Write([]byte(garbage))
	}
	var many []*net.UnixConn
	for range maxConns {
		many = append(many, dial())
	}
	eventually(t, "connections over the bound are refused", func() bool {
		st, err := good.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st.Conns == maxConns && st.Refused > 0
	})
	for _, uc := range many {
		uc.Close()
	}
	flood.Close()
	eventually(t, "they are gone", func() bool {
		st, err := good.Stats(t.Context())
		return err == nil && st.Conns == 1
	})
	if _, err := good.Lease(t.Context(), LeaseRequest{ID: "a"}); err != nil {
		t.Error(err)
	}
}

// TestLeaseAgain: a sandbox's next monitor may come before the end of the last one
// has been seen.
func TestLeaseAgain(t *testing.T) {
	n := newNetwork(t)
	c := n.ensure()
	for range 100 {
		if _, err := c.Lease(t.Context(), LeaseRequest{ID: "a"}); err != nil {
			t.Fatal(err)
		}
		next := n.ensure()
		c.Close()
		c = next
	}
}

func TestTooManySandboxes(t *testing.T) {
	n := newNetwork(t)
	n.Subnet4 = netip.MustParsePrefix("10.77.0.0/30") // room for one beside the gateway
	for i := range 2 {
		_, err := n.ensure().Lease(t.Context(), LeaseRequest{ID: fmt.Sprint(i)})
		if i < 1 && err != nil || i == 1 && code(err) != CodeNoAddress {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// TestSocketService joins both halves in this process; the namespace is its own,
// which needs CAP_SYS_ADMIN to be entered, so without it the refusal is tested.
// TestSandboxes has the service in a user namespace.
func TestSocketService(t *testing.T) {
	checkLeaks(t)
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	s, err := NewSocketServer(ns, nil)
	if os.Geteuid() != 0 {
		if err == nil {
			s.Close()
			t.Fatal("an ordinary user entered the host's namespace")
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	end, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	g, err := newGuestSockets(Lease{Lease: netstack.Lease{ID: "x"}}, end)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for _, kind := range [][2]int{{unix.AF_INET, unix.SOCK_STREAM}, {unix.AF_INET6, unix.SOCK_DGRAM}} {
				f, err := g.Socket(t.Context(), kind[0], kind[1])
				if err != nil {
					t.Error(err)
					return
				}
				if err := checkSocket(f, kind[0], kind[1]); err != nil {
					t.Error(err)
				}
				if checkSocket(f, unix.AF_INET, unix.SOCK_DGRAM) == nil {
					t.Error("a socket of another kind passes")
				}
				f.Close()
			}
		})
	}
	wg.Wait()
	for k, f := range g.spare {
		if len(f) > spareSockets {
			t.Errorf("%d spare sockets of %v", len(f), k)
		}
	}
	for _, bad := range []SocketRequest{{unix.AF_UNIX, unix.SOCK_STREAM, 1}, {unix.AF_INET, unix.SOCK_RAW, 1}, {unix.AF_INET, unix.SOCK_STREAM, 0}, {unix.AF_INET, unix.SOCK_STREAM, maxSockets + 1}} {
		if _, err := g.conn.Call(t.Context(), msgSocket, bad, nil); code(err) != CodeMisuse {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, err := g.conn.Call(t.Context(), "nonsense", nil, nil); code(err) != CodeMisuse {
		t.Errorf("unknown request: %v", err)
	}
	s.Close()
	if _, err := s.Connect(); err == nil {
		t.Error("connected to a closed server")
	}
	for range 2 * spareSockets { // the spare ones, then none
		f, err := g.Socket(context.Background(), unix.AF_INET, unix.SOCK_STREAM)
		if err != nil {
			g.close()
			return
		}
		f.Close()
	}
	t.Error("sockets from a closed server")
}
