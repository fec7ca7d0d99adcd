package streams

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	bufferSize = 64 << 10
	// restGrace is how long an output may stay open after the sandbox's end:
	// somebody outside has got it, through a socket in a shared directory.
	restGrace = 200 * time.Millisecond
	// maxRest is more than a pipe or a terminal can hold (1 MiB for an ordinary
	// user).
	maxRest = 2 << 20
)

// Source is the reading end of one of a workload's outputs.
type Source struct {
	r    *os.File
	done chan struct{}
}

// NewSource takes r, which must be served by Go's poller.
func NewSource(r *os.File) Source { return Source{r: r, done: make(chan struct{})} }

// Run passes on what is read until the output's end, or until write returns false.
// It is called once; closed is called at the end, before Drain returns.
func (s Source) Run(write func([]byte) bool, closed func()) {
	defer close(s.done)
	defer closed()
	buf := make([]byte, bufferSize)
	for {
		n, err := s.r.Read(buf)
		if n > 0 && !write(buf[:n]) {
			return
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.rest(buf, write)
			return
		}
		if err != nil { // EOF; EIO when the last process has closed a terminal; closed
			return
		}
	}
}

// rest copies what is there now and waits for no more.
func (s Source) rest(buf []byte, write func([]byte) bool) {
	if err := s.r.SetReadDeadline(time.Time{}); err != nil {
		return // closed
	}
	rc, err := s.r.SyscallConn()
	if err != nil {
		return
	}
	for total := 0; total < maxRest; {
		var n int
		var rerr error
		err := rc.Read(func(fd uintptr) bool {
			n, rerr = unix.Read(int(fd), buf)
			return true
		})
		if rerr == unix.EINTR {
			continue
		}
		if err != nil || rerr != nil || n <= 0 || !write(buf[:n]) {
			return
		}
		total += n
	}
}

// Close ends the output: the workload's next write fails, or its terminal hangs up.
func (s Source) Close() error { return s.r.Close() }

// Drain is called when every process of the sandbox has gone. It returns when
// everything has been written, however long that takes.
func (s Source) Drain() error {
	t := time.NewTimer(restGrace)
	defer t.Stop()
	select {
	case <-s.done:
		return nil
	case <-t.C:
	}
	// A reader is slow, or somebody outside holds the other end.
	if err := s.r.SetReadDeadline(time.Unix(1, 0)); err != nil && !errors.Is(err, os.ErrClosed) {
		s.r.Close()
		return err
	}
	<-s.done
	return nil
}
