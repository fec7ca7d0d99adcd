package netd

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/netstack"
	"github.com/rootless-sbx/sbx/portfwd"
)

// session is one connection. Its requests are answered one after the other on
// a goroutine of their own, so that the end of the connection is seen, and ends
// the request at work, whatever that waits for.
type session struct {
	s      *server
	conn   *wire.Conn
	ctx    context.Context
	cancel context.CancelFunc
	queue  chan request

	// Used by the working goroutine alone, and after its end.
	log     *slog.Logger
	hello   bool
	known   atomic.Bool // hello, for the reading goroutine
	id      string      // of the lease, "" before it
	lease   Lease       // its name under s.mu: others tell whose port it is
	port    *netstack.Port
	forward portfwd.Manager
	sockets *guestSockets
	dhcp    *netstack.DHCPClient // on an uplink
	member  Member               // under s.mu, too

	released chan struct{} // closed when the lease is given back
}

// request is a message whose descriptors we have taken over. Whoever uses one
// closes it; closing it again does no harm.
type request struct {
	m             *wire.Message
	link, sockets *os.File
}

func (r request) close() {
	for _, f := range []*os.File{r.link, r.sockets} {
		if f != nil {
			f.Close()
		}
	}
}

func newSession(s *server, conn *wire.Conn) *session {
	x := &session{s: s, conn: conn, log: s.log, queue: make(chan request, maxQueued), released: make(chan struct{})}
	x.ctx, x.cancel = context.WithCancel(s.ctx)
	return x
}

// run serves until the connection ends, then takes everything back.
func (x *session) run() {
	defer x.cancel()
	stop := context.AfterFunc(x.ctx, func() { x.conn.Close() })
	defer stop()
	// Lifted after hello.
	if err := x.conn.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		x.log.Warn("connection", "err", err)
	}
	worked := make(chan struct{})
	go func() {
		defer close(worked)
		for r := range x.queue {
			x.work(r)
			r.close()
		}
	}()
	err := x.conn.Serve(x.take)
	failed := err != nil && x.ctx.Err() == nil
	x.cancel()
	close(x.queue)
	<-worked
	if failed {
		x.log.Warn("connection", "err", err)
	}
	x.conn.Close()
	x.detach()
	if x.id != "" {
		x.s.release(x)
	}
}

// take runs on the reading goroutine: it puts the request into the queue, except for
// one that another network's process asks and that takes no time.
func (x *session) take(m *wire.Message) {
	if m.Type == msgResolve && x.known.Load() {
		x.resolve(m)
		return
	}
	r := request{m: m}
	if m.Type == msgAttach {
		// Missing ones are found out by whoever needs them.
		r.link, _ = m.Take(fileLink)
		r.sockets, _ = m.Take(fileSockets)
	}
	err := error(wire.Errorf(CodeTooMany, "%d requests are waiting, the limit", maxQueued))
	if len(m.Body) > maxRequestBody {
		err = wire.Errorf(CodeTooMany, "a request of %d bytes, limit %d", len(m.Body), maxRequestBody)
	} else {
		select {
		case x.queue <- r:
			return
		default:
		}
	}
	r.close()
	x.s.refused.Add(1)
	x.reply(m, nil, err)
}

func (x *session) work(r request) {
	if x.ctx.Err() != nil {
		return // nobody waits for the answer
	}
	body, err := x.handle(r)
	if err != nil {
		x.log.Info("request failed", "request", r.m.Type, "err", err)
	}
	var files []wire.File
	if r.m.Type == msgLease && err == nil && x.s.uplink != nil {
		files = append(files, wire.File{Name: fileUplink, File: x.s.uplink})
	}
	x.reply(r.m, body, err, files...)
}

func (x *session) reply(m *wire.Message, body any, err error, files ...wire.File) {
	if m.ID == 0 {
		return // no reply wanted
	}
	if err := x.conn.Reply(m, body, toWire(err), files...); err != nil && x.ctx.Err() == nil {
		x.s.log.Warn("reply", "request", m.Type, "err", err)
		x.conn.Close() // it does not read: it is gone, or as good as
	}
}

