package probe

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// An attempt is something that a sandbox must not get away with. It returns nil if
// it got what it wanted, else the errno with which it was refused. Each is harmless
// where it is allowed, for the tests run it there too, to see that it can succeed.
type attempt func(args []string) error

// attempts are grouped by file: try_call.go, try_process.go, try_file.go,
// try_socket.go, try_packet.go, try_flood.go.
func attempts() map[string]attempt {
	all := map[string]attempt{}
	for _, group := range []map[string]attempt{
		callAttempts, mountAttempts, processAttempts, fileAttempts, socketAttempts, packetAttempts, floodAttempts,
	} {
		maps.Copy(all, group)
	}
	return all
}

// try prints "ok" or an errno.
func try(args []string) error {
	f := attempts()[args[0]]
	if f == nil {
		return fmt.Errorf("%w: try %s", ErrUsage, args[0])
	}
	fmt.Println(callResult(f(args[1:])))
	return nil
}

// calls makes attempts that need no argument, and prints a line for each.
func calls(names []string) error {
	all := attempts()
	for _, n := range names {
		if all[n] == nil {
			return fmt.Errorf("%w: calls %s", ErrUsage, n)
		}
		fmt.Println(n, callResult(all[n](nil)))
	}
	return nil
}

func callResult(err error) string {
	if err == nil {
		return "ok"
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

func errnoOf(_, _ uintptr, errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// call makes a bare system call.
func call(nr uintptr, args ...uintptr) attempt {
	var a [6]uintptr
	copy(a[:], args)
	return func([]string) error {
		return errnoOf(unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]))
	}
}

// plain is an attempt without arguments.
func plain(f func() error) attempt { return func([]string) error { return f() } }

// openOnly opens a file and does nothing to it.
func openOnly(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// readSome wants a byte of a file. Nothing to read is refused with ENODATA.
func readSome(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := f.Read(make([]byte, 64))
	if n == 0 {
		if errors.Is(err, syscall.EISDIR) {
			return err
		}
		return unix.ENODATA
	}
	return nil
}
