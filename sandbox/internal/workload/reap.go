package workload

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// signalQueue is how many signals may wait for RunInit; more are dropped, as
// the kernel does with a second signal of a kind.
const signalQueue = 128

// RunInit is the --init mode: the calling process, pid 1 of the sandbox,
// starts the workload with start, forwards signals to it, reaps every orphan
// of the pid namespace, and returns the workload's exit status, 128+N if
// signal N killed it. The caller then exits, and the kernel ends the rest.
//
// start must not wait for the process it returns. Its error is returned with
// Docker's status for it. When ctx ends the workload is killed.
//
// While it runs, this is the one user of the process's signals and children:
// the calling process does nothing else. The workload must become session
// leader and take the terminal itself (Spec.Terminal), so that pid 1 must not
// own it. Once the workload runs, this process gives up what it does not need,
// since hostile programs of the same user id run beside it.
func RunInit(ctx context.Context, start func() (*os.Process, error)) (status int, err error) {
	// Not one may be lost that comes while the workload starts.
	sigs := make(chan os.Signal, signalQueue)
	signal.Notify(sigs)
	defer signal.Stop(sigs)

	child, err := start()
	if err != nil {
		return ExitStatus(err), err
	}
	pid := child.Pid
	// Only wait4 below collects it.
	if err := child.Release(); err != nil {
		return 125, fmt.Errorf("release the workload's handle: %w", err)
	}
	if err := confineInit(); err != nil {
		return 125, errors.Join(err, ignoreESRCH(unix.Kill(pid, unix.SIGKILL)))
	}

	done := ctx.Done()
	for {
		status, ok, err := reap(pid)
		if ok || err != nil {
			return status, err
		}
		select {
		case <-done:
			done = nil
			if err := ignoreESRCH(unix.Kill(pid, unix.SIGKILL)); err != nil {
				return 125, fmt.Errorf("kill the workload: %w", err)
			}
		case s := <-sigs:
			sig, ok := s.(syscall.Signal)
			if !ok || !forwarded(sig) {
				continue
			}
			// The child has not been reaped yet, so the pid is still its own.
			if err := ignoreESRCH(unix.Kill(pid, sig)); err != nil {
				return 125, fmt.Errorf("forward %v to the workload: %w", sig, err)
			}
		}
	}
}

// forwarded leaves out the signals the kernel and Go's runtime send to this
// process for reasons of its own.
func forwarded(sig syscall.Signal) bool {
	switch sig {
	case unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE, unix.SIGTTIN, unix.SIGTTOU:
		return false
	}
	return true
}

func ignoreESRCH(err error) error {
	if err == unix.ESRCH {
		return nil
	}
	return err
}

// reap collects every process that has ended, until the workload is among
// them.
func reap(main int) (status int, ok bool, err error) {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG|unix.WALL, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ECHILD:
			// The workload is a child until reaped here.
			return 125, false, fmt.Errorf("the workload's process was waited for elsewhere: %w", err)
		case err != nil:
			return 125, false, fmt.Errorf("wait for processes: %w", err)
		case pid == 0:
			return 0, false, nil
		case pid != main:
			continue
		case ws.Signaled():
			return 128 + int(ws.Signal()), true, nil
		case ws.Exited():
			return ws.ExitStatus(), true, nil
		}
	}
}

// confineInit leaves pid 1 only the right to signal other users' processes,
// on all threads, and hides it from ptrace and /proc: it has no seccomp filter
// and would be a way around the workload's.
func confineInit() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fail("", "hide init from the workload", "", err, "")
	}
	err := allThreads(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0)
	if err == unix.ENOTSUP {
		// A binary with cgo cannot reach the threads of C. With every
		// capability it is no easier to ptrace, only worse to fall for.
		return nil
	}
	if err != nil {
		return fail(CodeCapability, "clear init's ambient capabilities", "", err, "")
	}
	if err := allThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fail("", "set no_new_privs on init", "", err, "")
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: 1 << unix.CAP_KILL, Permitted: 1 << unix.CAP_KILL}}
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0); e != 0 {
		return fail(CodeCapability, "drop init's capabilities", "", e, "")
	}
	return nil
}

func allThreads(trap, a, b, c uintptr) error {
	if _, _, e := syscall.AllThreadsSyscall6(trap, a, b, c, 0, 0, 0); e != 0 {
		return e
	}
	return nil
}
