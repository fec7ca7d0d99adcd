package netd

import (
	"context"
	"fmt"
	"os"
	"syscall"

	"github.com/rootless-sbx/sbx/internal/racelog"
	"golang.org/x/sys/unix"
)

// Spawn returns a Config.Start that runs path with the one argument role, argv[0].
func Spawn(path, role string) func(context.Context, StartFiles) error {
	return func(_ context.Context, files StartFiles) error {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		defer null.Close()
		p, err := os.StartProcess(path, []string{role}, &os.ProcAttr{
			Dir:   "/",
			Env:   racelog.Environ([]string{}),
			Files: []*os.File{null, files.Log, files.Log, files.Control},
			Sys:   &syscall.SysProcAttr{Setsid: true},
		})
		if err != nil {
			return fmt.Errorf("start the network's process: %w", err)
		}
		go p.Wait() // it outlives us, or is reaped
		return nil
	}
}

// confinedEnv says that the process has executed itself once.
const confinedEnv = "SBX_NETD_CONFINED"

// DropPrivilege gives up what the process has if a monitor started it, after its
// predecessor was killed: every capability in that sandbox's user namespace. Only
// real root keeps one, to publish ports below 1024. It is the first thing in main,
// on the locked main thread.
//
// Capabilities belong to threads, and in a program with cgo there is no way to
// reach those of others. So this one drops its own and executes the program again:
// with no_new_privs root too gets no more than it had. The bounding set may stay as it is,
// which to change takes CAP_SETPCAP, and many a container is without that.
func DropPrivilege() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
	}
	const bind = 1 << unix.CAP_NET_BIND_SERVICE
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&hdr, &have[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	if have[0].Permitted&^bind == 0 && have[1].Permitted == 0 {
		return nil
	}
	if os.Getenv(confinedEnv) != "" {
		return fmt.Errorf("drop capabilities: %#x%08x are still there", have[1].Permitted, have[0].Permitted)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_CAP_AMBIENT", err)
	}
	keep := [2]unix.CapUserData{{Effective: bind & have[0].Permitted, Permitted: bind & have[0].Permitted}}
	if err := unix.Capset(&hdr, &keep[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	err := syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), confinedEnv+"=1"))
	return os.NewSyscallError("execve", err)
}
