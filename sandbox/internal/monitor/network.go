package monitor

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox/internal/netd"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

// network is the sandbox's attachment to a network's process. It outlives that
// process: what a new one needs to take over is kept here.
type network struct {
	client  *netd.Client
	lease   netd.Lease
	attach  netd.Attach
	link    *os.File // duplicate of the link; closing the last one frees the namespace
	sockets *netd.SocketServer

	builtinDir string
	builtinErr error // set when done

	cancel context.CancelFunc
	done   sync.WaitGroup
}

// lease asks the network's process for addresses.
func (m *monitor) lease(ctx context.Context, st *proto.Started) error {
	if m.spec.Network.Mode != "default" {
		return nil
	}
	m.net = &network{}
	client, err := netd.Connect(ctx, m.spec.RuntimeDir, m.spec.Network.Mode)
	if err != nil {
		return fmt.Errorf("reach the network %q: %w", m.spec.Network.Mode, err)
	}
	m.net.client = client
	l, err := client.Lease(ctx, netd.LeaseRequest{ID: m.spec.ID, Name: m.spec.Name})
	if err != nil {
		return fmt.Errorf("get an address: %w", err)
	}
	m.net.lease = l
	st.Addr4, st.Addr6 = l.Addr4.Addr(), l.Addr6.Addr()
	st.Gateway4, st.Gateway6 = l.Gateway4, l.Gateway6
	st.MAC = net.HardwareAddr(l.MAC).String()
	return nil
}

// connect lets init make its device and attaches that to the network.
func (m *monitor) connect(ctx context.Context, st *proto.Started) error {
	if m.spec.Network.Mode == "host" {
		return nil
	}
	n := &m.spec.Network
	req := proto.Net{Loopback: m.net == nil}
	builtinDir := ""
	if m.net != nil && n.PortDriver == portfwd.DriverBuiltin && len(n.Ports) > 0 {
		builtinDir = filepath.Join(m.spec.RuntimeDir, "b", m.spec.ID[:12])
	}
	if m.net != nil {
		l := &m.net.lease
		req.Driver, req.MAC, req.MTU = n.LinkDriver, l.MAC, l.MTU
		if n.MTU != 0 {
			req.MTU = n.MTU
		}
		for _, a := range []netip.Prefix{l.Addr4, l.Addr6} {
			if a.IsValid() {
				req.Addrs = append(req.Addrs, a)
			}
		}
		for _, g := range []netip.Addr{l.Gateway4, l.Gateway6} {
			if g.IsValid() {
				req.Gateways = append(req.Gateways, g)
			}
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
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", m.init.PID))
	if err != nil {
		return fmt.Errorf("open the sandbox's network namespace: %w", err)
	}
	defer ns.Close()
	if m.net.sockets, err = netd.NewSocketServer(ns); err != nil {
		return err
	}
	kctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	m.net.cancel = cancel
	if builtinDir != "" {
		if err := m.net.startBuiltin(kctx, builtinDir, ns); err != nil {
			return err
		}
	}
	m.net.attach = netd.Attach{
		Driver: link.Driver, HdrLen: link.HdrLen, MTU: link.MTU,
		HostPorts: n.HostAccess, Ports: n.Ports, PortDriver: n.PortDriver, BuiltinDir: builtinDir,
	}
	ports, err := m.net.doAttach(ctx)
	if err != nil {
		return err
	}
	st.Ports = ports
	// A network process that comes back must publish the same host ports.
	for i, p := range ports {
		m.net.attach.Ports[i].ParentPort = p.Spec.ParentPort
	}
	m.net.done.Add(1)
	go func() {
		defer m.net.done.Done()
		m.keepAttached(kctx)
	}()
	return nil
}

// startBuiltin runs the child half of RootlessKit's port driver in the sandbox's
// network namespace; the two halves meet in dir.
func (n *network) startBuiltin(ctx context.Context, dir string, ns *os.File) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	n.builtinDir = dir
	own, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()))
	if err != nil {
		return err
	}
	n.done.Add(1)
	go func() {
		defer n.done.Done()
		defer own.Close()
		n.builtinErr = portfwd.RunBuiltinChild(ctx, portfwd.BuiltinOpaque(dir), own, nil)
	}()
	return nil
}

// doAttach hands the link to the network's process.
func (n *network) doAttach(ctx context.Context) ([]port.Status, error) {
	sockets, _, err := n.sockets.Connect()
	if err != nil {
		return nil, err
	}
	defer sockets.Close()
	return n.client.Attach(ctx, n.attach, n.link, sockets)
}

// keepAttached brings the sandbox back to its network when that network's process
// was killed: whichever monitor comes first starts a new one.
func (m *monitor) keepAttached(ctx context.Context) {
	n := m.net
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.client.Done():
		}
		for wait := 20 * time.Millisecond; ctx.Err() == nil; wait = min(2*wait, 5*time.Second) {
			if m.reattach(ctx) == nil {
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
		}
	}
}

func (m *monitor) reattach(ctx context.Context) error {
	n := m.net
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	client, err := netd.Ensure(ctx, netd.EnsureConfig{
		RuntimeDir: m.spec.RuntimeDir, Name: m.spec.Network.Mode,
		InitPath: "/proc/self/exe", Role: proto.RoleNetd, Linger: m.spec.NetdLinger,
	})
	if err != nil {
		return err
	}
	n.client.Close()
	n.client = client
	if _, err = client.Lease(ctx, netd.LeaseRequest{
		ID: m.spec.ID, Name: m.spec.Name, Want4: n.lease.Addr4.Addr(), Want6: n.lease.Addr6.Addr(),
	}); err == nil {
		_, err = n.doAttach(ctx)
	}
	if err != nil {
		client.Close()
	}
	return err
}

// close gives the lease back. The link's last descriptor is netd's, which closes
// it when the connection ends.
func (n *network) close() {
	if n.cancel != nil {
		n.cancel()
		n.done.Wait()
	}
	if n.builtinDir != "" {
		os.RemoveAll(n.builtinDir)
	}
	if n.link != nil {
		n.link.Close()
	}
	if n.client != nil {
		n.client.Close()
	}
	if n.sockets != nil {
		n.sockets.Close()
	}
}
