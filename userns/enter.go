package userns

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A process with several threads, as every Go program is one, may not change its
// user namespace, and package syscall clones into new ones only. So a child that is
// to live in one that is there already is forked here: between fork and exec it has
// one thread, and changes into its namespaces with bare system calls.

// highFD is from where on the child's descriptors lie before they take their places.
const highFD = 256

// entry is all that the child needs, made ready before the fork: the child must not
// allocate, grow its stack or call into the runtime.
type entry struct {
	path       *byte
	argv, envv []*byte
	fds        []uintptr
	userns     uintptr
	unshare    uintptr
	setsid     bool
	caps       []uintptr
	capHdr     unix.CapUserHeader
	capData    [2]unix.CapUserData
	mask       uint64   // of signals, to be restored
	action     [64]byte // a kernel's struct sigaction, of any architecture
	report     uintptr  // a pipe that tells why there was no exec
	failed     [2]uint32
}

// Steps of the child, as it reports them.
var enterSteps = []string{"setns user", "unshare", "setsid", "dup", "capset", "prctl PR_CAP_AMBIENT", "execve"}

const (
	stepUserNS = iota
	stepUnshare
	stepSetsid
	stepDup
	stepCapset
	stepAmbient
	stepExec
)

// forkEnter is ForkExec for a child in the user namespace that s.UserNS refers to.
func forkEnter(s Spec, attr *syscall.ProcAttr) (pid int, err error) {
	e := &entry{unshare: attr.Sys.Cloneflags, setsid: attr.Sys.Setsid, caps: attr.Sys.AmbientCaps}
	if e.userns, err = rawFd(s.UserNS); err != nil {
		return 0, err
	}
	if e.path, err = syscall.BytePtrFromString(s.Path); err != nil {
		return 0, err
	}
	if e.argv, err = syscall.SlicePtrFromStrings(s.Args); err != nil {
		return 0, err
	}
	if e.envv, err = syscall.SlicePtrFromStrings(s.Env); err != nil {
		return 0, err
	}
	for _, fd := range attr.Files {
		high, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, highFD)
		if err != nil {
			return 0, os.NewSyscallError("fcntl", err)
		}
		defer unix.Close(high)
		e.fds = append(e.fds, uintptr(high))
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return 0, os.NewSyscallError("pipe2", err)
	}
	defer unix.Close(pipe[0])
	high, err := unix.FcntlInt(uintptr(pipe[1]), unix.F_DUPFD_CLOEXEC, highFD)
	unix.Close(pipe[1])
	if err != nil {
		return 0, os.NewSyscallError("fcntl", err)
	}
	e.report = uintptr(high)
	e.capHdr.Version = unix.LINUX_CAPABILITY_VERSION_3
	last := uint(len(e.caps)) // the kernel refuses what it does not know
	for i := range e.capData {
		known := uint32(uint64(1)<<min(32, last) - 1)
		e.capData[i] = unix.CapUserData{Effective: known, Permitted: known, Inheritable: known}
		last -= min(32, last)
	}
	runtime.LockOSThread()
	syscall.ForkLock.Lock()
	pid, pidfd, errno := e.fork()
	syscall.ForkLock.Unlock()
	runtime.UnlockOSThread()
	unix.Close(high)
	runtime.KeepAlive(e)
	if errno != 0 {
		return 0, os.NewSyscallError("clone", errno)
	}
	*attr.Sys.PidFD = pidfd
	var why [8]byte
	n, err := readAll(pipe[0], why[:])
	if err == nil && n == 0 {
		return pid, nil // the pipe has gone with the exec
	}
	unix.Close(pidfd)
	var ws syscall.WaitStatus
	for {
		if _, werr := syscall.Wait4(pid, &ws, 0, nil); werr != syscall.EINTR {
			break
		}
	}
	if err != nil || n != len(why) {
		return 0, fmt.Errorf("the child ended before it executed %s: %w", s.Path, syscall.ECHILD)
	}
	step, eno := *(*uint32)(unsafe.Pointer(&why[0])), *(*uint32)(unsafe.Pointer(&why[4]))
	return 0, os.NewSyscallError(enterSteps[step], syscall.Errno(eno))
}

func readAll(fd int, b []byte) (n int, err error) {
	for n < len(b) {
		m, err := unix.Read(fd, b[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || m == 0 {
			return n, err
		}
		n += m
	}
	return n, nil
}

// fork clones with all signals blocked: a handler of Go's must not run in the child.
//
//go:norace
//go:nosplit
func (e *entry) fork() (pid, pidfd int, errno syscall.Errno) {
	all := ^uint64(0)
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&e.mask)), 8, 0, 0)
	fd := int32(-1)
	r, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_PIDFD|uintptr(syscall.SIGCHLD), 0, uintptr(unsafe.Pointer(&fd)), 0, 0, 0)
	if errno == 0 && r == 0 {
		e.child()
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&e.mask)), 0, 8, 0, 0)
	return int(r), int(fd), errno
}

// child does not return.
//
//go:norace
//go:nosplit
func (e *entry) child() {
	// What is ignored stays so over the exec, and handlers would not.
	for sig := uintptr(1); sig < 65; sig++ {
		at := uintptr(unsafe.Pointer(&e.action))
		if _, _, errno := syscall.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, at, 8, 0, 0); errno != 0 || *(*uintptr)(unsafe.Pointer(&e.action)) <= 1 {
			continue
		}
		for i := range e.action {
			e.action[i] = 0
		}
		syscall.RawSyscall6(unix.SYS_RT_SIGACTION, sig, at, 0, 8, 0, 0)
	}
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETNS, e.userns, unix.CLONE_NEWUSER, 0); errno != 0 {
		e.fail(stepUserNS, errno)
	}
	if e.unshare != 0 {
		if _, _, errno := syscall.RawSyscall(unix.SYS_UNSHARE, e.unshare, 0, 0); errno != 0 {
			e.fail(stepUnshare, errno)
		}
	}
	if e.setsid {
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0); errno != 0 {
			e.fail(stepSetsid, errno)
		}
	}
	for i := 0; i < len(e.fds); i++ {
		if _, _, errno := syscall.RawSyscall(unix.SYS_DUP3, e.fds[i], uintptr(i), 0); errno != 0 {
			e.fail(stepDup, errno)
		}
	}
	// As Start does with a new one: capabilities outlast the exec whatever the uid is.
	if _, _, errno := syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&e.capHdr)), uintptr(unsafe.Pointer(&e.capData)), 0); errno != 0 {
		e.fail(stepCapset, errno)
	}
	for i := 0; i < len(e.caps); i++ {
		if _, _, errno := syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, e.caps[i], 0, 0, 0); errno != 0 {
			e.fail(stepAmbient, errno)
		}
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&e.mask)), 0, 8, 0, 0)
	_, _, errno := syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(e.path)), uintptr(unsafe.Pointer(&e.argv[0])), uintptr(unsafe.Pointer(&e.envv[0])))
	e.fail(stepExec, errno)
}

//go:norace
//go:nosplit
func (e *entry) fail(step uint32, errno syscall.Errno) {
	e.failed = [2]uint32{step, uint32(errno)}
	syscall.RawSyscall(unix.SYS_WRITE, e.report, uintptr(unsafe.Pointer(&e.failed)), unsafe.Sizeof(e.failed))
	for {
		syscall.RawSyscall(unix.SYS_EXIT, 253, 0, 0)
	}
}