func (x *session) handle(r request) (any, error) {
	misuse := func(why string) (any, error) {
		return nil, wire.Errorf(CodeMisuse, "request %.40q: %s", r.m.Type, why)
	}
	if x.hello == (r.m.Type == msgHello) {
		return misuse("hello comes first, and once")
	}
	switch r.m.Type {
	case msgHello:
		return x.doHello(r.m)
	case msgStats:
		return x.stats(), nil
	case msgMembers:
		return x.s.memberList()
	case msgLeave:
		return nil, x.s.mustLeave(x)
	case msgLease:
		if x.id != "" {
			return misuse("this connection has a lease")
		}
		return x.doLease(r.m)
	case msgRename:
		if x.id == "" {
			return misuse("no lease yet")
		}
		return nil, x.doRename(r.m)
	case msgAttach:
		switch {
		case x.id == "":
			return misuse("no lease yet")
		case x.port != nil:
			return misuse("attached already")
		case r.link == nil:
			return misuse("without the descriptor \"" + fileLink + "\"")
		}
		return x.doAttach(r)
	case msgUpdate:
		if x.port == nil {
			return misuse("not attached")
		}
		var m Member
		if err := r.m.Decode(&m); err != nil {
			return nil, err
		}
		return nil, x.publishNames(m)
	case msgAddPort, msgRmPort, msgPorts:
		if x.port == nil {
			return misuse("not attached")
		}
		return x.doPorts(r.m)
	}
	return misuse("unknown")
}

func (x *session) doHello(m *wire.Message) (any, error) {
	var h Hello
	if err := m.Decode(&h); err != nil {
		return nil, err
	}
	if h.Name != x.s.cfg.Name {
		return nil, wire.Errorf(CodeMisuse, "this is network %s, not %.80q", x.s.cfg.Name, h.Name)
	}
	if h.ID != "" && h.ID != x.s.cfg.ID {
		return nil, &wire.Error{Code: CodeNoNetwork, Msg: "network " + h.Name + " was removed and made anew", Fix: "try again in a few seconds"}
	}
	if err := x.conn.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	x.hello = true
	x.known.Store(true)
	return x.s.info(), nil
}

func (x *session) doLease(m *wire.Message) (any, error) {
	var req LeaseRequest
	if err := m.Decode(&req); err != nil {
		return nil, err
	}
	got, err := x.s.claim(x, req)
	if err != nil {
		return nil, err
	}
	x.id = req.ID
	x.log = x.s.log.With("sandbox", req.ID)
	n := &x.s.cfg.Network
	l := Lease{Lease: got, MTU: x.s.info().MTU, Internal: n.Internal, Uplink: n.Uplink(), Given: x.s.uplink != nil}
	l.Gateway4, l.Gateway6 = n.Gateway4, n.Gateway6
	if got.Addr4.IsValid() {
		l.Prefix4 = netip.PrefixFrom(got.Addr4, n.Subnet4.Bits())
	}
	if got.Addr6.IsValid() {
		l.Prefix6 = netip.PrefixFrom(got.Addr6, n.Subnet6.Bits())
	}
	if l.Uplink {
		if err := x.leaseOutside(&l, req); err != nil {
			return nil, err
		}
	} else {
		l.DNS = valid(l.Gateway4, l.Gateway6)
	}
	x.s.mu.Lock()
	x.lease = l
	x.s.mu.Unlock()
	return l, nil
}

func (x *session) doRename(m *wire.Message) error {
	var req Rename
	if err := m.Decode(&req); err != nil {
		return err
	}
	if req.Name == "" {
		return wire.Errorf(CodeMisuse, "request %q: no name", msgRename)
	}
	if !x.lease.DHCP {
		if _, err := x.s.lease(x.ctx, x.id, netstack.LeaseWant{Name: req.Name}); err != nil {
			return err
		}
	}
	x.s.mu.Lock()
	x.lease.Name = req.Name
	x.s.mu.Unlock()
	if x.port == nil {
		return nil
	}
	return x.publishNames(x.member)
}

