//go:build 386 || arm

package workload

import "golang.org/x/sys/unix"

// The calls without 32 take 16-bit ids here.
const (
	sysSetgroups = unix.SYS_SETGROUPS32
	sysSetresgid = unix.SYS_SETRESGID32
	sysSetresuid = unix.SYS_SETRESUID32
)
