package monitor

import (
	"context"
	"fmt"
	"os"

	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox/internal/netd"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

// network is the sandbox's attachment to a network's process. It outlives that
// process: what a new one needs to take over is kept here.
type network struct {
	client  *netd.Client // until keeper has it
	lease   *netd.Lease
	keeper  *netd.Keeper
	link    *os.File // duplicate of the link; closing the last one frees the namespace
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
	l, err := client.Lease(ctx, netd.LeaseRequest{ID: m.spec.ID, Name: m.spec.Name})
	if err != nil {
		return err
	}
	m.net.lease = l
	st.Addr4, st.Addr6, st.MAC = l.Addr4, l.Addr6, l.MAC.String()
	st.Gateway4, st.Gateway6 = l.Gateway4, l.Gateway6
	return nil
}

// connect lets init make its device and attaches that to the network.
func (m *monitor) connect(ctx context.Context, st *proto.Started) error {
	n := &m.spec.Network
	if n.Mode == "host" {
		return nil
	}
	req := proto.Net{Loopback: m.net == nil}
	if m.net != nil {
		req.Guest = m.net.lease.GuestConfig()
		req.Guest.Driver = n.LinkDriver
		if n.MTU != 0 {
			req.Guest.MTU = n.MTU
		}
	}
	var link proto.Link
	reply, err := m.init.Conn.Call(ctx, proto.MsgNet, req, &link)
	if err != nil {
		return m.initError(err)
	}
	defer reply.CloseFiles()
	if m.net == nil {
		return nil
	}
	if m.net.link, err = reply.Take("link"); err != nil {
		return err
	}
	st.LinkDriver = link.Driver
	if link.Reason != "" && n.LinkDriver == "" {
		m.notes = append(m.notes, link.Reason)
	}
	// Not by init's number, which may be another process's by now.
	ns, err := reply.Take("netns")
	if err != nil {
		return err
	}
	defer ns.Close()
	return m.attach(ctx, link, ns, st)
}

// attach joins the link to the network and publishes the ports.
func (m *monitor) attach(ctx context.Context, link proto.Link, ns *os.File, st *proto.Started) (err error) {
	n, spec := m.net, &m.spec.Network
	if n.sockets, err = netd.NewSocketServer(ns, m.log); err != nil {
		return err
	}
	req := netd.AttachRequest{
		Driver: link.Driver, HdrLen: link.HdrLen,
		HostPorts: spec.HostAccess, Publish: spec.Ports, PortDriver: spec.PortDriver,
	}
	if spec.PortDriver == portfwd.DriverBuiltin && len(spec.Ports) > 0 {
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
	st.Ports, err = n.keeper.ListPorts(ctx)
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
