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
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/userns"
)

var (
	// ErrMonitorDied is returned when the process that owns the sandbox was killed.
	// The sandbox has ended with it.
	ErrMonitorDied = errors.New("the sandbox's monitor was killed")
	// ErrNotStarted is returned for a sandbox that has not been started.
	ErrNotStarted = errors.New("the sandbox has not been started")
	// ErrStarted is returned by a second Start.
	ErrStarted = errors.New("the sandbox has been started already")
	// ErrEnded is returned by Signal when there is nobody to signal any more.
	ErrEnded = errors.New("the sandbox has ended")
	// ErrRemoved is returned by Start and Wait after Remove.
	ErrRemoved = errors.New("the sandbox has been removed")
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
	driver     string // of storage
	dir        *boxdir.Dir
	start      proto.Start
	stopSignal syscall.Signal
	stdio      *stdio
	marks      *timings

	mu      sync.Mutex // guards what follows
	state   state
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

// Ports are the published ports with the host ports that were chosen.
func (s *Sandbox) Ports() []port.Status { return s.Info().Ports }

// Info describes the sandbox once it has started.
func (s *Sandbox) Info() Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Info{ID: s.id, Name: s.name, Started: s.started}
}

// StopSignal is the signal that asks the workload to end.
func (s *Sandbox) StopSignal() syscall.Signal { return s.stopSignal }

// Wait returns how the workload ended, when everything of the sandbox is gone and
// its output has been written: it waits for the Stdout and Stderr of the Config.
// After a Start that failed it returns that error. It does not end the sandbox
// when ctx ends.
func (s *Sandbox) Wait(ctx context.Context) (ExitStatus, error) {
	s.mu.Lock()
	st := s.state
	s.mu.Unlock()
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
	st, child := s.state, s.child
	s.mu.Unlock()
	switch st {
	case created, starting:
		return ErrNotStarted
	case ended:
		return ErrEnded
	}
	m, err := child.Conn.Call(ctx, proto.MsgSignal, proto.Signal{Number: int(sig)}, nil)
	for _, gone := range []error{io.EOF, net.ErrClosed, syscall.EPIPE, syscall.ECONNRESET} {
		if errors.Is(err, gone) {
			return ErrEnded
		}
	}
	if err != nil {
		return err
	}
	m.CloseFiles()
	return nil
}

// Resize changes the size of the workload's terminal; before Start, the size that
// it begins with. Without a terminal it does nothing.
func (s *Sandbox) Resize(rows, cols uint16) error { return s.stdio.resize(rows, cols) }

// Stop sends the stop signal, and SIGKILL when the stop timeout has passed, and
// returns when the sandbox has ended. That it had ended before is no error.
func (s *Sandbox) Stop(ctx context.Context) error {
	if err := s.Signal(ctx, s.stopSignal); errors.Is(err, ErrEnded) {
		return s.ended(ctx)
	} else if err != nil {
		return err
	}
	t := time.NewTimer(s.cfg.StopTimeout)
	defer t.Stop()
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
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

// Remove gives the sandbox up whatever it is doing: one that was not started, one
// that is starting, and one that runs, which is killed. It returns when nothing is
// left of it.
func (s *Sandbox) Remove(ctx context.Context) error {
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
	return s.ended(ctx)
}
