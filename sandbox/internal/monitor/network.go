package monitor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/netstack"
	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxdir"
	"github.com/rootless-sbx/sbx/sandbox/internal/netd"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

// network is the sandbox's attachment to a network's process. It outlives that
// process: what a new one needs to take over is kept here.
type network struct {
	proto.Attachment
	device string       // eth0, eth1, ...
	client *netd.Client // until keeper has it
	lease  *netd.Lease
	link   proto.Link
	keeper *netd.Keeper
	handle *wire.Handle // duplicate of the link; closing the last one frees the namespace
}

// name is what the network is called in messages between processes.
func (n *network) name() string { return n.Network.Name }

// metric orders the ways out: the highest priority, and of the same the first device.
func (n *network) metric() int {
	i := 0
	fmt.Sscanf(n.device, "eth%d", &i)
	return 64*(maxPriority-max(-maxPriority, min(maxPriority, n.Priority))) + i + 1
}

const maxPriority = 100

// leads says whether the network has a way out.
func (n *network) leads() bool { return !n.lease.Internal }

// wayOut is the network that the sandbox's default route leads to, nil if there is
// none; under nets.
func (m *monitor) wayOut() (best *network) {
	for _, n := range m.nets {
		if n.lease != nil && n.leads() && (best == nil || n.metric() < best.metric()) {
			best = n
		}
	}
	return best
}

// first is the network whose name server the sandbox asks: the way out, or else the
// first.
func (m *monitor) first() *network {
	if n := m.wayOut(); n != nil || len(m.nets) == 0 {
		return n
	}
	return m.nets[0]
}

// netdConfig is how to reach a network's process, or to start another one.
func (m *monitor) netdConfig(a *proto.Attachment) netd.Config {
	return netd.Config{
		StartConfig: netd.StartConfig{RuntimeDir: m.spec.RuntimeDir, DataDir: m.spec.DataDir, Network: a.Network, Linger: m.spec.NetdLinger},
		Start:       netd.Spawn("/proc/self/exe", proto.RoleNetd),
	}
}

