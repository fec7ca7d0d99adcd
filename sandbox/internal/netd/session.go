package netd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/netstack"
	"github.com/rootless-sbx/sbx/portfwd"
)

// session is one connection: at most one sandbox.
type session struct {
	s    *server
	conn *wire.Conn
	done chan struct{} // closed when everything of it is gone

	// Used by the serving goroutine alone, until it ends.
	id    string
	lease Lease
	guest *guest
	port  *netstack.Port

	fwd portfwd.Manager // guarded by s.mu for stats
}

// serve answers requests until the connection ends, and then undoes everything.
func (x *session) serve() {
	defer close(x.done)
	if err := x.conn.Serve(x.handle); err != nil {
		x.s.log.Warn("control connection", "sandbox", x.id, "err", err)
	}
	x.detach()
	x.conn.Close()
}

func (x *session) handle(m *wire.Message) {
	body, err := x.answer(m)
	if err := x.conn.Reply(m, body, err); err != nil {
		x.conn.Close()
	}
}

func (x *session) answer(m *wire.Message) (any, error) {
	switch m.Type {
	case msgHello:
		return Hello{PID: os.Getpid(), Network: x.s.name}, nil
	case msgLease:
		var req LeaseRequest
		if err := m.Decode(&req); err != nil {
			return nil, err
		}
		return x.takeLease(req)
	case msgAttach:
		var req Attach
		if err := m.Decode(&req); err != nil {
			return nil, err
		}
		ports, err := x.attach(m, req)
		return Attached{Ports: ports}, err
	case msgStats:
		return x.s.stats(), nil
	}
	return nil, fmt.Errorf("unknown request %q", m.Type)
}

func (x *session) takeLease(req LeaseRequest) (*Lease, error) {
	if x.id != "" {
		return nil, errors.New("this connection has a lease already")
	}
	l, err := x.s.ipam.Lease(req.ID, netstack.LeaseWant{Name: req.Name, Addr4: req.Want4, Addr6: req.Want6})
	if err != nil {
		return nil, err
	}
	x.id = req.ID
	sub4, sub6 := x.s.ipam.Subnets()
	gw4, gw6 := x.s.ipam.Gateways()
	x.lease = Lease{MAC: l.MAC, Gateway4: gw4, Gateway6: gw6, MTU: netstack.DefaultMTU}
	if l.Addr4.IsValid() {
		x.lease.Addr4 = netip.PrefixFrom(l.Addr4, sub4.Bits())
	}
	if l.Addr6.IsValid() {
		x.lease.Addr6 = netip.PrefixFrom(l.Addr6, sub6.Bits())
	}
	return &x.lease, x.s.save()
}

// attach connects the link and publishes the ports. What fails is undone when the
// connection ends, which the monitor then does.
func (x *session) attach(m *wire.Message, req Attach) ([]port.Status, error) {
	if x.id == "" || x.port != nil {
		return nil, errors.New("attach needs a lease and comes once")
	}
	link, err := m.Take("link")
	if err != nil {
		return nil, err
	}
	sockets, err := m.Take("sockets")
	if err != nil {
		link.Close()
		return nil, err
	}
	x.port, err = x.s.net.Attach(netstack.PortConfig{
		ID: x.id, Name: x.id[:min(12, len(x.id))], MAC: x.lease.MAC,
		Addr4: x.lease.Addr4.Addr(), Addr6: x.lease.Addr6.Addr(),
		Link: link, Driver: req.Driver, HdrLen: req.HdrLen, HostPorts: req.HostPorts,
	})
	if err != nil {
		link.Close()
		sockets.Close()
		return nil, err
	}
	if x.guest, err = newGuest(x.lease, sockets); err != nil {
		return nil, err
	}
	if len(req.Ports) == 0 {
		return nil, nil
	}
	return x.publish(req)
}

func (x *session) publish(req Attach) ([]port.Status, error) {
	sub4, sub6 := x.s.ipam.Subnets()
	gw4, gw6 := x.s.ipam.Gateways()
	fwd, err := portfwd.New(portfwd.Config{
		Driver: req.PortDriver, Guest: x.guest, Stack: x.s.net,
		Gateway4: gw4, Gateway6: gw6, Subnets: []netip.Prefix{sub4, sub6},
		StateDir: req.BuiltinDir, Logger: x.s.log,
	})
	if err != nil {
		return nil, err
	}
	x.s.mu.Lock()
	x.fwd = fwd
	x.s.mu.Unlock()
	var list []port.Status
	for _, spec := range req.Ports {
		st, err := fwd.AddPort(context.Background(), spec)
		if err != nil {
			return nil, err
		}
		list = append(list, *st)
	}
	return list, nil
}

// detach undoes attach and lease, in reverse order.
func (x *session) detach() {
	warn := func(what string, err error) {
		if err != nil {
			x.s.log.Warn(what, "sandbox", x.id, "err", err)
		}
	}
	if x.fwd != nil {
		warn("close published ports", x.fwd.Close())
	}
	if x.guest != nil {
		warn("close the socket service", x.guest.close())
	}
	if x.port != nil {
		warn("close the link", x.port.Close())
	}
	if x.id != "" && x.s.ipam.Release(x.id) {
		x.s.mu.Lock()
		closing := x.s.closing
		x.s.mu.Unlock()
		if !closing { // else the file is gone for good
			warn("save the leases", x.s.save())
		}
	}
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	delete(x.s.sessions, x)
	x.s.active = time.Now()
}

func (s *server) stats() *Stats {
	st := &Stats{PID: os.Getpid(), Network: s.net.Stats(), DNS: s.dns.Stats(), Ports: map[string]portfwd.Stats{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	for x := range s.sessions {
		if x.fwd != nil {
			st.Ports[x.id] = x.fwd.Stats()
		}
	}
	return st
}
