//go:build !amd64 && !386

package probe

import "golang.org/x/sys/unix"

// rawIO has no such call here.
func rawIO(uintptr) error { return unix.EPERM }
