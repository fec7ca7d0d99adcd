package workload

import (
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"github.com/moby/sys/signal"
	"golang.org/x/sys/unix"
)

// maxSignal is the largest signal number of the architectures sbx runs on.
const maxSignal = 64

// ParseSignal parses a name with or without SIG, in any case, RTMIN+n,
// RTMAX-n or a number from 1 to 64.
func ParseSignal(s string) (syscall.Signal, error) {
	s = strings.TrimSpace(s)
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > maxSignal {
			return 0, invalid("", "use a name such as TERM, or a number from 1 to 64", "invalid signal: %s", s)
		}
		return syscall.Signal(n), nil
	}
	sig, err := signal.ParseSignal(s)
	if err != nil {
		return 0, invalid("", "use a name such as TERM, or a number from 1 to 64", "invalid signal: %s", s)
	}
	return sig, nil
}

// SignalName is what ParseSignal reads as sig.
func SignalName(sig syscall.Signal) string {
	if name := unix.SignalName(sig); name != "" || sig == 0 {
		return name
	}
	return strconv.Itoa(int(sig))
}

// kernelSigaction is struct sigaction as rt_sigaction has it; the flags decide
// nothing here, and the tail is larger than on any architecture.
type kernelSigaction struct {
	handler uintptr
	rest    [31]uintptr
}

// resetSignals gives the program what a fresh process has: nothing blocked and
// nothing ignored. execve resets handlers, but keeps the mask and SIG_IGN.
func resetSignals() error {
	for sig := 1; sig <= maxSignal; sig++ {
		if sig == int(unix.SIGKILL) || sig == int(unix.SIGSTOP) {
			continue
		}
		var act kernelSigaction
		if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(&act)), 8, 0, 0); e != 0 {
			return fail("", "read the disposition of signal", strconv.Itoa(sig), e, "")
		}
		const sigIgn = 1
		if act.handler != sigIgn {
			continue
		}
		act = kernelSigaction{}
		if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0); e != 0 {
			return fail("", "reset the disposition of signal", strconv.Itoa(sig), e, "")
		}
	}
	var none uint64
	if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0); e != 0 {
		return fail("", "unblock all signals", "", e, "")
	}
	return nil
}
