package monitor

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxsock"
	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/sandbox/internal/logfile"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
)

// The pause before a workload is started again doubles each time, unless it has
// lived for a while.
const (
	backoffFirst = 100 * time.Millisecond
	backoffMost  = time.Minute
	backoffReset = 10 * time.Second
)

// live is the sandbox's life, from the start message to the end of the process.
//
//	begin -> publish -> answer the caller -> wait -> endRun -> over
//	  ^                                                 |
//	  +----------------- restart policy <---------------+
func (m *monitor) live(ctx context.Context, req *wire.Message, files map[string]*os.File) error {
	if err := m.restore(); err != nil {
		closeAll(files)
		return m.failed(ctx, req, err)
	}
	if err := m.openGroup(); err != nil {
		closeAll(files)
		return m.failed(ctx, req, err)
	}
	st, err := m.begin(ctx, files)
	if err != nil {
		return m.failed(ctx, req, err)
	}
	m.mu.Lock()
	m.detached = m.spec.Life.Detach
	m.mu.Unlock()
	if err := m.answer(req, st); err != nil && !m.spec.Life.Detach {
		m.kill()
	}
	// From here on it copies, and being small matters more than a collection now and
	// then: 4 MiB less of a heap that holds half of one.
	debug.SetGCPercent(25)
	trim()
	pause := backoffFirst
	for {
		begun := time.Now() // by the clock that nobody sets, unlike what is recorded
		x := m.finishRun()
		if time.Since(begun) >= backoffReset {
			pause = backoffFirst
		}
		if !m.again(&x, pause) {
			return m.end(x)
		}
		pause = min(2*pause, backoffMost)
		for {
			if _, err = m.begin(ctx, nil); err == nil {
				break
			}
			err = m.whyStale(err)
			m.log.Warn("start again", "err", err)
			x = m.startFailed(err)
			if !m.again(&x, pause) {
				return m.end(x)
			}
			pause = min(2*pause, backoffMost)
		}
		trim()
	}
}

// restore reads what is known from before, if this is not the first start, and opens
// the log.
func (m *monitor) restore() error {
	st, err := record.ReadState(m.spec.Dir)
	switch {
	case err == nil:
		m.known = true
		m.state.Volumes, m.state.StartedAt, m.state.FinishedAt = st.Volumes, st.StartedAt, st.FinishedAt
		m.state.LogLost, m.lostBefore = st.LogLost, st.LogLost
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if l := m.spec.Life.Log; l != nil && l.Driver != "none" {
		m.logs, err = logfile.Open(filepath.Join(m.spec.Dir, "log"), logfile.Config{MaxSize: l.MaxSize, MaxFiles: l.MaxFiles, Logger: m.log})
		return err
	}
	return nil
}

// begin starts the workload; files are the caller's, see proto. If it fails, nothing
// of the run is left.
func (m *monitor) begin(ctx context.Context, files map[string]*os.File) (*proto.Started, error) {
	ended := make(chan struct{})
	before := m.oomKills()
	m.mu.Lock()
	m.ended, m.oomBefore = ended, before
	m.mu.Unlock()
	letGo, err := m.enter(ctx)
	if err != nil {
		closeAll(files)
		return nil, err
	}
	defer letGo()
	stdio, err := m.openStreams(files)
	if err != nil {
		closeAll(files)
		return nil, err
	}
	st, err := m.start(ctx, stdio)
	closeAll(stdio)
	if err != nil {
		m.kill()
		m.wait()
		m.closeStreams()
		m.endRun()
		return nil, err
	}
	select {
	case <-m.quit: // somebody was faster
		m.kill()
	default:
	}
	return st, nil
}

// publish tells the world that the workload runs, beside its start.
func (m *monitor) publish(st *proto.Started) error {
	if m.server == nil {
		l, err := boxsock.Listen(proto.BoxSocket(m.spec.RuntimeDir, m.spec.ID))
		if err != nil {
			return err
		}
		m.server = newServer(m, l)
	}
	m.netsMu.Lock()
	defer m.netsMu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.Status, m.state.MonitorPID, m.state.StartedAt = record.Running, os.Getpid(), time.Now().UTC()
	m.state.ExitCode, m.state.OOMKilled, m.state.Error, m.state.Started = 0, false, "", *st
	// They may have been changed since.
	m.state.Networks, m.state.Ports = m.endpoints(), slices.Clone(m.ports)
	return m.save()
}

// save writes the state; under mu.
func (m *monitor) save() error { return record.WriteState(m.spec.Dir, &m.state) }

// answer tells the caller, with what it needs for the workload's input.
func (m *monitor) answer(req *wire.Message, st *proto.Started) error {
	m.mu.Lock()
	files, letGo := m.input(m.spec.TakeStdin)
	m.mu.Unlock()
	defer letGo()
	return m.caller.Reply(req, st, nil, files...)
}

// finishRun waits for the end of the workload and of its output.
func (m *monitor) finishRun() proto.Exited {
	endHealth, endOOM := m.watchHealth(), m.watchOOM()
	x := m.wait()
	endHealth()
	endOOM()
	m.mu.Lock()
	m.started = false // so that no pause begins
	m.mu.Unlock()
	_, err := m.thaw(context.Background()) // killed while it was paused
	m.note("thaw", err)
	if m.published != nil {
		m.note("record the sandbox", <-m.published)
		m.published = nil
	}
	m.marks.Add("workload ended")
	x.OOMKilled = m.oomKilled()
	m.event(events.Die, "exitCode", strconv.Itoa(x.Code))
	m.closeStreams()
	m.endRun()
	m.endEvents()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.FinishedAt, m.state.ExitCode, m.state.Started = time.Now().UTC(), x.Code, proto.Started{}
	m.state.OOMKilled = x.OOMKilled
	if m.logs != nil {
		m.state.LogLost = m.lostBefore + m.logs.Lost()
	}
	m.last = x
	close(m.ended)
	return x
}

// startFailed is the end of a run that did not begin.
func (m *monitor) startFailed(err error) proto.Exited {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := proto.Exited{Code: exitOf(err)}
	m.state.FinishedAt, m.state.ExitCode, m.state.Started, m.state.Error = time.Now().UTC(), x.Code, proto.Started{}, err.Error()
	m.last = x
	close(m.ended)
	return x
}

// again says whether the workload is to be started once more, after the pause.
func (m *monitor) again(x *proto.Exited, pause time.Duration) bool {
	m.mu.Lock()
	due := !m.state.Stopped && m.spec.Life.Restart.Wants(x.Code, m.state.Restarts)
	if due {
		m.state.Status = record.Restarting
		m.state.Restarts++
		if err := m.save(); err != nil {
			m.note("write the sandbox's state", err)
			due = false
		}
	}
	m.mu.Unlock()
	if !due {
		return false
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-m.quit:
		return false
	}
}

// stopped notes that somebody wants the end.
func (m *monitor) stopped() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.Stopped = m.state.Stopped || m.interrupted == ""
	if !m.quitting {
		m.quitting = true
		close(m.quit)
	}
}

