package monitor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxdir"
	"github.com/rootless-sbx/sbx/sandbox/internal/netd"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

// network is the sandbox's attachment to a network's process. It outlives that
// process: what a new one needs to take over is kept here.
type network struct {
	client  *netd.Client // until keeper has it
	lease   *netd.Lease
	keeper  *netd.Keeper
	link    *wire.Handle // duplicate of the link; closing the last one frees the namespace
	sockets *netd.SocketServer
}

// netdConfig is how to reach the network's process, or to start another one.
func (m *monitor) netdConfig() netd.Config {
	return netd.Config{
		StartConfig: netd.StartConfig{RuntimeDir: m.spec.RuntimeDir, Name: m.spec.Network.Mode, Linger: m.spec.NetdLinger},
		Start:       netd.Spawn("/proc/self/exe", proto.RoleNetd),
	}
}

// lease asks the network's process for addresses.
func (m *monitor) lease(ctx context.Context, st *proto.Started) error {
	if m.spec.Network.Mode != "default" {
		return nil
	}
	m.net = &network{}
	client, err := netd.Ensure(ctx, m.netdConfig())
	if err != nil {
		return err
	}
	m.net.client = client
	name, err := m.name()
	if err != nil {
		return err
	}
	l, err := client.Lease(ctx, netd.LeaseRequest{ID: m.spec.ID, Name: name})
	if err != nil {
		return err
	}
	m.net.lease = l
	st.Addr4, st.Addr6, st.MAC = l.Addr4, l.Addr6, l.MAC.String()
	st.Gateway4, st.Gateway6 = l.Gateway4, l.Gateway6
	return nil
}

// name is the sandbox's name now.
func (m *monitor) name() (string, error) {
	return boxdir.Name(filepath.Split(m.spec.Dir))
}

// renamed tells the network the sandbox's name. Whoever comes last finds the last one.
func (m *monitor) renamed(ctx context.Context) error {
	m.naming.Lock()
	defer m.naming.Unlock()
	if m.keeper == nil {
		return nil // the next lease is for the new name
	}
	name, err := m.name()
	if err != nil {
		return err
	}
	return m.keeper.Rename(ctx, name)
}

// link is the sandbox's network device, from outside.
type link struct {
	proto.Link
	netns *os.File // not by init's number, which may be another process's by now
}

// makeLink lets init make its device. There is none without a network and in one that
// is not the sandbox's own.
func (m *monitor) makeLink(ctx context.Context, st *proto.Started) (*link, error) {
	n := &m.spec.Network
	if !m.ownNetwork() {
		return nil, nil
	}
	req := proto.Net{Loopback: m.net == nil}
	if m.net != nil {
		req.Guest = m.net.lease.GuestConfig()
		req.Guest.Driver = n.LinkDriver
		if n.MTU != 0 {
			req.Guest.MTU = n.MTU
		}
	}
	l := &link{}
	reply, err := m.init.Conn.Call(ctx, proto.MsgNet, req, &l.Link)
	if err != nil {
		return nil, m.initError(err)
	}
	defer reply.CloseFiles()
	if m.net == nil {
		return nil, nil
	}
	if m.net.link, err = reply.TakeHandle("link"); err != nil {
		return nil, err
	}
	st.LinkDriver = l.Driver
	if l.Reason != "" && n.LinkDriver == "" {
		m.notes = append(m.notes, l.Reason)
	}
	l.netns, err = reply.Take("netns")
	return l, err
}

// attach joins the link to the network and publishes the ports.
func (m *monitor) attach(ctx context.Context, l *link, st *proto.Started) (err error) {
	if l == nil {
		return nil
	}
	defer l.netns.Close()
	m.porting.Lock()
	defer m.porting.Unlock()
	n, spec := m.net, &m.spec.Network
	if n.sockets, err = netd.NewSocketServer(l.netns, m.log); err != nil {
		return err
	}
	req := netd.AttachRequest{
		Driver: l.Driver, HdrLen: l.HdrLen, MTU: spec.MTU,
		HostPorts: spec.HostAccess, Publish: spec.Ports, PortDriver: spec.PortDriver,
	}
	if spec.PortDriver == portfwd.DriverBuiltin {
		req.StateDir = proto.BuiltinDir(m.spec.RuntimeDir, m.spec.ID)
		if err := os.MkdirAll(req.StateDir, 0o700); err != nil {
			return err
		}
		n.sockets.BuiltinDir = req.StateDir
	}
	n.keeper, err = netd.Keep(ctx, n.client, netd.KeepConfig{
		Config: m.netdConfig(), Lease: n.lease, Attach: req, Link: n.link, Sockets: n.sockets,
		Logger: m.log,
	})
	if err != nil {
		return err
	}
	n.client = nil
	m.naming.Lock()
	m.keeper = n.keeper
	m.naming.Unlock()
	if err := m.renamed(ctx); err != nil { // since the lease
		return err
	}
	st.Ports, err = n.keeper.ListPorts(ctx)
	m.ports = slices.Clone(st.Ports)
	return err
}

// close gives the lease back. The link's last descriptor is netd's, which closes
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
	if n.link != nil {
		note("close the link", n.link.Close())
	}
	if n.sockets != nil {
		note("end the socket service", n.sockets.Close())
		if dir := n.sockets.BuiltinDir; dir != "" {
			note("remove the port driver's directory", os.RemoveAll(dir))
		}
	}
	return notes
}
