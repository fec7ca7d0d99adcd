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
)

// RoleStage is argv[0] of the child that becomes the workload under --init.
const RoleStage = "sbx-stage"

// reap keeps this process as pid 1: it forwards signals to the workload, collects
// orphans, and exits as the workload does.
func (i *initd) reap(ctx context.Context, m *wire.Message, spec workload.Spec) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var startErr error
	status, err := workload.RunInit(ctx, func() (*os.Process, error) {
		p, err := startStage(ctx, spec)
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

// startStage starts this binary as the workload's process and returns when it has
// become the workload.
func startStage(ctx context.Context, spec workload.Spec) (*os.Process, error) {
	ours, theirs, err := wire.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	conn, err := wire.NewConn(ours)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	p, err := os.StartProcess("/proc/self/exe", []string{RoleStage}, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, theirs},
		Env:   []string{},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, fmt.Errorf("start the workload's process: %w", err)
	}
	theirs.Close()
	fail := func(err error) (*os.Process, error) {
		p.Kill()
		return nil, err
	}
	// The words that userns.Join expects; there is nothing to map here.
	if err := conn.Send(userns.MsgMapped, struct{}{}); err != nil {
		return fail(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		conn.Serve(func(*wire.Message) {})
	}()
	_, err = conn.Call(ctx, proto.MsgExec, spec, nil)
	if !errors.Is(err, io.EOF) {
		return fail(err)
	}
	<-served
	return p, nil
}

// Stage is the body of the workload's process until it executes the workload.
func Stage(ctx context.Context, conn *wire.Conn) error {
	m, err := conn.Recv()
	if err != nil {
		return err
	}
	if m.Type != proto.MsgExec {
		return fmt.Errorf("expected %q, got %q", proto.MsgExec, m.Type)
	}
	var spec workload.Spec
	if err := m.Decode(&spec); err != nil {
		return err
	}
	return conn.Reply(m, nil, workload.Exec(spec))
}
