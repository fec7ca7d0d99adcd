package monitor

import (
	"context"
	"os"

	"github.com/rootless-sbx/sbx/cgroup"
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

// removeGroup leaves only the part that we are in, which systemd removes.
func (m *monitor) removeGroup() error {
	if m.group == nil {
		return nil
	}
	return m.group.Remove(context.Background())
}
