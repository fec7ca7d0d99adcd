package initproc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
	"github.com/rootless-sbx/sbx/userns"
	"golang.org/x/sys/unix"
)

// RoleStage is argv[0] of the child that becomes the workload under --init.
const RoleStage = "sbx-stage"

// stage is that child until it has become the workload. It is started before the
// root is changed: in the sandbox's root a dynamically linked program would not
// find its interpreter. pivot_root takes it along, as its root and its working
// directory are the old root.
type stage struct {
	process *os.Process
	conn    *wire.Conn
	served  chan struct{}
}

func startStage() (*stage, error) {
	ours, theirs, err := wire.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	conn, err := wire.NewConn(ours)
	if err != nil {
		return nil, err
	}
	s := &stage{conn: conn, served: make(chan struct{})}
	ready := make(chan struct{})
	s.process, err = os.StartProcess("/proc/self/exe", []string{RoleStage}, &os.ProcAttr{
		Dir:   "/",
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, theirs},
		Env:   []string{},
		Sys:   &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("start the workload's process: %w", err)
	}
	go func() {
		defer close(s.served)
		conn.Serve(func(m *wire.Message) {
			if m.Type == proto.MsgReady {
				close(ready)
			}
		})
	}()
	// The words that userns.Join expects; there is nothing to map here.
	if err := conn.Send(userns.MsgMapped, struct{}{}); err != nil {
		return nil, fmt.Errorf("start the workload's process: %w", err)
	}
	theirs.Close()
	select {
	case <-ready:
		return s, nil
	case <-s.served:
		return nil, errors.New("start the workload's process: it has ended before it was ready")
	}
}

// exec returns when the stage has become the workload: the connection ends.
func (s *stage) exec(ctx context.Context, spec workload.Spec) (*os.Process, error) {
	var files []wire.File
	if spec.Terminal { // it is younger than the stage
		files = []wire.File{{Name: "terminal", File: os.Stdin}}
	}
	if spec.Rules != nil {
		files = append(files, wire.File{Name: proto.FileRules, File: spec.Rules})
	}
	m, err := s.conn.Call(ctx, proto.MsgExec, spec, nil, files...)
	if err == nil {
		m.CloseFiles()
		err = errors.New("the workload's process answered instead of executing it")
	}
	if !errors.Is(err, io.EOF) {
		return nil, errors.Join(err, s.process.Kill())
	}
	<-s.served
	return s.process, s.conn.Close()
}

// reap keeps this process as pid 1: it forwards signals to the workload, collects
// orphans, and exits as the workload does.
func (i *initd) reap(ctx context.Context, m *wire.Message, spec workload.Spec) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var startErr error
	status, err := workload.RunInit(ctx, func() (*os.Process, error) {
		p, err := i.stage.exec(ctx, spec)
		startErr = i.conn.Reply(m, nil, err)
		go func() { // from here on the end of the monitor is the end of init
			i.conn.Recv()
			cancel()
		}()
		return p, err
	})
	if err = errors.Join(startErr, err); err != nil {
		return err
	}
	os.Exit(status)
	return nil
}

// Stage is the body of the workload's process until it executes the workload.
func Stage(ctx context.Context, conn *wire.Conn) error {
	if err := conn.Send(proto.MsgReady, nil); err != nil { // loaded, libraries and all
		return err
	}
	m, err := conn.Recv()
	if err != nil {
		return err
	}
	if m.Type != proto.MsgExec {
		return fmt.Errorf("expected %q, got %q", proto.MsgExec, m.Type)
	}
	spec, err := takeSpec(m)
	if err != nil {
		return err
	}
	if spec.Terminal {
		err = takeTerminal(m)
	}
	if err == nil {
		err = workload.Exec(spec)
	}
	return conn.Reply(m, nil, err)
}

// takeTerminal makes the terminal that came with the request the standard streams.
func takeTerminal(m *wire.Message) error {
	f, err := m.Take("terminal")
	if err != nil {
		return err
	}
	defer f.Close()
	for std := range 3 {
		err = errors.Join(err, unix.Dup3(int(f.Fd()), std, 0))
	}
	return err
}
