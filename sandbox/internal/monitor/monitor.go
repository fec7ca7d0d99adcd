// Package monitor is the process that owns one sandbox, from inside its user
// namespace: it has every capability over the sandbox and none over the host.
//
// It starts the storage driver and init, connects the link to the network's
// process, passes the workload's output to its log and to those who are attached,
// starts it again if its restart policy says so, serves the sandbox's socket, and
// at the end writes down how it ended or removes everything that is left, whose
// owners may be subordinate ids. Unless it is detached it ends the sandbox when its
// caller has gone.
//
// # What it sheds
//
// Whatever the monitor gives up, the programs that it starts lose too. So it keeps what one
// of them may have: capabilities, and of system calls what the workload's profile allows.
// Files it can give up, for all that a run needs of the user's is mounted by an init with a
// copy of the first tree; only another run may need them again.
// See docs/security.md.
//
// # Limits
//
// 64 connections, 128 programs executed beside the workload and 16 processes that copy
// files at one time, 16 sessions an output. A connection that says something wrong is closed.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/cgroup"
	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxdir"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxroot"
	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/sandbox/internal/logfile"
	"github.com/rootless-sbx/sbx/sandbox/internal/netd"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
	"github.com/rootless-sbx/sbx/sandbox/internal/resident"
	"github.com/rootless-sbx/sbx/sandbox/internal/sealed"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
	"github.com/rootless-sbx/sbx/userns"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

type monitor struct {
	caller  *wire.Conn
	log     *slog.Logger // to the caller
	spec    proto.Start
	lock    *os.File        // the directory is ours until it is closed
	program *sealed.Program // what init and programs beside it are started from
	logs    *logfile.Writer // nil: nothing is logged
	// lostBefore is what could not be logged before the log was opened.
	lostBefore int64
	journal    *events.Journal
	server     *server // of the sandbox's socket
	known      bool    // it has a record from before
	confined   bool    // the stages have been shed, or kept
	// published is what became of the record, if nobody has waited for that yet.
	published chan error
	over      chan struct{} // closed when all is over; exited says how
	exited    proto.Exited
	cancel    context.CancelCauseFunc // of a start
	quit      chan struct{}           // closed when somebody wants the end; see quitting

	waiters sync.WaitGroup // requests that wait for something
	copiers copiers        // processes that have the sandbox's files

	netsMu    sync.Mutex // guards spec.Network and what follows; taken before mu
	nets      []*network
	netns     *os.File              // the sandbox's, while it has one
	sockets   *netd.SocketServer    // makes sockets in it; nil before it is needed
	ports     []port.Status         // published now, in the order of spec.Network.Ports
	publisher *network              // on which they are
	resolv    []byte                // /etc/resolv.conf as we wrote it
	own       []fsoverlay.HostEntry // the lines of our own in /etc/hosts

	// entry is held by who starts a process in the sandbox, all of it by a pause.
	entry     *semaphore.Weighted
	pausing   atomic.Int32 // pauses that are under way
	recording sync.Mutex   // guards config.json

	mu       sync.Mutex // guards what follows
	state    record.State
	init     *userns.Child
	streams  *workloadStreams // nil: the caller's descriptors are the workload's
	ended    chan struct{}    // of this run; closed when last says how
	last     proto.Exited
	started  bool
	detached bool  // the caller may go
	stopping bool  // by a request to stop, which is an event
	pauses   int   // until now
	quitting bool  // quit is closed
	failure  error // what init reported before it ended
	execs    int   // that run now
	leaving  bool  // nobody waits for anything any more

	interrupted string // why somebody has ended us; "": nobody

	root      *boxroot.Root
	group     *cgroup.Group // nil: none
	oomBefore uint64        // kills for want of memory in earlier runs
	shared    *sharedNet    // nil: the sandbox's own, or the host's
	pty       *os.File
	rules     *os.File   // of Landlock, for every program of this run; nil: none
	telling   sync.Mutex // guards notes, also under mu
	notes     []string
	marks     *proto.Marks
	inits     []proto.Mark // init's own
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
	m := &monitor{
		caller: conn, marks: marks, over: make(chan struct{}), quit: make(chan struct{}),
		entry: semaphore.NewWeighted(maxExecs),
		log:   slog.New(slog.NewTextHandler(logWriter{conn}, &slog.HandlerOptions{ReplaceAttr: plain})),
	}
	if err := req.Decode(&m.spec); err != nil {
		return err
	}
	m.journal = &events.Journal{Dir: m.spec.EventsDir, Logger: m.log}
	if m.lock, err = req.Take("lock"); err != nil {
		return err
	}
	if m.program, err = sealed.Self(m.spec.Dir); err != nil {
		return fmt.Errorf("seal the program for the sandbox: %w", err)
	}
	if m.spec.Life.Detach { // the caller's directory is not kept busy
		if err := os.Chdir("/"); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	m.cancel = cancel
	files := takeFiles(req, "stdin", "stdout", "stderr")
	go func() {
		s := &session{m: m, conn: conn}
		s.serve(ctx)
		m.callerGone()
	}()
	defer m.watchInterrupts()()
	return m.live(ctx, req, files)
}

// callerGone ends a sandbox that its caller does not leave to itself, or what is
// being started.
func (m *monitor) callerGone() {
	m.mu.Lock()
	detached := m.detached
	m.mu.Unlock()
	if detached {
		return
	}
	m.stopped()
	m.cancel(errCallerGone)
	m.kill()
}

var errCallerGone = errors.New("the process that started the sandbox has gone")

func errno(err error) syscall.Errno {
	var e syscall.Errno
	errors.As(err, &e)
	return e
}

// takeFiles takes those of the named descriptors that the message has.
func takeFiles(m *wire.Message, names ...string) map[string]*os.File {
	files := map[string]*os.File{}
	for _, name := range names {
		if f, err := m.Take(name); err == nil {
			files[name] = f
		}
	}
	return files
}

func closeAll(files map[string]*os.File) {
	for name, f := range files {
		f.Close()
		delete(files, name)
	}
}

// signal sends a signal to pid 1. What ends a workload for good keeps it from being
// started again.
func (m *monitor) signal(sig syscall.Signal) error {
	ends := sig == syscall.SIGKILL || sig == m.spec.Life.StopSignal
	if ends {
		m.stopped()
	}
	err := m.signalOne(sig)
	switch {
	case ends && isNotRunning(err):
		return nil // between two runs: there will be no other
	case err != nil:
		return err
	}
	return m.thawFor(sig)
}

func (m *monitor) signalOne(sig syscall.Signal) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.init == nil || !m.started {
		return errNotRunning()
	}
	err := m.init.Signal(sig)
	if err == nil {
		m.event(events.Kill, "signal", strconv.Itoa(int(sig)))
	}
	return err
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
	if err != nil {
		m.tell(fmt.Sprintf("wait for pid 1: %v", err))
		return proto.Exited{Code: 125}
	}
	return exitedWith(ws)
}

