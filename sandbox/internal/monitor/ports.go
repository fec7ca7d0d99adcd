package monitor

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox/internal/netd"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
)

// changePorts publishes ports or takes them back, in the network and in the record,
// all of them or none.
func (m *monitor) changePorts(ctx context.Context, change proto.ChangePorts) (added []port.Status, err error) {
	m.netsMu.Lock()
	defer m.netsMu.Unlock()
	n := &m.spec.Network
	wanted := proto.Network{Ports: n.Ports}
	way := m.wayOut()
	if way == nil || way.keeper == nil || len(m.ports) != len(n.Ports) { // between two runs, or on internal networks alone
		if err := change.Apply(&wanted); err != nil {
			return nil, err
		}
		return nil, m.keepPorts(wanted.Ports)
	}
	keeper := way.keeper
	bound := make([]portfwd.Spec, len(m.ports))
	for i, st := range m.ports {
		bound[i] = portfwd.Spec{Spec: st.Spec}
	}
	gone, err := change.Find(bound)
	if err != nil {
		return nil, err
	}
	for _, spec := range change.Add {
		st, perr := keeper.Publish(ctx, spec)
		if perr != nil {
			return nil, errors.Join(perr, unpublish(ctx, keeper, added))
		}
		added = append(added, *st)
	}
	var removed, left []port.Status
	wanted.Ports = nil
	for i, st := range m.ports {
		if slices.Contains(gone, i) {
			removed = append(removed, st)
			continue
		}
		left, wanted.Ports = append(left, st), append(wanted.Ports, n.Ports[i])
	}
	wanted.Ports = append(wanted.Ports, change.Add...)
	if len(wanted.Ports) > portfwd.MaxSpecs {
		err = portfwd.Check(wanted.Ports)
	} else {
		err = m.keepPorts(wanted.Ports)
	}
	if err != nil {
		return nil, errors.Join(err, unpublish(ctx, keeper, added))
	}
	m.ports = append(left, added...)
	err = unpublish(ctx, keeper, removed)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.Ports = slices.Clone(m.ports)
	return added, errors.Join(err, m.save())
}

func unpublish(ctx context.Context, k *netd.Keeper, ports []port.Status) (err error) {
	for _, st := range ports {
		err = errors.Join(err, k.RemovePort(ctx, st.ID))
	}
	return err
}

// keepPorts writes down what is published from now on.
func (m *monitor) keepPorts(ports []portfwd.Spec) error {
	err := m.changeRecord(func(rec *record.Config) error {
		rec.Start.Network.Ports = ports
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	m.spec.Network.Ports = ports
	return nil
}

// ports answers who wants other ports.
func (s *session) ports(ctx context.Context, req *wire.Message) error {
	var change proto.ChangePorts
	if err := req.Decode(&change); err != nil {
		return err
	}
	return s.later(func() error {
		added, err := s.m.changePorts(ctx, change)
		if err != nil {
			return err
		}
		return s.conn.Reply(req, proto.Ports{Ports: added}, nil)
	}, req)
}
