package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox/internal/netd"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
	"github.com/rootless-sbx/sbx/userns"
)

// connect puts the sandbox that runs into one more network.
func (m *monitor) connect(ctx context.Context, a proto.Attachment) (err error) {
	m.netsMu.Lock()
	defer m.netsMu.Unlock()
	if !m.lives() {
		return errNotRunning()
	}
	spec := m.spec.Network
	if err := spec.Connect(&a); err != nil {
		return err
	}
	n := &network{Attachment: a, device: m.freeDevice()}
	m.nets = append(m.nets, n)
	defer func() {
		if err != nil {
			ctx := context.WithoutCancel(ctx)
			err = errors.Join(err, m.drop(ctx, n), m.movePorts(ctx))
		}
	}()
	if err := m.leaseOne(ctx, n); err != nil {
		return err
	}
	if err := m.linker(ctx, func(c *wire.Conn) error { return m.makeLink(ctx, c, n) }); err != nil {
		return err
	}
	if err := m.attachOne(ctx, n, nil); err != nil {
		return err
	}
	if err := m.movePorts(ctx); err != nil {
		return err
	}
	return m.changed(ctx, spec)
}

// disconnect takes it out of a network.
func (m *monitor) disconnect(ctx context.Context, name string) error {
	m.netsMu.Lock()
	defer m.netsMu.Unlock()
	if !m.lives() {
		return errNotRunning()
	}
	spec := m.spec.Network
	if err := spec.Disconnect(name); err != nil {
		return err
	}
	i := slices.IndexFunc(m.nets, func(n *network) bool { return n.name() == name })
	if i < 0 {
		return errNotRunning() // it is just being started
	}
	n := m.nets[i]
	if err := m.drop(ctx, n); err != nil {
		return err
	}
	if err := m.movePorts(ctx); err != nil {
		return err
	}
	return m.changed(ctx, spec)
}

// lives says that the workload runs.
func (m *monitor) lives() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.init != nil && m.started
}

// drop takes one network away, its device too.
func (m *monitor) drop(ctx context.Context, n *network) error {
	m.nets = slices.DeleteFunc(m.nets, func(o *network) bool { return o == n })
	var errs []error
	for _, note := range n.close() {
		errs = append(errs, errors.New(note))
	}
	if n.link.Driver != "" {
		errs = append(errs, m.linker(ctx, func(c *wire.Conn) error {
			reply, err := c.Call(ctx, proto.MsgUnlink, proto.Name{Name: n.device}, nil)
			if err == nil {
				reply.CloseFiles()
			}
			return err
		}))
	}
	return errors.Join(errs...)
}

// linker calls f with a process in the sandbox's network namespace.
func (m *monitor) linker(ctx context.Context, f func(*wire.Conn) error) error {
	child, err := userns.Start(ctx, userns.Spec{
		Path: "/proc/self/exe", Args: []string{proto.RoleLinker}, NetNS: m.netns, Setsid: true,
	})
	if err != nil {
		return err
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		child.Serve(func(*wire.Message) {})
	}()
	err = f(child.Conn)
	if isEOF(err) {
		if ferr := child.Failure(ctx); ferr != nil {
			err = ferr
		}
	}
	child.Conn.Close()
	child.Wait()
	<-served
	child.Close()
	return err
}

// moved gives the sandbox the address that its network has now for it: on an uplink
// that is the affair of a server outside.
func (m *monitor) moved(n *network, l *netd.Lease) {
	m.netsMu.Lock()
	defer m.netsMu.Unlock()
	if !m.lives() || !slices.Contains(m.nets, n) {
		return // on its way out
	}
	ctx := context.Background()
	gone := m.guestConfig(n)
	n.lease = l
	move := proto.Move{Gone: gone, Guest: m.guestConfig(n)}
	err := m.linker(ctx, func(c *wire.Conn) error {
		reply, err := c.Call(ctx, proto.MsgMove, move, nil)
		if err == nil {
			reply.CloseFiles()
		}
		return err
	})
	if err == nil {
		err = m.changed(ctx, m.spec.Network)
	}
	if err != nil {
		m.log.Error("the sandbox has another address", "network", n.name(), "err", err)
	}
}

// movePorts publishes on the way out of now what was published on the one before, which
// may have gone.
func (m *monitor) movePorts(ctx context.Context) error {
	way, before, ports := m.wayOut(), m.publisher, m.ports
	if way == before {
		return nil
	}
	m.publisher, m.ports = way, nil
	if slices.Contains(m.nets, before) {
		if err := unpublish(ctx, before.keeper, ports); err != nil {
			return err
		}
	}
	if way == nil {
		return nil // nobody could answer
	}
	for i, spec := range m.spec.Network.Ports {
		if len(ports) == len(m.spec.Network.Ports) {
			spec = portfwd.Spec{Spec: ports[i].Spec} // with the host port that was chosen
		}
		st, err := way.keeper.Publish(ctx, spec)
		if err != nil {
			return err
		}
		m.ports = append(m.ports, *st)
	}
	return nil
}

// changed tells everybody about the networks of now: the networks' processes, the
// record, and the sandbox's own files.
func (m *monitor) changed(ctx context.Context, spec proto.Network) error {
	if err := m.introduce(ctx); err != nil {
		return err
	}
	m.spec.Network = spec
	err := m.changeRecord(func(rec *record.Config) error {
		rec.Start.Network.Attachments = spec.Attachments
		return nil
	})
	if err != nil {
		return fmt.Errorf("record the sandbox's networks: %w", err)
	}
	m.mu.Lock()
	m.state.Networks, m.state.Ports = m.endpoints(), slices.Clone(m.ports)
	err = m.save()
	m.mu.Unlock()
	return errors.Join(err, m.refreshFiles())
}

func (n *network) addrs() (list []netip.Addr) {
	if n.lease == nil {
		return nil
	}
	for _, a := range []netip.Addr{n.lease.Addr4, n.lease.Addr6} {
		if a.IsValid() {
			list = append(list, a)
		}
	}
	return list
}

// refreshFiles changes the lines of our own in /etc/hosts, and /etc/resolv.conf unless
// somebody has written to it.
func (m *monitor) refreshFiles() error {
	if err := m.refreshHosts(); err != nil {
		return err
	}
	resolv, err := m.resolvConf()
	if err != nil {
		return err
	}
	path := filepath.Join(m.spec.Dir, "resolv.conf")
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	now, err := io.ReadAll(io.LimitReader(f, int64(len(m.resolv)+1)))
	f.Close()
	if err != nil || !bytes.Equal(now, m.resolv) {
		return err
	}
	m.resolv = resolv
	return os.WriteFile(path, resolv, 0o644)
}