// claim makes x the one connection with the lease of a sandbox. The end of a
// sandbox's last connection may not have been seen yet when its next monitor
// comes: it is waited for.
func (s *server) claim(x *session, req LeaseRequest) (netstack.Lease, error) {
	grace := time.NewTimer(leaseGrace)
	defer grace.Stop()
	for holder := s.reserve(x, req.ID); holder != nil; holder = s.reserve(x, req.ID) {
		select {
		case <-holder.released:
			continue
		case <-x.ctx.Done():
		case <-grace.C:
		}
		return netstack.Lease{}, &wire.Error{Code: CodeLeaseTaken, Step: "lease an address", Path: fmt.Sprintf("%.80q", req.ID), Msg: "the sandbox is attached already"}
	}
	want := netstack.LeaseWant{Name: req.Name, Addr4: req.Addr4, Addr6: req.Addr6, MAC: req.MAC}
	if s.cfg.DHCP() || req.DHCP {
		return outsideLease(req), nil
	}
	got, err := s.lease(x.ctx, req.ID, want)
	if err != nil {
		s.mu.Lock()
		delete(s.byID, req.ID)
		s.mu.Unlock()
	}
	return got, err
}

// reserve makes x the connection of a sandbox, unless another one is.
func (s *server) reserve(x *session, id string) (holder *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if holder = s.byID[id]; holder == nil {
		s.byID[id] = x
	}
	return holder
}

// lease takes addresses for a sandbox, or gives those that it has another name.
func (s *server) lease(ctx context.Context, id string, want netstack.LeaseWant) (netstack.Lease, error) {
	return s.defs.Claim(ctx, &s.cfg.Network, id, want, func(id string) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.byID[id] != nil
	})
}

// release ends x being the sandbox. Its addresses stay for as long as it is there.
func (s *server) release(x *session) {
	s.mu.Lock()
	delete(s.byID, x.id)
	s.mu.Unlock()
	close(x.released)
	x.log.Info("sandbox detached")
}

func (x *session) doAttach(r request) (any, error) {
	var req AttachRequest
	if err := r.m.Decode(&req); err != nil {
		return nil, err
	}
	cfg := netstack.PortConfig{ID: x.id, Name: x.lease.Name, MAC: x.lease.MAC, Addr4: x.lease.Addr4, Addr6: x.lease.Addr6,
		Link: r.link, Driver: req.Driver, HdrLen: req.HdrLen, MTU: req.MTU, HostPorts: req.HostPorts, Metadata: req.Metadata, VLAN: req.VLAN, Trunk: slices.Concat(x.s.cfg.Trunk, req.Trunk)}
	if x.lease.DHCP {
		cfg.Addr4 = netip.Addr{} // it may change, and the guest may have a client of its own
	}
	var err error
	if x.port, err = x.s.net.Attach(cfg); err != nil {
		x.port = nil
		return nil, err
	}
	if err := x.publishNames(req.Member); err != nil {
		x.detach()
		return nil, err
	}
	ports, err := x.publish(req, r.sockets)
	if err != nil {
		x.detach()
		return nil, err
	}
	go x.watch(x.port)
	x.log.Info("sandbox attached", "addrs", x.addrs(), "driver", req.Driver, "ports", len(ports.Ports))
	return ports, nil
}

