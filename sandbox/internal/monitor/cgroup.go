package monitor

import (
	"context"
	"os"

	"github.com/rootless-sbx/sbx/cgroup"
)

// openGroup opens the group that the caller has made, for init to be born in; nil if
// there is none. We are in it already.
func (m *monitor) openGroup() (box *os.File, err error) {
	if m.spec.Cgroup == "" {
		return nil, nil
	}
	if m.group, err = cgroup.Open(m.spec.Cgroup); err != nil {
		return nil, err
	}
	return m.group.Box()
}

// oomKilled says whether the sandbox's memory was used up.
func (m *monitor) oomKilled() bool {
	if m.group == nil {
		return false
	}
	n, err := m.group.OOMKills()
	if err != nil {
		m.log.Warn("how many processes were killed for want of memory", "err", err)
	}
	return n > 0
}

// removeGroup leaves only the part that we are in, which systemd removes.
func (m *monitor) removeGroup() error {
	if m.group == nil {
		return nil
	}
	return m.group.Remove(context.Background())
}
