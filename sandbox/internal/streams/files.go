package streams

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Pipe makes a pipe for the workload, whose own end blocks, as every program
// expects of its standard streams; both of os.Pipe's do not, and the flag belongs to
// the open file, which is shared with the workload. Our end is served by Go's
// poller: closing it ends what waits on it.
func Pipe(workloadReads bool) (workload, ours *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	theirs, own := fds[0], fds[1]
	if !workloadReads {
		theirs, own = own, theirs
	}
	if err := unix.SetNonblock(own, true); err != nil {
		return nil, nil, errors.Join(os.NewSyscallError("fcntl O_NONBLOCK", err), unix.Close(theirs), unix.Close(own))
	}
	return os.NewFile(uintptr(theirs), "|workload"), os.NewFile(uintptr(own), "|sbx"), nil
}

// Dup duplicates a file without making it blocking, as Fd would.
func Dup(f *os.File) (*os.File, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var derr error
	if err := rc.Control(func(n uintptr) { fd, derr = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", derr)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
