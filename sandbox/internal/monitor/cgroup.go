package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/rootless-sbx/sbx/cgroup"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/userns"
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

// initThreads is more than init has before it becomes the workload, and a program of exec
// before it begins: about 7, of Go's.
const initThreads = 16

// makeRoom lets init have its threads although the workload may have fewer; enforce, when
// the workload has taken its place, takes them back.
func (m *monitor) makeRoom() (enforce func() error, err error) {
	m.mu.Lock()
	limit := m.spec.PidsLimit
	m.mu.Unlock()
	if m.group == nil || limit <= 0 || limit >= initThreads {
		return func() error { return nil }, nil
	}
	set := func(n int64) error { return m.group.Set(cgroup.Limits{PidsLimit: n}) }
	return func() error { return set(limit) }, set(initThreads)
}

// crowded says why a program could not be executed beside the workload, if it is for want
// of threads; else it is err.
func (m *monitor) crowded(err error) error {
	var x *userns.ExitError // Go's runtime ends where it gets no thread
	if m.group == nil || !errors.As(err, &x) && !errors.Is(err, syscall.EAGAIN) {
		return err
	}
	st, serr := m.group.Stats()
	if p := st.Pids; serr != nil || p.Limit == 0 || p.Current+initThreads <= p.Limit {
		return err
	}
	return &wire.Error{Step: "execute beside the workload",
		Msg: fmt.Sprintf("the sandbox has %d processes and threads and may have %d (--pids-limit), and this takes up to %d before it begins: %v", st.Pids.Current, st.Pids.Limit, initThreads, err),
		Fix: "allow it more: sbx update --pids-limit NUMBER SANDBOX"}
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
