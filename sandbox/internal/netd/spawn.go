package netd

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"unsafe"

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
			Env:   []string{},
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

// DropPrivilege gives up what the process has if a monitor started it, after its
// predecessor was killed: every capability in that sandbox's user namespace. Only
// real root keeps one, to publish ports below 1024.
func DropPrivilege() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have, keep [2]unix.CapUserData
	if err := unix.Capget(&hdr, &have[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	bind := uint32(1<<unix.CAP_NET_BIND_SERVICE) & have[0].Permitted
	keep[0] = unix.CapUserData{Effective: bind, Permitted: bind}
	for _, call := range [][3]uintptr{
		{unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL},
		{unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&keep[0]))},
	} {
		if _, _, e := syscall.AllThreadsSyscall6(call[0], call[1], call[2], 0, 0, 0, 0); e != 0 {
			return os.NewSyscallError("drop capabilities", e)
		}
	}
	return nil
}
