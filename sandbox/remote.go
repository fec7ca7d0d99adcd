package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"syscall"
	"time"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxdir"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxsock"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
)

// control is a connection to the monitor of a sandbox that somebody has started.
type control struct {
	*wire.Conn
	exited chan proto.Exited // of one
	served chan struct{}     // closed at its end
}

// dial connects to the monitor. ErrNotRunning says that there is none.
func (s *Sandbox) dial(ctx context.Context) (*control, error) {
	end := time.Now().Add(claimPatience)
	for {
		conn, err := boxsock.Dial(ctx, proto.BoxSocket(s.e.runtimeDir, s.id))
		if err == nil {
			return newControl(conn), nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, err
		}
		st, err := s.look(ctx)
		if err != nil {
			return nil, err
		}
		owned := map[string]bool{s.id: true}
		if !st.Alive() { // perhaps it is just being started
			if owned, err = boxdir.Owned(ctx, s.e.containers(), []string{s.id}); err != nil {
				return nil, err
			}
		}
		if !owned[s.id] || time.Now().After(end) {
			return nil, s.notRunning(st)
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (s *Sandbox) notRunning(st *record.State) error {
	e := &StateError{Kind: ErrNotRunning, Name: s.name, Fix: "sbx start " + s.name}
	if st != nil {
		e.Msg = "the sandbox is not running: it is " + st.Status
	}
	return e
}

func newControl(conn *wire.Conn) *control {
	c := &control{Conn: conn, exited: make(chan proto.Exited, 1), served: make(chan struct{})}
	go func() {
		defer close(c.served)
		conn.Serve(func(m *wire.Message) {
			var x proto.Exited
			if m.Type == proto.MsgExited && m.Decode(&x) == nil {
				select {
				case c.exited <- x:
				default:
				}
			}
		})
	}()
	return c
}

func (c *control) close() {
	c.Conn.Close()
	<-c.served
}

func isNotRunning(err error) bool {
	var we *wire.Error
	return errors.As(err, &we) && we.Code == proto.CodeNotRunning
}

// controlError gives an answer of the monitor its type.
func (s *Sandbox) controlError(err error) error {
	var we *wire.Error
	switch {
	case isGone(err):
		return s.notRunning(nil)
	case errors.As(err, &we) && we.Code == proto.CodeNotRunning:
		return s.notRunning(nil)
	case errors.As(err, &we) && we.Code == proto.CodePaused:
		return &StateError{Kind: ErrPaused, Name: s.name, Msg: we.Msg, Fix: "sbx unpause " + s.name}
	case errors.As(err, &we) && we.Code == proto.CodeNotPaused:
		return &StateError{Kind: ErrNotPaused, Name: s.name}
	case errors.As(err, &we) && we.Code == proto.CodeNoBox:
		return s.noGroup()
	case errors.As(err, &we) && we.Code == proto.CodeNotAttachable:
		return &StateError{Kind: ErrNotAttachable, Name: s.name, Msg: we.Msg, Fix: we.Fix}
	}
	return workload.FromWire(err)
}

// remoteCall asks the monitor.
func (s *Sandbox) remoteCall(ctx context.Context, typ string, req, resp any) error {
	c, err := s.dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	m, err := c.Call(ctx, typ, req, resp)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return s.controlError(err)
	}
	m.CloseFiles()
	return nil
}

func exitStatus(x *proto.Exited) ExitStatus {
	return ExitStatus{Code: x.Code, Signal: syscall.Signal(x.Signal), OOMKilled: x.OOMKilled}
}

// remoteWait waits for the end of a sandbox that runs; of another one it knows it.
func (s *Sandbox) remoteWait(ctx context.Context) (ExitStatus, error) {
	for {
		var x proto.Exited
		err := s.remoteCall(ctx, proto.MsgWait, nil, &x)
		if !errors.Is(err, ErrNotRunning) {
			return exitStatus(&x), err
		}
		st, err := s.look(ctx) // also when the monitor was killed meanwhile
		switch {
		case errors.Is(err, ErrNoSandbox) && !s.start.Life.Keep:
			return ExitStatus{}, ErrMonitorDied
		case err != nil:
			return ExitStatus{}, err
		case !st.Alive():
			return ExitStatus{Code: st.ExitCode, OOMKilled: st.OOMKilled}, nil
		}
		// The kernel has not ended all of the monitor yet.
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ExitStatus{}, context.Cause(ctx)
		}
	}
}

func (s *Sandbox) remoteStop(ctx context.Context, o StopOptions) error {
	how := proto.Stop{Signal: int(o.Signal)}
	if o.Timeout != nil {
		how.Timeout = *o.Timeout
		if how.Timeout == 0 {
			how.Timeout = 1 // at once
		}
	}
	err := s.remoteCall(ctx, proto.MsgStop, how, nil)
	if errors.Is(err, ErrNotRunning) || errors.Is(err, ErrNoSandbox) && !s.start.Life.Keep {
		return nil
	}
	return err
}
