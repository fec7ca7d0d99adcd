package confine

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"
)

// Set is a set of capabilities, as bits.
type Set uint64

// Capabilities returns a set.
func Capabilities(list ...capability.Cap) (s Set) {
	for _, c := range list {
		s |= 1 << uint(c)
	}
	return s
}

// KeepCaps takes all other capabilities from the process, and from each program that it
// executes. It needs CAP_SETPCAP.
func KeepCaps(keep Set) error {
	last, err := capability.LastCap()
	if err != nil {
		return fmt.Errorf("find the last capability: %w", err)
	}
	for c := capability.Cap(0); c <= last; c++ {
		if keep&(1<<uint(c)) != 0 {
			continue
		}
		if _, _, e := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c), 0); e != 0 {
			return os.NewSyscallError("prctl PR_CAPBSET_DROP", e)
		}
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&hdr, &have[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	for i, k := range []uint32{uint32(keep), uint32(keep >> 32)} {
		have[i].Effective &= k
		have[i].Permitted &= k
		have[i].Inheritable &= k // and with it what is ambient
	}
	_, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&have[0])), 0)
	if e != 0 {
		return os.NewSyscallError("capset", e)
	}
	return nil
}

// NoNewPrivs keeps the process, and what it executes, from gaining privileges by set-uid
// programs and file capabilities.
func NoNewPrivs() error {
	_, _, e := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	if e != 0 {
		return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", e)
	}
	return nil
}