// publish makes the forwarders. All ports or none: a container of which half
// the ports answer is worse than an error.
func (x *session) publish(req AttachRequest, sockets *os.File) (Ports, error) {
	if x.s.cfg.Uplink() {
		return Ports{Ports: []port.Status{}}, nil
	}
	var err error
	if x.sockets, err = newGuestSockets(x.lease, sockets); err != nil {
		x.sockets = nil
		return Ports{}, err
	}
	driver := req.PortDriver
	if sockets == nil && (driver == "" || driver == portfwd.DriverAuto) {
		driver = portfwd.DriverStack
	}
	if x.forward, err = portfwd.New(portfwd.Config{Driver: driver, Guest: x.sockets, Stack: x.s.net, StateDir: req.StateDir,
		Gateway4: x.lease.Gateway4, Gateway6: x.lease.Gateway6, Subnets: x.s.cfg.Subnets(), Logger: x.log}); err != nil {
		x.forward = nil
		return Ports{}, err
	}
	if driver == portfwd.DriverBuiltin {
		if err := x.sockets.startBuiltin(x.ctx, req.StateDir); err != nil {
			return Ports{}, err
		}
	}
	if x.s.cfg.Internal && len(req.Publish) > 0 {
		x.log.Info("the network is internal: ports are not published", "ports", len(req.Publish))
		return Ports{Ports: []port.Status{}}, nil
	}
	out := Ports{Ports: make([]port.Status, len(req.Publish))}
	// What leaves a choice comes second, and takes no other's only port.
	for _, choice := range []bool{false, true} {
		for i, spec := range req.Publish {
			if choice != (spec.ParentPort == 0 || spec.ParentEnd != 0) {
				continue
			}
			st, err := x.addPort(x.ctx, spec)
			if err != nil {
				return Ports{}, err
			}
			out.Ports[i] = *st
		}
	}
	return out, nil
}

// watch ends the connection when the link fails, so that the monitor hears of it.
func (x *session) watch(p *netstack.Port) {
	<-p.Done()
	if err := p.Err(); err != nil {
		x.log.Error("the link failed", "err", err)
		x.cancel()
	}
}

func (x *session) doPorts(m *wire.Message) (any, error) {
	if x.forward == nil { // an uplink
		if m.Type == msgPorts {
			return Ports{Ports: []port.Status{}}, nil
		}
		return nil, &wire.Error{Code: CodeInternal, Step: "publish a port", Path: x.s.cfg.Name, Msg: "the network is an uplink, where the sandbox has all ports of its own address",
			Fix: "connect the sandbox to another network, too"}
	}
	switch m.Type {
	case msgAddPort:
		var spec portfwd.Spec
		if err := m.Decode(&spec); err != nil {
			return nil, err
		}
		if x.s.cfg.Internal {
			return nil, &wire.Error{Code: CodeInternal, Step: "publish a port", Path: x.s.cfg.Name, Msg: "the network is internal", Fix: "connect the sandbox to another network, too"}
		}
		return x.addPort(x.ctx, spec)
	case msgRmPort:
		var id portID
		if err := m.Decode(&id); err != nil {
			return nil, err
		}
		x.unpublish(x.ctx, id.ID)
		if err := x.forward.RemovePort(x.ctx, id.ID); err != nil {
			return nil, err
		}
		return nil, x.publishServices(x.ctx)
	}
	list, err := x.forward.ListPorts(x.ctx)
	return Ports{list}, err
}

func (x *session) stats() Stats {
	st := Stats{DNS: x.s.dns.Stats(), Refused: x.s.refused.Load()}
	x.s.mu.Lock()
	st.Conns, st.Leases = len(x.s.sessions), len(x.s.byID)
	x.s.mu.Unlock()
	st.Attached = len(x.s.net.Stats().Ports)
	if x.port != nil {
		st.Port = x.port.Stats()
	}
	if x.forward != nil {
		f := x.forward.Stats()
		st.Forward = &f
	}
	return st
}

// detach takes back what attach made: forwarders first, so that nothing new
// comes in; then the port, which closes the link.
func (x *session) detach() {
	warn := func(what string, err error) {
		if err != nil {
			x.log.Warn("detach", "what", what, "err", err)
		}
	}
	if x.forward != nil {
		x.unpublish(context.Background(), 0)
		warn("published ports", x.forward.Close())
		x.forward = nil
	}
	if x.sockets != nil {
		x.sockets.close()
		x.sockets = nil
	}
	if x.port != nil {
		x.s.dns.Remove(x.id)
		x.s.names.set(x.lease, nil)
		warn("link", x.port.Close())
		x.port = nil
	}
	if x.dhcp != nil && x.s.ctx.Err() == nil { // a process told to go leaves it to the next
		warn("address from DHCP", x.dhcp.Close())
	}
}
