package sandbox

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxfiles"
	"github.com/rootless-sbx/sbx/sandbox/internal/demo"
	"github.com/rootless-sbx/sbx/sandbox/internal/initproc"
	"github.com/rootless-sbx/sbx/sandbox/internal/monitor"
	"github.com/rootless-sbx/sbx/sandbox/internal/netd"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/resident"
	"github.com/rootless-sbx/sbx/userns"
)

var maybeInitCalled bool

// MaybeInit makes this program usable as the binary that a sandbox's processes
// are started from. Call it first in main: in such a process it does that
// process's work and does not return.
func MaybeInit() {
	maybeInitCalled = true
	roles := map[string]func(context.Context, *wire.Conn) error{
		proto.RoleMonitor:  monitor.Main,
		proto.RoleInit:     initproc.Main,
		proto.RoleExec:     initproc.Join,
		proto.RoleLinker:   initproc.Linker,
		proto.RoleNetd:     netdMain,
		proto.RoleWorker:   workerMain,
		proto.RoleFiles:    boxfiles.Main,
		initproc.RoleStage: initproc.Stage,
	}
	if filepath.Base(os.Args[0]) == demo.Role {
		if err := demo.Main(os.Args[1:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", demo.Role, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	role, ok := roles[os.Args[0]]
	if !ok || len(os.Args) != 1 {
		return
	}
	// Credentials, namespaces and PDEATHSIG belong to a thread: init's work is
	// done on the one that becomes the workload.
	runtime.LockOSThread()
	os.Exit(runRole(os.Args[0], role))
}

func runRole(name string, role func(context.Context, *wire.Conn) error) (code int) {
	proto.Begin()
	join := userns.Join
	if name == proto.RoleNetd {
		join = userns.JoinPlain // an ordinary process, in no namespace of ours
		if err := netd.DropPrivilege(); err != nil {
			fmt.Fprintln(os.Stderr, err) // its log
			return exitOwn
		}
	}
	conn, err := join()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s is a part of sbx and is not started by hand: %v\n", name, err)
		return exitOwn
	}
	defer conn.Close()
	// ps and top show this in place of the binary's name, which is "exe". Not by
	// prctl: this thread need not be the process's first. Without /proc it stays.
	os.WriteFile("/proc/self/comm", []byte(name), 0)
	defer func() {
		if err != nil {
			code = exitOwn
		}
	}()
	defer userns.Recover(conn, &err)
	err = role(context.Background(), conn)
	if err != nil && name == proto.RoleNetd {
		fmt.Fprintln(os.Stderr, err) // its log: whoever started it may have gone
	}
	return 0
}

// netdMain is the body of a network's process.
func netdMain(ctx context.Context, conn *wire.Conn) error {
	// The goroutines of a connection hand it on to each other: on one processor
	// that is a call, on two it wakes a thread each time, and gVisor spins while a
	// handshake holds its lock. On two cores 2.2 times the connections per second
	// with one, and more bytes of a stream with less CPU. The other half of the cores
	// is for the programs that talk.
	runtime.GOMAXPROCS(max(1, runtime.GOMAXPROCS(0)/2))
	runtime.UnlockOSThread()
	resident.TrimLater()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return netd.Main(ctx, conn, netd.MainConfig{Log: os.Stderr, Confine: true})
}

// exitOwn is the exit status of a process of sbx that failed; its error has gone
// to its parent.
const exitOwn = 125
