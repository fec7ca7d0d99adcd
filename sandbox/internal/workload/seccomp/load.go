package seccomp

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Filter is a compiled profile.
type Filter struct {
	insns []bpf.Instruction
	raw   []bpf.RawInstruction
	flags uint
}

// Len is the number of instructions.
func (f *Filter) Len() int { return len(f.raw) }

// Load makes the calling thread obey the filter, and what it forks or
// executes. The thread needs CAP_SYS_ADMIN in its user namespace or
// no_new_privs. The caller has locked the goroutine to it.
func (f *Filter) Load() error {
	prog := unix.SockFprog{
		Len:    uint16(len(f.raw)),
		Filter: (*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(f.raw))),
	}
	flags := f.flags
	for {
		_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&prog)))
		runtime.KeepAlive(f)
		switch {
		case e == 0:
			return nil
		case e == unix.EINVAL && flags&unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW != 0:
			// Kernels before 4.17 do not have the flag, nor what it undoes.
			flags &^= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		default:
			return fmt.Errorf("load the seccomp filter: %w", e)
		}
	}
}
