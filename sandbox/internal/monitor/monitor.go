// Package monitor is the process that owns one sandbox, from inside its user
// namespace: it has every capability over the sandbox and none over the host.
//
// It starts the storage driver and init, connects the link to the network's
// process, waits for the workload, and removes everything that is left, whose
// owners may be subordinate ids. It ends the sandbox when its caller has gone.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"syscall"

	"github.com/rootless-sbx/sbx/cgroup"
	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxdir"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/resident"
	"github.com/rootless-sbx/sbx/userns"
	"golang.org/x/sys/unix"
)

type monitor struct {
	caller *wire.Conn
	log    *slog.Logger // to the caller
	spec   proto.Start
	root   fsoverlay.RootSpec

	mu      sync.Mutex // guards what follows
	init    *userns.Child
	started bool
	failure error // what init reported before it ended

	group   *cgroup.Group // nil: none
	storage *fsoverlay.Prepared
	net     *network
	pty     *os.File
	hold    *fsoverlay.Hold // keeps the volumes
	volumes []string        // anonymous ones, removed at the end
	notes   []string
	marks   *proto.Marks
	inits   []proto.Mark // init's own
}

// Main is the body of the monitor process.
func Main(ctx context.Context, conn *wire.Conn) error {
	marks := proto.NewMarks("monitor")
	marks.Add("ids mapped")
	// The main thread was locked for init's sake; here goroutines roam freely.
	runtime.UnlockOSThread()
	// Mounts made here must not reach the host, whose own may come in.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return &wire.Error{Step: "make mounts private", Path: "/", Errno: errno(err)}
	}
	if err := conn.Send(proto.MsgReady, nil); err != nil {
		return err
	}
	req, err := conn.Recv()
	if err != nil {
		return fmt.Errorf("wait for the start message: %w", err)
	}
	if req.Type != proto.MsgStart {
		return fmt.Errorf("expected %q, got %q", proto.MsgStart, req.Type)
	}
	marks.Add("asked to start")
	m := &monitor{caller: conn, marks: marks, log: slog.New(slog.NewTextHandler(logWriter{conn}, &slog.HandlerOptions{ReplaceAttr: plain}))}
	if err := req.Decode(&m.spec); err != nil {
		return err
	}
	lock, err := req.Take("lock")
	if err != nil {
		return err
	}
	defer lock.Close() // after the clean-up: the directory is ours until then

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	served := make(chan struct{})
	stdio := takeStdio(req, m.spec.TTY)
	go func() {
		defer close(served)
		conn.Serve(m.handle)
		// The caller has gone: end the sandbox, or what is being started.
		cancel(errCallerGone)
		m.kill()
	}()

	st, err := m.start(ctx, stdio)
	closeAll(stdio)
	if err != nil {
		m.kill()
		m.wait()
		m.cleanup()
		return errors.Join(conn.Send(proto.MsgExited, proto.Exited{Notes: m.notes}), conn.Reply(req, nil, err))
	}
	var files []wire.File
	if m.pty != nil {
		files = append(files, wire.File{Name: "pty", File: m.pty})
	}
	err = conn.Reply(req, st, nil, files...)
	if m.pty != nil {
		m.pty.Close()
	}
	if err != nil {
		m.kill()
	}
	resident.TrimLater()
	x := m.wait()
	m.marks.Add("workload ended")
	x.OOMKilled = m.oomKilled()
	m.cleanup()
	x.Notes, x.Marks = m.notes, m.marks.List
	if err := conn.Send(proto.MsgExited, x); err != nil && !errors.Is(err, syscall.EPIPE) {
		return err
	}
	return nil
}

var errCallerGone = errors.New("the process that started the sandbox has gone")

func errno(err error) syscall.Errno {
	var e syscall.Errno
	errors.As(err, &e)
	return e
}

// takeStdio takes the workload's streams; with a terminal init makes its own.
func takeStdio(m *wire.Message, tty bool) []*os.File {
	var files []*os.File
	if tty {
		return files
	}
	for _, name := range []string{"stdin", "stdout", "stderr"} {
		if f, err := m.Take(name); err == nil {
			files = append(files, f)
		}
	}
	return files
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// handle answers the caller while the sandbox runs.
func (m *monitor) handle(req *wire.Message) {
	var err error
	switch req.Type {
	case proto.MsgSignal:
		var sig proto.Signal
		if err = req.Decode(&sig); err == nil {
			err = m.signal(syscall.Signal(sig.Number))
		}
	default:
		err = fmt.Errorf("unknown request %q", req.Type)
	}
	if req.ID != 0 {
		m.caller.Reply(req, nil, err)
	}
}

func (m *monitor) signal(sig syscall.Signal) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.init == nil || !m.started {
		return errors.New("the sandbox does not run yet")
	}
	return m.init.Signal(sig)
}

// kill ends pid 1 and with it, by the kernel's rule, every process of the sandbox.
func (m *monitor) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.init != nil {
		m.init.Kill()
	}
}

// wait returns how pid 1 ended; for an init that was never started, code 0.
func (m *monitor) wait() proto.Exited {
	m.mu.Lock()
	child := m.init
	m.mu.Unlock()
	if child == nil {
		return proto.Exited{}
	}
	ws, err := child.Wait()
	switch {
	case err != nil:
		m.notes = append(m.notes, fmt.Sprintf("wait for pid 1: %v", err))
		return proto.Exited{Code: 125}
	case ws.Signaled():
		return proto.Exited{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}
	}
	return proto.Exited{Code: ws.ExitStatus()}
}

// cleanup undoes everything that start did, in reverse order.
func (m *monitor) cleanup() {
	note := func(what string, err error) {
		if err != nil {
			m.notes = append(m.notes, fmt.Sprintf("%s: %v", what, err))
		}
	}
	if m.net != nil {
		m.notes = append(m.notes, m.net.close()...)
		m.marks.Add("network left")
	}
	m.mu.Lock()
	if m.init != nil {
		m.init.Close()
	}
	m.mu.Unlock()
	note("remove the cgroup", m.removeGroup())
	if m.storage != nil {
		note("end the storage driver", m.storage.Close())
	}
	vols := &fsoverlay.Volumes{Root: m.spec.VolumesDir, Logger: m.log}
	note("let go of the volumes", m.hold.Close())
	for _, v := range m.volumes {
		note("remove volume "+v, vols.Remove(context.Background(), v))
	}
	note("remove "+m.spec.Dir, boxdir.Remove(context.Background(), m.spec.Dir))
	m.marks.Add("directory removed")
}
