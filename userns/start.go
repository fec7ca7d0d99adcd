package userns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/internal/racelog"
	"github.com/rootless-sbx/sbx/internal/wire"
)

// Message types of the hand-shake. Everything else on the connection is the caller's.
const (
	// MsgMapped tells the child that its ids are mapped.
	MsgMapped = "mapped"
	// MsgError carries the child's failure.
	MsgError = "error"
)

// ControlFD is the child's end of the control connection; Spec.Files follow it.
const ControlFD = 3

const maxFiles = 64

// mapped is the body of MsgMapped.
type mapped struct {
	Files     int  `json:"files"`
	User      bool `json:"user,omitempty"`      // in a new user namespace
	SetGroups bool `json:"setgroups,omitempty"` // setgroups(2) is allowed there
}

// Spec describes a child.
type Spec struct {
	// Path is the program, often /proc/self/exe. Args[0] chooses its role.
	Path string
	Args []string
	// Env: nil is an empty environment.
	Env []string
	// Dir: "" is the parent's.
	Dir string
	// Mapping of the child's new user namespace. nil: no new user namespace; the
	// child keeps the capabilities of the calling process whatever its uid.
	Mapping *Mapping
	// Cloneflags are the other namespaces (CLONE_NEWNS, CLONE_NEWPID...).
	Cloneflags uintptr
	// Stdin, Stdout, Stderr: nil is /dev/null.
	Stdin, Stdout, Stderr *os.File
	// Files are the child's descriptors from 4 on. Start does not close them.
	Files []*os.File
	// Cgroup is the directory of a cgroup v2 to start in; nil is the parent's.
	Cgroup *os.File
	// PIDNS is the pidfd of a process in whose pid namespace the child is born; nil
	// is the parent's. Such a child must ask for a Pdeathsig itself: Go's runtime
	// takes the parent for dead that it cannot see from there.
	PIDNS *os.File
	// UserNS is a user namespace for the child to live in, in the place of a new one;
	// with a Mapping, its ids must be mapped so. The caller's user must have made it.
	UserNS *os.File
	// NetNS is a network namespace that the child is born in. The calling process must
	// have CAP_SYS_ADMIN in its own user namespace and in the one that owns it.
	NetNS *os.File
	// Setsid starts a new session.
	Setsid bool
	// Pdeathsig is sent to the child when this process dies; 0: nothing.
	Pdeathsig syscall.Signal
	// Logger: nil discards.
	Logger *slog.Logger
}

// Child is a started process.
type Child struct {
	// Conn is the control connection.
	Conn *wire.Conn
	// PID is the child's in the parent's pid namespace.
	PID int
	// PidFD refers to the child, also after its end.
	PidFD *os.File

	name    string
	mayReap chan struct{} // closed when nobody uses PID any more
	done    chan struct{} // closed when the child has been reaped
	status  syscall.WaitStatus
	waitErr error

	mu       sync.Mutex
	reported error // what MsgError said
}

// Start clones and executes a child and maps its ids. ctx bounds Start itself,
// not the child's life. When Start fails nothing of the child is left. A failed
// clone that policy explains is an *Error of kind ErrForbidden, a failed map one
// of kind ErrMap: the caller may try again with ModeSingle.
func Start(ctx context.Context, s Spec) (_ *Child, err error) {
	if s.Path == "" || len(s.Args) == 0 {
		return nil, errors.New("start a child: Path and Args must be set")
	}
	if len(s.Files) > maxFiles {
		return nil, fmt.Errorf("start %s: %d descriptors, limit %d", s.Args[0], len(s.Files), maxFiles)
	}
	if s.Mapping != nil {
		if err := s.Mapping.Validate(); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Args[0], context.Cause(ctx))
	}
	log := s.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ours, theirs, err := wire.Pair()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Args[0], err)
	}
	defer theirs.Close()
	conn, err := wire.NewConn(ours)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Args[0], err)
	}
	s.Env = racelog.Environ(s.Env)
	c, err := clone(s, theirs)
	if err != nil {
		conn.Close()
		return nil, err
	}
	c.Conn = conn
	theirs.Close() // now the child's end is the only one: its death is our EOF
	defer func() {
		if err != nil {
			c.Kill()
			<-c.done
			c.Close()
		}
	}()
	msg := mapped{Files: len(s.Files), User: s.Mapping != nil || s.UserNS != nil}
	switch {
	case s.UserNS != nil:
		msg.SetGroups, err = s.Mapping.entered(c.PID)
	case s.Mapping != nil:
		msg.SetGroups, err = s.Mapping.write(ctx, c.PID)
	}
	close(c.mayReap) // until now PID was the child's even if it was dead
	if err != nil {
		return nil, c.explain(err)
	}
	if err = conn.Send(MsgMapped, msg); err != nil {
		return nil, c.explain(fmt.Errorf("start %s: %w", s.Args[0], err))
	}
	log.Debug("started", "role", c.name, "pid", c.PID)
	return c, nil
}

