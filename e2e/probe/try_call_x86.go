//go:build amd64 || 386

package probe

import "golang.org/x/sys/unix"

// rawIO wants the machine's ports.
func rawIO(level uintptr) error { return errnoOf(unix.Syscall(unix.SYS_IOPL, level, 0, 0)) }
