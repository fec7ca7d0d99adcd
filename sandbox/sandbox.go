package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/netd"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
	"github.com/rootless-sbx/sbx/userns"
)

// ErrMonitorDied is returned when the process that owns the sandbox was killed.
// The sandbox has ended with it.
var ErrMonitorDied = errors.New("the sandbox's monitor was killed")

// ExitStatus is how a workload ended.
type ExitStatus struct {
	Code   int            // 0-255, 128+N after signal N
	Signal syscall.Signal // 0 unless a signal ended it
}

// Info is what is known about a running sandbox.
type Info struct {
	ID, Name string
	proto.Started
}

// Sandbox is one container. Its methods may be called from several goroutines.
type Sandbox struct {
	e          *Engine
	cfg        Config
	id, name   string
	mapping    *userns.Mapping
	lease      *image.Lease // keeps the layers; nil for a RootFS
	lowers     []string
	driver     string // of storage
	dir        *lockedDir
	start      proto.Start
	stopSignal syscall.Signal
	notes      []string

	child   *userns.Child // the monitor
	stdio   *stdio
	started proto.Started
	done    chan struct{} // closed when status and err are set
	status  ExitStatus
	err     error

	cleanOnce sync.Once
}

// newID makes a sandbox's id: 64 hexadecimal digits.
func newID() string { return workload.NewID() }

// ID returns the sandbox's id, 64 hexadecimal digits.
func (s *Sandbox) ID() string { return s.id }

// Name returns the sandbox's name.
func (s *Sandbox) Name() string { return s.name }

// Notes are what the user should know though nothing failed, e.g. a rung of the
// ladder that is not the first.
func (s *Sandbox) Notes() []string {
	return append(append([]string(nil), s.notes...), s.started.Notes...)
}

// Ports are the published ports with the host ports that were chosen.
func (s *Sandbox) Ports() []port.Status { return s.started.Ports }

// Info describes the sandbox once it has started.
func (s *Sandbox) Info() Info { return Info{ID: s.id, Name: s.name, Started: s.started} }

// StopSignal is the signal that asks the workload to end.
func (s *Sandbox) StopSignal() syscall.Signal { return s.stopSignal }

// Start starts the workload and returns when it runs. If it fails, nothing is left.
// When ctx ends while Start runs, it fails; later ends of ctx mean nothing.
func (s *Sandbox) Start(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			s.cleanup(context.WithoutCancel(ctx))
		}
	}()
	if s.cfg.Network == NetworkDefault {
		if err := s.e.ensureNetd(ctx); err != nil {
			return err
		}
	}
	if s.stdio, err = newStdio(&s.cfg); err != nil {
		return err
	}
	s.child, err = userns.Start(ctx, userns.Spec{
		Path:       s.e.initPath,
		Args:       []string{proto.RoleMonitor},
		Env:        helperEnv(),
		Mapping:    s.mapping,
		Cloneflags: syscall.CLONE_NEWNS,
		Setsid:     true,
		Logger:     s.e.log,
	})
	if err != nil {
		return err
	}
	exited := make(chan *proto.Exited, 1)
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.child.Serve(func(m *wire.Message) {
			if m.Type == proto.MsgExited {
				var x proto.Exited
				if m.Decode(&x) == nil {
					exited <- &x
				}
			}
		})
	}()
	files := append(s.stdio.childFiles(), wire.File{Name: "lock", File: s.dir.lock})
	m, err := s.child.Conn.Call(ctx, proto.MsgStart, s.start, &s.started, files...)
	s.stdio.closeChild()
	if err != nil {
		// The monitor removes what it made before it goes; a cancelled caller
		// tells it to by hanging up.
		if ctx.Err() != nil {
			s.child.Conn.Close()
		}
		<-served
		s.child.Wait()
		return s.startError(ctx, err)
	}
	defer m.CloseFiles()
	if s.cfg.TTY {
		pty, err := m.Take("pty")
		if err != nil {
			s.child.Kill()
			return err
		}
		s.stdio.attachTerminal(pty)
	}
	go s.wait(served, exited)
	return nil
}