// clone starts the child on a thread that is kept until the child ends, as the
// kernel sends Pdeathsig when the thread that cloned it dies.
func clone(s Spec, control *os.File) (*Child, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Args[0], err)
	}
	defer null.Close()
	caps, err := ambientCaps(s.Mapping != nil || s.UserNS != nil)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Args[0], err)
	}
	files := []*os.File{s.Stdin, s.Stdout, s.Stderr, control}
	for i := range 3 {
		if files[i] == nil {
			files[i] = null
		}
	}
	files = append(files, s.Files...)
	pidfd := -1
	attr := &syscall.ProcAttr{
		Dir: s.Dir,
		Env: s.Env,
		Sys: &syscall.SysProcAttr{
			Cloneflags:  s.Cloneflags,
			AmbientCaps: caps,
			Setsid:      s.Setsid,
			Pdeathsig:   s.Pdeathsig,
			PidFD:       &pidfd,
		},
	}
	if s.Mapping != nil && s.UserNS == nil {
		attr.Sys.Cloneflags |= unix.CLONE_NEWUSER
	}
	for _, f := range files {
		fd, err := rawFd(f)
		if err != nil {
			return nil, fmt.Errorf("start %s: descriptor %s: %w", s.Args[0], f.Name(), err)
		}
		attr.Files = append(attr.Files, fd)
	}
	// ForkExec moves descriptors to right above the highest of these, over what is there:
	// that must not be the program.
	if n, err := strconv.Atoi(strings.TrimPrefix(s.Path, "/proc/self/fd/")); err == nil {
		above, err := unix.FcntlInt(attr.Files[3], unix.F_DUPFD_CLOEXEC, n+1)
		if err != nil {
			return nil, fmt.Errorf("start %s: %w", s.Args[0], os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err))
		}
		defer unix.Close(above)
		attr.Files[3] = uintptr(above)
	}
	if s.Cgroup != nil {
		fd, err := rawFd(s.Cgroup)
		if err != nil {
			return nil, fmt.Errorf("start %s: cgroup: %w", s.Args[0], err)
		}
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(fd)
	}
	c := &Child{name: s.Args[0], mayReap: make(chan struct{}), done: make(chan struct{})}
	started := make(chan error, 1)
	entered := s.PIDNS != nil || s.NetNS != nil
	work := func() {
		if s.Pdeathsig != 0 || entered {
			runtime.LockOSThread()
		}
		err := enter(s.PIDNS, unix.CLONE_NEWPID)
		if err == nil {
			err = enter(s.NetNS, unix.CLONE_NEWNET)
		}
		switch {
		case err != nil:
		case s.UserNS != nil:
			c.PID, err = forkEnter(s, attr)
		default:
			c.PID, err = syscall.ForkExec(s.Path, s.Args, attr)
		}
		started <- err
		if err == nil {
			<-c.mayReap
			c.reap()
		}
		if s.Pdeathsig != 0 && !entered {
			runtime.UnlockOSThread()
		} // else the thread ends: its children would be born there
	}
	if entered {
		go awayFromMain(work)
	} else {
		go work()
	}
	if err := <-started; err != nil {
		return nil, cloneError(s, err)
	}
	runtime.KeepAlive(files)
	runtime.KeepAlive(s.Cgroup)
	runtime.KeepAlive(s.UserNS)
	if pidfd < 0 {
		unix.Kill(c.PID, unix.SIGKILL) // not reaped yet, so it is ours
		close(c.mayReap)
		<-c.done
		return nil, &Error{Step: "start " + s.Args[0], Msg: "the kernel gives no pidfd", Fix: "Linux 5.4 or later is needed"}
	}
	c.PidFD = os.NewFile(uintptr(pidfd), "pidfd")
	return c, nil
}

// awayFromMain runs f on another thread than the main one, which never ends and is
// what /proc/self shows.
func awayFromMain(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	elsewhere := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		close(elsewhere)
		f()
	}()
	<-elsewhere
	runtime.UnlockOSThread()
}

// enter makes the children of this thread be born in another namespace, if one is
// given.
func enter(ns *os.File, kind int) error {
	if ns == nil {
		return nil
	}
	fd, err := rawFd(ns)
	if err != nil {
		return err
	}
	return os.NewSyscallError("setns", unix.Setns(int(fd), kind))
}

// rawFd returns f's descriptor and leaves its blocking mode alone, which File.Fd
// would change for everybody who shares it.
func rawFd(f *os.File) (uintptr, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var fd uintptr
	err = rc.Control(func(n uintptr) { fd = n })
	return fd, err
}

func (c *Child) reap() {
	for {
		_, err := syscall.Wait4(c.PID, &c.status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		c.waitErr = os.NewSyscallError("wait4", err)
		close(c.done)
		return
	}
}

// explain prefers what the child itself said over what the parent noticed.
func (c *Child) explain(err error) error {
	select {
	case <-c.done:
	default:
		if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			return err
		}
		c.Kill() // its end of the socket is closed: it is on its way out
		<-c.done
	}
	for {
		m, rerr := c.Recv()
		if rerr != nil {
			if !errors.Is(rerr, io.EOF) {
				return rerr
			}
			return errors.Join(c.Failure(context.Background()), err)
		}
		m.CloseFiles()
	}
}
