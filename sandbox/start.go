package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
	"github.com/rootless-sbx/sbx/userns"
)

// undoPatience is how long a monitor may take to undo a start that was given up,
// before it is killed and its caller does it.
const undoPatience = 15 * time.Second

// Start starts the workload and returns when it runs. If it fails, nothing is left,
// but of a sandbox that is to be kept, the record of the failure. When ctx ends while
// Start runs, Start fails with ctx's cause; a later end of ctx means nothing.
func (s *Sandbox) Start(ctx context.Context) error {
	if s.isRemote() {
		if err := s.reclaim(ctx); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.mu.Lock()
	if s.state != created {
		defer s.mu.Unlock()
		if errors.Is(s.err, ErrRemoved) {
			return ErrRemoved
		}
		return ErrStarted
	}
	settled := make(chan struct{})
	defer close(settled)
	s.state, s.cancel, s.settled = starting, cancel, settled
	s.mu.Unlock()

	if st := s.cfg.streams(); st.Stdin != nil || st.Stdout != nil || st.Stderr != nil {
		s.event(events.Attach)
	}
	m, err := s.launch(ctx)
	if err == nil {
		return s.attach(m)
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if s.cfg.Keep && !s.recorded {
		s.keepFailed(err)
	}
	s.release(context.WithoutCancel(ctx))
	s.finish(ExitStatus{}, err)
	return err
}

// keepFailed records a start that failed.
func (s *Sandbox) keepFailed(err error) {
	st := &record.State{Status: record.Created, ExitCode: workload.ExitStatus(err), Error: err.Error()}
	werr := s.writeConfig()
	if werr == nil {
		werr = record.WriteState(s.dir.Path, st)
	}
	if werr != nil {
		s.e.log.Warn("the sandbox could not be recorded", "name", s.name, "err", werr)
		return
	}
	s.recorded = true
}

// writeConfig records what the sandbox is to be; it counts as one when the monitor
// has written what became of it.
func (s *Sandbox) writeConfig() error {
	if s.recorded {
		return nil
	}
	if err := record.WriteConfig(s.dir.Path, s.record()); err != nil {
		return fmt.Errorf("record the sandbox: %w", err)
	}
	return nil
}

// record is what goes to the disk.
func (s *Sandbox) record() *record.Config {
	s.rec.Start = s.start
	return s.rec
}

// finish is the end of the sandbox.
func (s *Sandbox) finish(status ExitStatus, err error) {
	s.stdio.close()
	s.mu.Lock()
	s.state, s.status, s.err = ended, status, err
	s.mu.Unlock()
	close(s.done)
}

// owner is the conversation with the monitor.
type owner struct {
	*userns.Child
	ready  chan struct{}      // closed when the monitor waits for its orders
	served chan struct{}      // closed at its end
	exited chan *proto.Exited // of one
	pty    *os.File
	stdin  *os.File
}

// launch starts the monitor and lets it start the workload.
func (s *Sandbox) launch(ctx context.Context) (_ *owner, err error) {
	env, hosts, err := s.links(ctx)
	if err != nil {
		return nil, err
	}
	shared, err := s.sharedUserNS(ctx)
	if err != nil {
		return nil, err
	}
	if shared != nil {
		defer shared.Close()
	}
	recorded, network := make(chan error, 1), make(chan error, 1) // beside the monitor's start
	go func() { recorded <- s.writeConfig() }()
	var letGo func()
	go func() {
		var err error
		letGo, err = s.ensureNetd(ctx)
		network <- err
	}()
	defer func() { letGo() }() // ready has been called on every way out
	ready := func() error { return errors.Join(<-recorded, <-network) }
	child, err := userns.Start(ctx, userns.Spec{
		Path:       s.e.initPath,
		Args:       []string{proto.RoleMonitor},
		Env:        helperEnv(),
		Mapping:    s.mapping,
		UserNS:     shared,
		Cloneflags: syscall.CLONE_NEWNS,
		Setsid:     true,
		Logger:     s.e.log,
	})
	if err != nil {
		ready()
		return nil, err
	}
	s.marks.add("monitor cloned, its ids mapped")
	s.awaitSweep()
	s.marks.add("left-overs looked for")
	m := &owner{Child: child, ready: make(chan struct{}), served: make(chan struct{}), exited: make(chan *proto.Exited, 1)}
	go s.serve(m)
	files := append(s.stdio.childFiles(), wire.File{Name: "lock", File: s.dir.Lock})
	order := s.start // the record is being written: it has only what lasts
	if rows, cols := s.stdio.size(); rows > 0 && cols > 0 {
		order.Rows, order.Cols = rows, cols
	}
	order.PidsLimit = s.cfg.Resources.PidsLimit
	order.Cgroup, err = s.makeGroup(ctx, m)
	if err := errors.Join(ready(), err); err != nil {
		child.Conn.Close() // it waits for its orders
		s.undo(ctx, m)
		return nil, err
	}
	order.Process.Env, order.Network.Linked = slices.Concat(order.Process.Env, env), hosts
	var started proto.Started
	reply, err := child.Conn.Call(ctx, proto.MsgStart, order, &started, files...)
	if err == nil {
		err = m.takeInput(reply, s.cfg.TTY)
	}
	if err != nil {
		s.undo(ctx, m)
		return nil, s.startError(m, err)
	}
	if s.cfg.Detach { // the monitor is the owner
		s.dir.Release()
	}
	s.marks.add("workload runs", started.Marks...)
	s.mu.Lock()
	s.child, s.started = child, started
	s.mu.Unlock()
	return m, nil
}

// takeInput takes what the monitor hands over for the workload's input.
func (m *owner) takeInput(reply *wire.Message, tty bool) (err error) {
	defer reply.CloseFiles()
	if tty {
		m.pty, err = reply.Take("pty")
		return err
	}
	m.stdin, _ = reply.Take("stdin") // if it is not the workload's own
	return nil
}

// serve takes what the monitor says.
func (s *Sandbox) serve(m *owner) {
	defer close(m.served)
	var ready sync.Once
	err := m.Serve(func(msg *wire.Message) {
		var err error
		switch msg.Type {
		case proto.MsgReady:
			ready.Do(func() { close(m.ready) })
		case proto.MsgLog:
			var l proto.Notice
			if err = msg.Decode(&l); err == nil {
				s.e.log.Warn("sandbox", "name", s.name, "monitor", l.Text)
			}
		case proto.MsgExited:
			x := &proto.Exited{}
			if err = msg.Decode(x); err == nil {
				select {
				case m.exited <- x:
				default:
				}
			}
		}
		if err != nil {
			s.e.log.Warn("message of the sandbox's monitor", "name", s.name, "err", err)
		}
	})
	if err != nil {
		s.e.log.Warn("connection to the sandbox's monitor", "name", s.name, "err", err)
	}
}

// undo waits until the monitor has removed what it made. Hanging up tells it to.
func (s *Sandbox) undo(ctx context.Context, m *owner) {
	if ctx.Err() != nil {
		m.Conn.Close()
	}
	t := time.AfterFunc(undoPatience, func() { m.Kill() })
	defer t.Stop()
	m.Wait()
	<-m.served
	m.Close()
	s.report(m)
}

// report logs what went wrong while the monitor cleaned up.
func (s *Sandbox) report(m *owner) *proto.Exited {
	select {
	case x := <-m.exited:
		for _, n := range x.Notes {
			s.e.log.Warn("clean-up of the sandbox", "name", s.name, "note", n)
		}
		return x
	default:
		return nil
	}
}

func (s *Sandbox) startError(m *owner, err error) error {
	for _, gone := range []error{io.EOF, syscall.EPIPE, syscall.ECONNRESET} {
		if errors.Is(err, gone) && !isWire(err) {
			return monitorDied(m)
		}
	}
	return workload.FromWire(err)
}

// isWire says that the error is the monitor's own report, whatever errno is in it.
func isWire(err error) bool {
	var we *wire.Error
	return errors.As(err, &we)
}

// monitorDied is ErrMonitorDied with what is known about its end.
func monitorDied(m *owner) error {
	if err := m.Failure(context.Background()); err != nil {
		return fmt.Errorf("%w: %w", ErrMonitorDied, err)
	}
	return ErrMonitorDied
}

// attach connects the caller's streams to the workload that runs now.
func (s *Sandbox) attach(m *owner) error {
	err := s.stdio.run(m.pty, m.stdin)
	s.mu.Lock()
	s.state = running
	s.mu.Unlock()
	if err != nil {
		m.Kill()
	}
	go s.wait(m, err)
	if err != nil {
		<-s.done
		return fmt.Errorf("standard streams: %w", err)
	}
	return nil
}

// wait collects the end of the sandbox: the monitor's last message, the end of its
// process, what it left if it was killed, the rest of the output.
func (s *Sandbox) wait(m *owner, err error) {
	m.Wait()
	<-m.served
	x := s.report(m)
	if x != nil {
		s.marks.add("monitor gone", x.Marks...)
	}
	var status ExitStatus
	switch {
	case err != nil:
	case x == nil:
		err = monitorDied(m)
		if s.cfg.Detach || s.cfg.Keep {
			s.afterDeath()
		}
	default:
		status = exitStatus(x)
	}
	m.Close()
	s.recorded = s.recorded || s.cfg.Keep
	s.release(context.Background())
	if werr := s.stdio.drain(); werr != nil {
		s.e.log.Debug("the sandbox's output could not be written", "name", s.name, "err", werr)
	}
	s.marks.add("output written")
	s.finish(status, err)
}

// afterDeath makes the record true when the monitor was killed.
func (s *Sandbox) afterDeath() {
	if !s.cfg.Detach {
		s.dir.Release() // repair wants to be the only owner
	}
	if _, err := s.e.repair(context.Background(), s.id); err != nil {
		s.e.log.Warn("the sandbox could not be cleaned up", "name", s.name, "err", err)
	}
}

// release gives back what the sandbox has besides its processes and streams, and
// ends those that a killed monitor left. What is recorded stays.
func (s *Sandbox) release(ctx context.Context) {
	s.awaitSweep()
	if s.dir != nil && (s.recorded || s.detached()) {
		s.dir.Release()
	} else if s.dir != nil {
		_, gone := os.Lstat(s.dir.Path)
		if err := s.e.removeBox(ctx, s.dir); err != nil {
			s.e.log.Warn("the sandbox could not be removed", "dir", s.dir.Path, "err", err)
		} else if gone == nil && s.announced { // else the monitor has said so
			s.event(events.Destroy)
		}
		s.dir.Release()
	}
	if s.lease != nil {
		s.lease.Close()
	}
}
