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
func (f *Filter) Load() error { return f.load(0) }

// LoadAll makes all threads of the process obey the filter. The calling one needs what
// Load needs; if it has no_new_privs, all have it then.
func (f *Filter) LoadAll() error { return f.load(unix.SECCOMP_FILTER_FLAG_TSYNC) }

func (f *Filter) load(more uint) error {
	prog := unix.SockFprog{
		Len:    uint16(len(f.raw)),
		Filter: (*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(f.raw))),
	}
	flags := f.flags | more
	for {
		thread, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&prog)))
		runtime.KeepAlive(f)
		switch {
		case e == 0 && thread == 0:
			return nil
		case e == 0:
			return fmt.Errorf("load the seccomp filter: thread %d has another one", thread)
		case e == unix.EINVAL && flags&unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW != 0:
			// Kernels before 4.17 do not have the flag, nor what it undoes.
			flags &^= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		default:
			return fmt.Errorf("load the seccomp filter: %w", e)
		}
	}
}
