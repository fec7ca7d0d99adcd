package sandbox

import (
	"context"
	"errors"
	"unicode/utf8"

	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

// Session is a caller's connection to a workload's streams, or to a program that
// Exec has started.
type Session struct {
	s     *Sandbox
	c     *control
	stdio *stdio
}

// Attach connects the streams to a sandbox that runs. Output comes from now on.
// What is not taken for 10 seconds ends the session, and the workload goes on.
func (s *Sandbox) Attach(ctx context.Context, streams Streams) (*Session, error) {
	return s.session(ctx, streams, s.start.TTY, true, proto.MsgAttach, proto.Attach{Stdin: streams.Stdin != nil})
}

// ExecConfig is a program to run in a sandbox, beside its workload.
type ExecConfig struct {
	Args []string
	// Env is added to the workload's. WorkDir and User are the workload's if empty.
	Env           []string
	WorkDir, User string
	// TTY gives the program a terminal of Rows by Cols characters.
	TTY        bool
	Rows, Cols uint16
	// Detach leaves it to itself, without streams.
	Detach bool
	Streams
}

// Exec runs a program in a sandbox that runs. It has the workload's rights.
func (s *Sandbox) Exec(ctx context.Context, c ExecConfig) (*Session, error) {
	if !utf8.ValidString(c.WorkDir) {
		return nil, badConfig("working directory", "%q is not UTF-8", c.WorkDir)
	}
	req := proto.Exec{Args: c.Args, Env: c.Env, Cwd: c.WorkDir, User: c.User, TTY: c.TTY, Rows: c.Rows, Cols: c.Cols}
	return s.session(ctx, c.Streams, c.TTY, c.Detach, proto.MsgExec, req)
}

// session asks for one. It has sessions with the outputs, as through the monitor, or
// its pipes are the program's own.
func (s *Sandbox) session(ctx context.Context, streams Streams, tty, through bool, typ string, req any) (*Session, error) {
	st, err := newStdio(streams, tty, through)
	if err != nil {
		return nil, err
	}
	c, err := s.dial(ctx)
	if err != nil {
		st.close()
		return nil, err
	}
	x := &Session{s: s, c: c, stdio: st}
	reply, err := c.Call(ctx, typ, req, nil, st.childFiles()...)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else {
			err = s.controlError(err)
		}
		x.Close()
		return nil, err
	}
	pty, _ := reply.Take("pty") // which of them there is depends on the sandbox
	stdin, _ := reply.Take("stdin")
	reply.CloseFiles()
	if err := st.run(pty, stdin); err != nil {
		x.Close()
		return nil, err
	}
	return x, nil
}

// Wait returns how the workload or program ended, when its output has been written.
// When ctx ends first, the session is still there.
func (x *Session) Wait(ctx context.Context) (ExitStatus, error) {
	var e proto.Exited
	select {
	case e = <-x.c.exited:
	case <-x.c.served:
		select {
		case e = <-x.c.exited: // its last word
		default:
			return ExitStatus{}, x.lost(ctx)
		}
	case <-ctx.Done():
		return ExitStatus{}, context.Cause(ctx)
	}
	err := x.stdio.drain()
	x.Close()
	return exitStatus(&e), err
}

// lost explains the end of the connection.
func (x *Session) lost(ctx context.Context) error {
	x.stdio.drain()
	x.Close()
	st, err := x.s.look(ctx)
	if err == nil && st.Alive() {
		return errors.New("the sandbox's monitor has ended the connection")
	}
	return ErrMonitorDied
}

// Resize changes the size of the terminal.
func (x *Session) Resize(rows, cols uint16) error { return x.stdio.resize(rows, cols) }

// Close lets go of the streams; the workload or program goes on.
func (x *Session) Close() error {
	x.stdio.close()
	x.c.close()
	return nil
}
