package monitor

import (
	"context"
	"os"

	"github.com/rootless-sbx/sbx/cgroup"
	"github.com/rootless-sbx/sbx/sandbox/internal/events"
)

// openGroup opens the group that the caller has made; it lasts as long as we do, and
// we are in it already.
func (m *monitor) openGroup() (err error) {
	if m.spec.Cgroup != "" {
		m.group, err = cgroup.Open(m.spec.Cgroup)
	}
	return err
}

// box is the part of the group for the workload and for what is run beside it; nil if
// there is no group.
func (m *monitor) box() (*os.File, error) {
	if m.group == nil {
		return nil, nil
	}
	return m.group.Box()
}

// oomKilled says whether the sandbox's memory was used up in this run.
func (m *monitor) oomKilled() bool { return m.oomKills() > m.oomBefore }

// oomKills counts over all runs.
func (m *monitor) oomKills() uint64 {
	if m.group == nil {
		return 0
	}
	n, err := m.group.OOMKills()
	if err != nil {
		m.log.Warn("how many processes were killed for want of memory", "err", err)
	}
	return n
}

// watchOOM tells of kills for want of memory; stop, of those that it has not seen.
// Whoever looks at a sandbox in which a helper was killed is to see why.
func (m *monitor) watchOOM() (stop func()) {
	if m.group == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	told := make(chan uint64, 1)
	go func() {
		last := m.oomBefore
		tell := func(kills uint64) {
			if kills > last {
				last = kills
				m.outOfMemory()
				m.event(events.OOM)
			}
		}
		if err := m.group.WatchOOM(ctx, tell); err != nil && ctx.Err() == nil {
			m.log.Warn("watch for the end of the memory", "err", err)
		}
		told <- last
	}()
	return func() {
		cancel()
		if last := <-told; m.oomKills() > last {
			m.event(events.OOM)
		}
	}
}

// outOfMemory writes it into the record of a sandbox that runs.
func (m *monitor) outOfMemory() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state.OOMKilled || !m.state.Alive() {
		return
	}
	m.state.OOMKilled = true
	if err := m.save(); err != nil {
		m.log.Warn("write the sandbox's state", "err", err)
	}
}

// removeGroup leaves only the part that we are in, which systemd removes.
func (m *monitor) removeGroup() error {
	if m.group == nil {
		return nil
	}
	return m.group.Remove(context.Background())
}
