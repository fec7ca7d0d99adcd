package sandbox

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxdir"
	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
	"github.com/rootless-sbx/sbx/userns"
)

// ExitStatus is how a workload ended.
type ExitStatus struct {
	Code   int            // 0-255, 128+N after signal N
	Signal syscall.Signal // 0 unless a signal ended pid 1
	// OOMKilled says that the kernel killed a process because the sandbox had used up
	// its memory; not necessarily pid 1.
	OOMKilled bool
}

// Info is what is known about a running sandbox.
type Info struct {
	ID, Name string
	proto.Started
}

// state of a Sandbox; it only grows.
type state int

const (
	created state = iota
	starting
	running
	ended
)

// Sandbox is one container. Its methods may be called from several goroutines.
type Sandbox struct {
	e          *Engine
	cfg        Config
	id, name   string
	mapping    *userns.Mapping
	lease      *image.Lease // keeps the layers; nil for a RootFS
	lowers     []string
	imageID    string
	driver     string // of storage
	dir        *boxdir.Dir
	rec        *record.Config
	recorded   bool // it is on the disk, and stays whatever becomes of us
	announced  bool // its creation is in the journal
	start      proto.Start
	stopSignal syscall.Signal
	stdio      *stdio
	marks      *timings
	swept      chan struct{} // closed when Create has looked for left-overs; nil of an opened one

	mu      sync.Mutex // guards what follows
	state   state
	remote  bool                    // others may work on it: only the disk and its monitor know
	cancel  context.CancelCauseFunc // of Start
	settled chan struct{}           // closed when Start returns
	child   *userns.Child           // the monitor
	notes   []string
	started proto.Started

	done   chan struct{} // closed when the sandbox has ended
	status ExitStatus    // these two belong to whoever closes done
	err    error
}

// ID returns the sandbox's id, 64 hexadecimal digits.
func (s *Sandbox) ID() string { return s.id }

// Name returns the sandbox's name.
func (s *Sandbox) Name() string { return s.name }

// Notes are what the user should know though nothing failed, e.g. a rung of the
// ladder that is not the first.
func (s *Sandbox) Notes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append(append([]string(nil), s.notes...), s.started.Notes...)
}

func (s *Sandbox) note(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes = append(s.notes, text)
}

// Ports are the published ports with the host ports that were chosen.
func (s *Sandbox) Ports() []port.Status { return s.Info().Ports }

// Info describes the sandbox once it has started.
func (s *Sandbox) Info() Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Info{ID: s.id, Name: s.name, Started: s.started}
}

// MonitorPID is the process that owns a sandbox that this process has started, 0
// before.
func (s *Sandbox) MonitorPID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.child == nil {
		return 0
	}
	return s.child.PID
}

// TTY says whether the workload has a terminal.
func (s *Sandbox) TTY() bool { return s.start.TTY }

// OpenStdin says whether the workload has an input that somebody may connect.
func (s *Sandbox) OpenStdin() bool { return s.start.Life.OpenStdin || s.start.TTY }

// StopSignal is the signal that asks the workload to end.
func (s *Sandbox) StopSignal() syscall.Signal { return s.stopSignal }

// Wait returns how the workload ended, when everything of the sandbox is gone and
// its output has been written: it waits for the Stdout and Stderr of the Config.
// After a Start that failed it returns that error. It does not end the sandbox
// when ctx ends.
func (s *Sandbox) Wait(ctx context.Context) (ExitStatus, error) {
	s.mu.Lock()
	st, remote := s.state, s.remote
	s.mu.Unlock()
	if remote {
		return s.remoteWait(ctx)
	}
	if st == created {
		return ExitStatus{}, ErrNotStarted
	}
	select {
	case <-s.done:
		return s.status, s.err
	default:
	}
	select {
	case <-s.done:
		return s.status, s.err
	case <-ctx.Done():
		return ExitStatus{}, context.Cause(ctx)
	}
}

// Signal sends a signal to the sandbox's pid 1, the workload's first process unless
// Config.Init is set. As everywhere, pid 1 does not get signals that it has no
// handler for, except SIGKILL and SIGSTOP.
func (s *Sandbox) Signal(ctx context.Context, sig syscall.Signal) error {
	s.mu.Lock()
	st, child, remote := s.state, s.child, s.remote
	s.mu.Unlock()
	if remote {
		return s.remoteCall(ctx, proto.MsgSignal, proto.Signal{Number: int(sig)}, nil)
	}
	switch st {
	case created, starting:
		return ErrNotStarted
	case ended:
		return ErrEnded
	}
	m, err := child.Conn.Call(ctx, proto.MsgSignal, proto.Signal{Number: int(sig)}, nil)
	if isGone(err) || isNotRunning(err) {
		return ErrEnded
	}
	if err != nil {
		return err
	}
	m.CloseFiles()
	return nil
}