// stop ends the workload for good, and returns when all is over.
func (m *monitor) stop(ctx context.Context, how proto.Stop) error {
	sig, patience := syscall.Signal(how.Signal), how.Timeout
	if sig == 0 {
		sig = m.spec.Life.StopSignal
	}
	if patience == 0 {
		patience = m.spec.Life.StopTimeout
	}
	m.mu.Lock()
	m.stopping = m.stopping || !how.Remove
	m.mu.Unlock()
	m.stopped()
	if err := m.signal(sig); err != nil && !isNotRunning(err) {
		return err
	}
	if _, err := m.thaw(ctx); err != nil { // for a signal that is not the sandbox's own
		return err
	}
	var late <-chan time.Time
	if patience > 0 {
		t := time.NewTimer(patience)
		defer t.Stop()
		late = t.C
	}
	for {
		select {
		case <-m.over:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-late:
			if err := m.signal(syscall.SIGKILL); err != nil && !isNotRunning(err) {
				return err
			}
			late = nil
		}
	}
}

// failed answers a start that did not come about. Of a first one nothing is left,
// unless the caller records it.
func (m *monitor) failed(ctx context.Context, req *wire.Message, err error) error {
	switch {
	case !m.spec.Life.Keep, !m.known && errors.Is(context.Cause(ctx), errCallerGone):
		m.remove()
	case !m.known:
		m.note("forget the sandbox's state", record.Forget(m.spec.Dir))
	default:
		m.mu.Lock()
		m.state.Status, m.state.Started, m.state.ExitCode, m.state.Error = record.Created, proto.Started{}, exitOf(err), err.Error()
		if !m.state.FinishedAt.IsZero() {
			m.state.Status = record.Exited
		}
		m.note("write the sandbox's state", m.save())
		m.mu.Unlock()
	}
	x := m.leave(proto.Exited{Code: exitOf(err)})
	return errors.Join(m.caller.Send(proto.MsgExited, proto.Exited{Notes: x.Notes}), m.caller.Reply(req, nil, err))
}

// end writes down how it ended, or removes what is left.
func (m *monitor) end(x proto.Exited) error {
	m.mu.Lock()
	if m.stopping {
		m.event(events.Stop)
	}
	if m.spec.Life.Keep {
		m.state.Status, m.state.Error = record.Exited, cmp.Or(m.interrupted, m.state.Error)
		m.note("write the sandbox's state", m.save())
	}
	m.mu.Unlock()
	if !m.spec.Life.Keep {
		m.remove()
	}
	x = m.leave(x)
	if err := m.caller.Send(proto.MsgExited, x); err != nil && !isEOF(err) && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// leave lets go of everything and returns x with all that there is to say; those who
// wait are told last, so that they find the sandbox without an owner.
func (m *monitor) leave(x proto.Exited) proto.Exited {
	m.note("remove the cgroup", m.removeGroup())
	if m.logs != nil {
		m.note("end the log", m.logs.Close())
	}
	if m.server != nil {
		m.note("end the socket", m.server.close())
	}
	m.mu.Lock()
	m.leaving = true
	m.mu.Unlock()
	m.lock.Close()
	x.Notes, x.Marks = m.takeNotes(), m.marks.List
	m.exited = x
	close(m.over)
	if m.server != nil {
		m.server.drain()
	}
	return x
}
