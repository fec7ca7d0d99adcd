package monitor

import (
	"context"
	"errors"

	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/sandbox/internal/netd"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
)

// update changes limits and restart policy of a sandbox that runs, and in its record.
func (m *monitor) update(u proto.Update) error {
	if u.Restart != nil && u.Restart.Name != "no" && !m.isDetached() {
		return errForeground()
	}
	err := m.changeRecord(func(c *record.Config) error {
		before := c.Resources
		if err := c.Change(u); err != nil || u.Limits.Zero() {
			return err
		}
		if m.group == nil {
			return errNoBox()
		}
		if err := m.group.Set(c.Resources); err != nil {
			// Others may have been set before the one that was refused.
			return errors.Join(err, m.group.Set(before))
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.mu.Lock()
	if n := u.Limits.PidsLimit; n != 0 {
		m.spec.PidsLimit = n
	}
	if u.Restart != nil {
		m.spec.Life.Restart = *u.Restart
	}
	m.mu.Unlock()
	m.event(events.Update)
	return nil
}

// changeRecord changes config.json.
func (m *monitor) changeRecord(change func(*record.Config) error) error {
	m.recording.Lock()
	defer m.recording.Unlock()
	return record.UpdateConfig(m.spec.Dir, change)
}

func (m *monitor) isDetached() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.detached
}

// stats asks who counts.
func (m *monitor) stats(ctx context.Context) (*proto.Stats, error) {
	st := &proto.Stats{}
	if m.group != nil {
		g, err := m.group.Stats()
		if err != nil {
			return nil, err
		}
		st.Group = &g
	}
	var sum netd.Traffic
	keepers := m.keepers()
	for _, k := range keepers {
		t, err := k.Traffic(ctx)
		if err != nil { // it is being started again
			m.log.Debug("ask a network what it has counted", "err", err)
			return st, nil
		}
		sum = sum.Plus(t)
	}
	if len(keepers) > 0 {
		st.Network = &sum
	}
	return st, nil
}

// keepers are those of the networks that the sandbox is on.
func (m *monitor) keepers() (list []*netd.Keeper) {
	m.netsMu.Lock()
	defer m.netsMu.Unlock()
	for _, n := range m.nets {
		if n.keeper != nil {
			list = append(list, n.keeper)
		}
	}
	return list
}