// isGone says that the other end of a connection has ended.
func isGone(err error) bool {
	if isWire(err) {
		return false
	}
	for _, gone := range []error{io.EOF, net.ErrClosed, syscall.EPIPE, syscall.ECONNRESET} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return false
}

// Detach leaves a sandbox that this process has started in its foreground: it goes
// on without us, and the handle is from now on as one of Open. One that neither is
// kept nor has a log has its streams from us and cannot be left.
func (s *Sandbox) Detach(ctx context.Context) error {
	s.mu.Lock()
	st, child := s.state, s.child
	s.mu.Unlock()
	if st != running {
		return ErrNotRunning
	}
	m, err := child.Conn.Call(ctx, proto.MsgDetach, nil, nil)
	if err != nil {
		return s.controlError(err)
	}
	m.CloseFiles()
	s.stdio.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cfg.Detach, s.remote = true, true
	return s.dir.Release()
}

// Resize changes the size of the workload's terminal; before Start, the size that
// it begins with. Without a terminal it does nothing.
func (s *Sandbox) Resize(rows, cols uint16) error { return s.stdio.resize(rows, cols) }

// StopOptions say how to stop; the zero value is as the sandbox was made.
type StopOptions struct {
	Signal syscall.Signal
	// Timeout is after which time it is killed; nil means Config.StopTimeout, and a
	// negative one never.
	Timeout *time.Duration
}

// Stop sends the stop signal, and SIGKILL when the stop timeout has passed, and
// returns when the sandbox has ended. That it had ended before is no error.
func (s *Sandbox) Stop(ctx context.Context) error { return s.StopWith(ctx, StopOptions{}) }

// StopWith is Stop with another signal or timeout.
func (s *Sandbox) StopWith(ctx context.Context, o StopOptions) error {
	if s.isRemote() {
		return s.remoteStop(ctx, o)
	}
	sig, timeout := s.stopSignal, s.cfg.StopTimeout
	if o.Signal != 0 {
		sig = o.Signal
	}
	if o.Timeout != nil {
		timeout = *o.Timeout
	}
	if err := s.Signal(ctx, sig); errors.Is(err, ErrEnded) {
		return s.ended(ctx)
	} else if err != nil {
		return err
	}
	var late <-chan time.Time
	if timeout >= 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-late:
	}
	if err := s.Signal(ctx, syscall.SIGKILL); err != nil && !errors.Is(err, ErrEnded) {
		return err
	}
	return s.ended(ctx)
}

func (s *Sandbox) ended(ctx context.Context) error {
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Restart stops the sandbox if it runs, and starts it again.
func (s *Sandbox) Restart(ctx context.Context, o StopOptions) error {
	if err := s.StopWith(ctx, o); err != nil {
		return err
	}
	if err := s.Start(ctx); err != nil {
		return err
	}
	s.event(events.Restart)
	return nil
}

// Remove gives the sandbox up whatever it is doing: one that was not started, one
// that is starting, and one that runs, which is killed. It returns when nothing is
// left of it.
func (s *Sandbox) Remove(ctx context.Context) error {
	if s.isRemote() {
		return s.RemoveWith(ctx, RemoveOptions{Force: true, Volumes: true})
	}
	s.mu.Lock()
	st, settled := s.state, s.settled
	switch st {
	case created:
		s.state, s.err = ended, ErrRemoved
	case starting:
		s.cancel(ErrRemoved)
	}
	s.mu.Unlock()
	switch st {
	case created:
		s.release(context.WithoutCancel(ctx))
		s.stdio.close()
		close(s.done)
	case starting: // it may be just past the point of no return
		select {
		case <-settled:
			return s.Remove(ctx)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	case running:
		if err := s.Signal(ctx, syscall.SIGKILL); err != nil && !errors.Is(err, ErrEnded) {
			return err
		}
	}
	if err := s.ended(ctx); err != nil || !s.cfg.Keep {
		return err
	}
	s.mu.Lock()
	s.remote = true
	s.mu.Unlock()
	err := s.RemoveWith(ctx, RemoveOptions{Force: true, Volumes: true})
	if errors.Is(err, ErrNoSandbox) {
		return nil
	}
	return err
}

func (s *Sandbox) isRemote() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remote
}

// detached says that the sandbox runs, or has run, without us.
func (s *Sandbox) detached() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg.Detach && s.child != nil
}