// lease asks the networks' processes for addresses.
func (m *monitor) lease(ctx context.Context) error {
	m.netsMu.Lock()
	defer m.netsMu.Unlock()
	for _, a := range m.spec.Network.Attachments {
		n := &network{Attachment: a, device: m.freeDevice()}
		m.nets = append(m.nets, n)
		if err := m.leaseOne(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

func (m *monitor) leaseOne(ctx context.Context, n *network) error {
	name, err := m.name()
	if err != nil {
		return err
	}
	n.client, n.lease, err = netd.Join(ctx, m.netdConfig(&n.Attachment),
		netd.LeaseRequest{ID: m.spec.ID, Name: name, Addr4: n.Addr4, Addr6: n.Addr6, MAC: n.MAC, DHCP: n.DHCP})
	return err
}

// freeDevice is the name of the next device.
func (m *monitor) freeDevice() string {
	for i := 0; ; i++ {
		name := fmt.Sprintf("eth%d", i)
		if !slices.ContainsFunc(m.nets, func(n *network) bool { return n.device == name }) {
			return name
		}
	}
}

// name is the sandbox's name now.
func (m *monitor) name() (string, error) {
	return boxdir.Name(filepath.Split(m.spec.Dir))
}

// renamed tells the networks the sandbox's name. Whoever comes last finds the last one.
func (m *monitor) renamed(ctx context.Context) error {
	m.netsMu.Lock()
	defer m.netsMu.Unlock()
	return m.tellName(ctx)
}

func (m *monitor) tellName(ctx context.Context) error {
	name, err := m.name()
	if err != nil {
		return err
	}
	for _, n := range m.nets {
		if n.keeper == nil {
			continue // its next lease is for the new name
		}
		if err := n.keeper.Rename(ctx, name); err != nil {
			return err
		}
	}
	return m.refreshHosts()
}

// makeLinks lets init make the devices. There are none without a network and in one
// that is not the sandbox's own.
func (m *monitor) makeLinks(ctx context.Context) error {
	if !m.ownNetwork() {
		return nil
	}
	m.netsMu.Lock()
	defer m.netsMu.Unlock()
	list := m.nets
	if len(list) == 0 {
		list = []*network{nil}
	}
	for _, n := range list {
		if err := m.makeLink(ctx, m.init.Conn, n); err != nil {
			return m.initError(err)
		}
	}
	return nil
}

// makeLink has a process in the sandbox's network namespace make a device, or with nil
// the loopback alone.
func (m *monitor) makeLink(ctx context.Context, in *wire.Conn, n *network) error {
	spec := &m.spec.Network
	req := proto.Net{Loopback: n == nil}
	if n != nil {
		req.Guest = m.guestConfig(n)
	}
	var l proto.Link
	reply, err := in.Call(ctx, proto.MsgNet, req, &l)
	if err != nil {
		return err
	}
	defer reply.CloseFiles()
	if m.netns == nil {
		if m.netns, err = reply.Take("netns"); err != nil {
			return err
		}
	}
	if n == nil {
		return nil
	}
	if n.handle, err = reply.TakeHandle("link"); err != nil {
		return err
	}
	n.link = l
	if l.Reason != "" && spec.LinkDriver == "" {
		m.tell(l.Reason)
	}
	return nil
}

// guestConfig is the device as the sandbox is to have it.
func (m *monitor) guestConfig(n *network) netstack.GuestConfig {
	c := n.lease.GuestConfig()
	c.Name, c.Driver, c.Metric = n.device, m.spec.Network.LinkDriver, n.metric()
	if mtu := m.spec.Network.MTU; mtu != 0 {
		c.MTU = mtu
	}
	return c
}

// attach joins the links to the networks and publishes the ports.
func (m *monitor) attach(ctx context.Context, st *proto.Started) (err error) {
	m.netsMu.Lock()
	defer m.netsMu.Unlock()
	way := m.wayOut()
	for _, n := range m.nets {
		var ports []portfwd.Spec
		if n == way {
			ports = m.spec.Network.Ports
		}
		if err := m.attachOne(ctx, n, ports); err != nil {
			return err
		}
	}
	if way == nil && len(m.nets) > 0 && len(m.spec.Network.Ports) > 0 {
		m.tell("published ports are ignored, as the sandbox is on internal networks alone")
	}
	if way != nil && way.Network.Uplink() && len(m.spec.Network.Ports) > 0 {
		m.tell("published ports are ignored, as the sandbox is a host of the uplink's segment with ports of its own")
	}
	if err := m.tellName(ctx); err != nil { // since the lease
		return err
	}
	st.Networks = m.endpoints()
	if way != nil {
		st.Ports, err = way.keeper.ListPorts(ctx)
		m.ports, m.publisher = slices.Clone(st.Ports), way
	}
	return err
}

func (m *monitor) attachOne(ctx context.Context, n *network, ports []portfwd.Spec) (err error) {
	spec := &m.spec.Network
	if m.sockets == nil {
		if m.sockets, err = netd.NewSocketServer(m.netns, m.log); err != nil {
			return err
		}
	}
	req := netd.AttachRequest{
		Member: m.member(n), Driver: n.link.Driver, HdrLen: n.link.HdrLen, MTU: spec.MTU,
		HostPorts: spec.HostAccess, Metadata: spec.Metadata, Publish: ports, PortDriver: spec.PortDriver,
	}
	if spec.PortDriver == portfwd.DriverBuiltin && m.sockets.BuiltinDir == "" {
		req.StateDir = proto.BuiltinDir(m.spec.RuntimeDir, m.spec.ID)
		if err := os.MkdirAll(req.StateDir, 0o700); err != nil {
			return err
		}
		m.sockets.BuiltinDir = req.StateDir
	}
	n.keeper, err = netd.Keep(ctx, n.client, netd.KeepConfig{
		Config: m.netdConfig(&n.Attachment), Lease: n.lease, Attach: req, Link: n.handle, Sockets: m.sockets,
		Logger: m.log, Moved: func(l *netd.Lease) { go m.moved(n, l) },
	})
	if err == nil {
		n.client = nil
	}
	return err
}

// member is what a network is told of the sandbox.
func (m *monitor) member(n *network) netd.Member {
	to := netd.Member{Aliases: n.Aliases, Hostname: m.spec.Hostname}
	for _, o := range m.nets {
		if o != n {
			to.Networks = append(to.Networks, o.name())
		}
	}
	return to
}

// introduce tells each network on which others the sandbox is now.
func (m *monitor) introduce(ctx context.Context) error {
	for _, n := range m.nets {
		if err := n.keeper.Update(ctx, m.member(n)); err != nil {
			return err
		}
	}
	return m.tellName(ctx)
}

// endpoints describes the networks to those who look.
func (m *monitor) endpoints() []proto.Endpoint {
	way := m.wayOut()
	list := []proto.Endpoint{}
	for _, n := range m.nets {
		l := n.lease
		e := proto.Endpoint{
			Network: n.name(), Device: n.device, Driver: n.link.Driver, Prefix4: l.Prefix4, Prefix6: l.Prefix6, MAC: l.MAC.String(), Way: n == way,
		}
		if n.leads() {
			e.Gateway4, e.Gateway6 = l.Gateway4, l.Gateway6
		}
		list = append(list, e)
	}
	return list
}

// leaveNetworks gives the attachments up.
func (m *monitor) leaveNetworks() {
	m.netsMu.Lock()
	defer m.netsMu.Unlock()
	for _, n := range m.nets {
		m.tell(n.close()...)
	}
	m.nets, m.ports, m.publisher = nil, nil, nil
	if m.sockets != nil {
		m.note("end the socket service", m.sockets.Close())
		if dir := m.sockets.BuiltinDir; dir != "" {
			m.note("remove the port driver's directory", os.RemoveAll(dir))
		}
		m.sockets = nil
	}
	if m.netns != nil {
		m.netns.Close()
		m.netns = nil
	}
}

// close gives the attachment up. The link's last descriptor is netd's, which closes
// it when the connection ends.
func (n *network) close() (notes []string) {
	note := func(what string, err error) {
		if err != nil {
			notes = append(notes, fmt.Sprintf("%s: %v", what, err))
		}
	}
	if n.keeper != nil {
		note("leave the network", n.keeper.Close())
	}
	if n.client != nil {
		note("leave the network", n.client.Close())
	}
	if n.handle != nil {
		note("close the link", n.handle.Close())
	}
	return notes
}
