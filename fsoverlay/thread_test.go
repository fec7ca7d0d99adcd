package fsoverlay

import (
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// asUser runs f on a thread that has another file system id and no capability to
// override permissions. The thread ends with it.
func asUser(t *testing.T, id int, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		// The raw calls change this thread alone, and setfsuid drops the
		// capabilities that concern files.
		if _, _, e := syscall.RawSyscall(unix.SYS_SETFSGID, uintptr(id), 0, 0); e != 0 {
			done <- e
			return
		}
		if _, _, e := syscall.RawSyscall(unix.SYS_SETFSUID, uintptr(id), 0, 0); e != 0 {
			done <- e
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Errorf("as user %d: %v", id, err)
	}
}
