package monitor

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
	"github.com/rootless-sbx/sbx/sandbox/internal/streams"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
	"github.com/rootless-sbx/sbx/userns"
	"golang.org/x/sys/unix"
)

// maxExecs bounds what runs beside the workload.
const maxExecs = 128

// exec runs a program in the sandbox for a connection, which is told of its end. The
// program goes on when the connection ends.
func (s *session) exec(ctx context.Context, req *wire.Message) error {
	var x proto.Exec
	if err := req.Decode(&x); err != nil {
		return err
	}
	files := takeFiles(req, "stdin", "stdout", "stderr")
	return s.with(files, func() error {
		command, id := ": "+strings.Join(x.Args, " "), workload.NewID()
		p, err := s.m.execute(ctx, x, files, func() { s.m.event(events.ExecCreate+command, "execID", id) })
		closeAll(files)
		if err != nil {
			return err
		}
		s.m.event(events.ExecStart+command, "execID", id)
		var pty []wire.File
		if p.pty != nil {
			pty = []wire.File{{Name: "pty", File: p.pty}}
		}
		err = s.conn.Reply(req, proto.Executed{PID: p.child.PID}, nil, pty...)
		if p.pty != nil {
			p.pty.Close()
		}
		exited := p.wait()
		s.m.event(events.ExecDie, "execID", id, "exitCode", strconv.Itoa(exited.Code))
		if err == nil {
			err = s.conn.Send(proto.MsgExited, exited)
		}
		if isEOF(err) {
			return nil // nobody wants to know
		}
		return err
	}, req)
}

// executed is a program that runs beside the workload.
type executed struct {
	m     *monitor
	child *userns.Child
	pty   *os.File
}

func (p *executed) wait() proto.Exited {
	defer p.m.execDone()
	defer p.child.Close()
	ws, err := p.child.Wait()
	if err != nil {
		return proto.Exited{Code: 125}
	}
	return exitedWith(ws)
}

// execute starts a program; begun is told when nothing refuses it any more.
func (m *monitor) execute(ctx context.Context, x proto.Exec, files map[string]*os.File, begun func()) (*executed, error) {
	letGo, err := m.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer letGo()
	one, host, err := m.execBegin()
	if err != nil {
		return nil, err
	}
	defer one.Close()
	begun()
	p, err := m.executeBeside(ctx, one, host, x, files)
	switch {
	case err == nil:
		return p, nil
	case ended(one, err):
		return nil, errNotRunning()
	}
	return nil, m.crowded(err)
}

// ended says that pid 1 has, which is then why a program could not be executed beside it.
// A pid 1 that was killed ends after the others of its namespace.
func ended(one *os.File, why error) bool {
	patience := 0
	var x *userns.ExitError
	if errors.Is(why, syscall.ESRCH) || errors.As(why, &x) && x.Status.Signaled() {
		patience = 1000 // milliseconds
	}
	end := time.Now().Add(time.Duration(patience) * time.Millisecond)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(one.Fd()), Events: unix.POLLIN}}, patience)
		if err != unix.EINTR || time.Now().After(end) {
			return n == 1
		}
	}
}

// executeBeside starts a program beside pid 1.
func (m *monitor) executeBeside(ctx context.Context, one *os.File, host bool, x proto.Exec, files map[string]*os.File) (*executed, error) {
	box, err := m.box()
	if err != nil {
		m.execDone()
		return nil, err
	}
	if box != nil {
		defer box.Close()
	}
	p := &executed{m: m}
	p.child, err = userns.Start(ctx, userns.Spec{
		Cgroup: box,
		Path:   m.program.Path(), Args: []string{proto.RoleExec},
		Stdin: files["stdin"], Stdout: files["stdout"], Stderr: files["stderr"],
		Setsid: true, PIDNS: one, // its death signal it sets itself
	})
	if err != nil {
		m.execDone()
		return nil, err
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		p.child.Serve(func(*wire.Message) {})
	}()
	if err := p.start(ctx, x, one, host); err != nil {
		p.child.Kill()
		p.wait()
		<-served
		if isEOF(err) { // it said why, or the sandbox has ended meanwhile
			if ferr := p.child.Failure(ctx); ferr != nil {
				err = ferr
			}
		}
		return nil, err
	}
	return p, nil
}

func (p *executed) start(ctx context.Context, x proto.Exec, one *os.File, host bool) error {
	join := proto.Join{HostNetwork: host, TTY: x.TTY, Rows: x.Rows, Cols: x.Cols}
	reply, err := p.child.Conn.Call(ctx, proto.MsgJoin, join, nil, wire.File{Name: "pid1", File: one})
	if err != nil {
		return err
	}
	defer reply.CloseFiles()
	if x.TTY {
		if p.pty, err = reply.Take("pty"); err != nil {
			return err
		}
	}
	m, err := p.child.Conn.Call(ctx, proto.MsgExec, p.m.execSpec(x), nil, p.m.rulesFile()...)
	if err == nil {
		m.CloseFiles()
	} else if !isEOF(err) { // success is the end of the connection: see runWorkload
		if p.pty != nil {
			p.pty.Close()
		}
		return err
	}
	return nil
}

// execSpec is the workload's, for another program.
func (m *monitor) execSpec(x proto.Exec) workload.Spec {
	spec := m.spec.Process
	spec.Args, spec.Terminal, spec.Pdeathsig = x.Args, x.TTY, syscall.SIGKILL
	if x.Cwd != "" {
		spec.Cwd = x.Cwd
	}
	if x.User != "" {
		spec.User = x.User
	}
	env := slices.Clone(spec.Env)
	set := func(kv string) {
		name, _, _ := strings.Cut(kv, "=")
		env = slices.DeleteFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
		env = append(env, kv)
	}
	if x.TTY && !m.spec.TTY && !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "TERM=") }) {
		set("TERM=xterm")
	}
	for _, kv := range x.Env {
		set(kv)
	}
	spec.Env = env
	return spec
}

// execBegin counts a program and returns the pidfd of pid 1, a copy, and whether it has
// the host's network.
func (m *monitor) execBegin() (one *os.File, host bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.init == nil || !m.started {
		return nil, false, errNotRunning()
	}
	if m.state.Status == record.Paused {
		return nil, false, errPaused()
	}
	if m.execs >= maxExecs {
		return nil, false, wire.Errorf("", "%d programs are executed in the sandbox already", m.execs)
	}
	if one, err = streams.Dup(m.init.PidFD); err == nil {
		m.execs++
	}
	return one, m.hostNetwork(), err
}

func (m *monitor) execDone() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.execs--
}