func (s *Sandbox) startError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) {
		if ferr := s.child.Failure(ctx); ferr != nil {
			return fmt.Errorf("%w: %w", ErrMonitorDied, ferr)
		}
		return ErrMonitorDied
	}
	return workload.FromWire(err)
}

// wait collects the end of the sandbox: the monitor's last message, the end of its
// process, the rest of the output.
func (s *Sandbox) wait(served chan struct{}, exited chan *proto.Exited) {
	<-served
	s.child.Wait()
	s.stdio.drain()
	select {
	case x := <-exited:
		s.status = ExitStatus{Code: x.Code, Signal: syscall.Signal(x.Signal)}
		for _, n := range x.Notes {
			s.e.log.Warn("clean-up of the sandbox", "name", s.name, "note", n)
		}
	default:
		s.err = ErrMonitorDied
	}
	s.cleanup(context.Background())
	close(s.done)
}

// Wait returns how the workload ended, when everything of the sandbox is gone and
// its output has been written.
func (s *Sandbox) Wait(ctx context.Context) (ExitStatus, error) {
	select {
	case <-s.done:
		return s.status, s.err
	case <-ctx.Done():
		return ExitStatus{}, context.Cause(ctx)
	}
}

// Signal sends a signal to the workload's first process. As everywhere, pid 1
// does not get signals that it has no handler for, except SIGKILL and SIGSTOP.
func (s *Sandbox) Signal(ctx context.Context, sig syscall.Signal) error {
	return s.call(ctx, proto.MsgSignal, proto.Signal{Number: int(sig)})
}

// Resize changes the size of the workload's terminal.
func (s *Sandbox) Resize(rows, cols uint16) error {
	if s.stdio == nil {
		return nil
	}
	return s.stdio.resize(rows, cols)
}

// Stop sends the stop signal, and SIGKILL when the stop timeout has passed.
func (s *Sandbox) Stop(ctx context.Context) error {
	if err := s.Signal(ctx, s.stopSignal); err != nil {
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
		return s.Signal(ctx, syscall.SIGKILL)
	}
}

// ErrNotStarted is returned for a sandbox that has not been started.
var ErrNotStarted = errors.New("the sandbox has not been started")

func (s *Sandbox) call(ctx context.Context, typ string, req any) error {
	if s.child == nil {
		return ErrNotStarted
	}
	m, err := s.child.Conn.Call(ctx, typ, req, nil)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) {
		return nil // it has just ended
	}
	if err != nil {
		return err
	}
	m.CloseFiles()
	return nil
}

// Remove gives up a sandbox that was created and not started.
func (s *Sandbox) Remove(ctx context.Context) { s.cleanup(ctx) }

// cleanup releases everything that this process holds. The monitor has normally
// removed the directory; what a killed one left is removed here.
func (s *Sandbox) cleanup(ctx context.Context) {
	s.cleanOnce.Do(func() {
		if s.child != nil {
			s.child.Conn.Close()
			s.child.Wait()
			s.child.Close()
		}
		if s.stdio != nil {
			s.stdio.close()
		}
		if s.dir != nil {
			if err := s.e.removeTree(ctx, s.dir.path); err != nil {
				s.e.log.Warn("the sandbox's directory could not be removed", "dir", s.dir.path, "err", err)
			}
			s.dir.release()
		}
		if s.lease != nil {
			s.lease.Close()
		}
	})
}

// ensureNetd starts the default network's process if it is not there.
func (e *Engine) ensureNetd(ctx context.Context) error {
	c, err := netd.Ensure(ctx, netd.Config{
		StartConfig: netd.StartConfig{RuntimeDir: e.runtimeDir, Name: NetworkDefault, Linger: e.linger},
		Start:       netd.Spawn(e.initPath, proto.RoleNetd),
	})
	if err != nil {
		return err
	}
	return c.Close()
}