func exitedWith(ws syscall.WaitStatus) proto.Exited {
	if ws.Signaled() {
		return proto.Exited{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}
	}
	return proto.Exited{Code: ws.ExitStatus()}
}

// tell notes what the caller is to be told: from the network and from the root at once.
func (m *monitor) tell(notes ...string) {
	m.telling.Lock()
	defer m.telling.Unlock()
	m.notes = append(m.notes, notes...)
}

func (m *monitor) takeNotes() []string {
	m.telling.Lock()
	defer m.telling.Unlock()
	notes := m.notes
	m.notes = nil
	return notes
}

func (m *monitor) note(what string, err error) {
	if err != nil {
		m.tell(fmt.Sprintf("%s: %v", what, err))
	}
}

// endRun undoes everything that start did, in reverse order. What lasts from one run
// to the next stays.
func (m *monitor) endRun() {
	m.copiers.end()
	m.leaveNetworks()
	m.marks.Add("network left")
	m.mu.Lock()
	m.shared.close()
	m.shared = nil
	if m.init != nil {
		m.init.Close()
	}
	m.init, m.started, m.failure, m.streams = nil, false, nil, nil
	if m.pty != nil {
		m.pty.Close()
		m.pty = nil
	}
	if m.rules != nil {
		m.rules.Close()
		m.rules = nil
	}
	m.mu.Unlock()
	m.note("end the storage driver", m.root.Close())
	m.root = nil
}

// remove takes everything away that the sandbox has on the disk.
func (m *monitor) remove() {
	vols := m.volumes()
	for _, v := range m.state.Volumes { // the anonymous ones
		m.note("remove volume "+v, vols.Remove(context.Background(), v))
	}
	gone := m.newEvent(events.Destroy)
	// What is half removed is a killed create's.
	m.note("forget the sandbox's state", record.Forget(m.spec.Dir))
	m.note("remove "+m.spec.Dir, boxdir.Remove(context.Background(), m.spec.Dir))
	m.journal.Add(gone)
	m.marks.Add("directory removed")
}

// trim makes a monitor small that has nothing to do for a while.
var trim = resident.TrimLater

// exitOf is Docker's exit code for a workload that could not be started.
func exitOf(err error) int { return workload.ExitStatus(err) }
