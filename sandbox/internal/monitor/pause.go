package monitor

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
)

// pausePatience is how long what is just being started in the sandbox may keep a pause
// waiting.
const pausePatience = 10 * time.Second

// pause stops every process of the sandbox. Nothing may be on its way in: it would
// stop before its time, and the thread of ours that clones it with it.
func (m *monitor) pause(ctx context.Context) error {
	if m.group == nil {
		return errNoBox()
	}
	m.pausing.Add(1)
	defer m.pausing.Add(-1)
	letGo, err := m.enterAlone(ctx)
	if err != nil {
		return err
	}
	defer letGo()
	if err := m.pausable(); err != nil {
		return err
	}
	if err := m.group.Freeze(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.Status, m.pauses = record.Paused, m.pauses+1
	m.event(events.Pause)
	return m.save()
}

func (m *monitor) pausable() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.state.Status == record.Paused:
		return &wire.Error{Code: proto.CodePaused, Msg: "the sandbox is paused already"}
	case m.state.Status == record.Restarting:
		return wire.Errorf(proto.CodeNotRunning, "the sandbox is restarting: wait until it runs")
	case m.init == nil || !m.started || m.state.Status != record.Running:
		return errNotRunning()
	}
	return nil
}

// unpause lets them go on.
func (m *monitor) unpause(ctx context.Context) error {
	thawed, err := m.thaw(ctx)
	if err == nil && !thawed {
		err = &wire.Error{Code: proto.CodeNotPaused, Msg: "the sandbox is not paused"}
	}
	return err
}

// thaw undoes a pause, if there is one or one is under way.
func (m *monitor) thaw(ctx context.Context) (bool, error) {
	if m.pausing.Load() == 0 && !m.paused() {
		return false, nil
	}
	letGo, err := m.enterAlone(ctx)
	if err != nil {
		return false, err
	}
	defer letGo()
	if !m.paused() {
		return false, nil
	}
	if err := m.group.Thaw(ctx); err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.Status = record.Running
	m.event(events.Unpause)
	return true, m.save()
}

// thawFor lets a paused workload see a signal that is to end it.
func (m *monitor) thawFor(sig syscall.Signal) error {
	if sig != syscall.SIGKILL && sig != m.spec.Life.StopSignal {
		return nil // it waits for unpause, as with Docker
	}
	_, err := m.thaw(context.Background())
	return err
}

func (m *monitor) paused() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.Status == record.Paused
}

// pausedSince says whether the sandbox is paused, or was since there were n pauses.
func (m *monitor) pausedSince(n int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.Status == record.Paused || m.pauses != n
}

func (m *monitor) pauseCount() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pauses
}

// enter is for who starts a process in the sandbox, enterAlone for who must not meet
// one that is being started.
func (m *monitor) enter(ctx context.Context) (letGo func(), err error) {
	if err := m.entry.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	return func() { m.entry.Release(1) }, nil
}

func (m *monitor) enterAlone(ctx context.Context) (letGo func(), err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, pausePatience, fmt.Errorf("a program is being started in the sandbox, for %v already", pausePatience))
	defer cancel()
	if err := m.entry.Acquire(ctx, maxExecs); err != nil {
		return nil, context.Cause(ctx)
	}
	return func() { m.entry.Release(maxExecs) }, nil
}
