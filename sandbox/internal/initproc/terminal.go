package initproc

import (
	"errors"
	"os"

	"github.com/rootless-sbx/sbx/internal/wire"
	"golang.org/x/sys/unix"
)

// useTerminal turns a terminal that open makes into this process's standard streams
// and returns the master, non-blocking for the caller's poller. The workload makes
// it its controlling terminal.
func useTerminal(open func() (master, slave *os.File, err error), rows, cols uint16) (*os.File, error) {
	master, slave, err := open()
	if err != nil {
		return nil, err
	}
	defer slave.Close()
	fd := int(master.Fd())
	if rows > 0 && cols > 0 {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	}
	for std := 0; std < 3; std++ {
		err = errors.Join(err, unix.Dup3(int(slave.Fd()), std, 0))
	}
	if err = errors.Join(err, unix.SetNonblock(fd, true)); err != nil {
		master.Close()
		return nil, wire.ToError("set up the terminal", err)
	}
	return master, nil
}
