package sandbox

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	copyBuffer = 64 << 10
	// restGrace is how long an output stream may stay open after the sandbox's
	// end: somebody outside has got it, through a socket in a shared directory.
	restGrace = 200 * time.Millisecond
	// maxRest is more than a pipe or a terminal can hold (1 MiB for an ordinary user).
	maxRest = 2 << 20
)

// output copies one of the workload's streams to the caller's writer.
type output struct {
	r    *os.File
	w    io.Writer
	err  error // of the writer; set when done is closed
	done chan struct{}
}

func newOutput(r *os.File, w io.Writer) *output {
	return &output{r: r, w: w, done: make(chan struct{})}
}

func (o *output) run() {
	defer close(o.done)
	buf := make([]byte, copyBuffer)
	for {
		n, err := o.r.Read(buf)
		if !o.write(buf[:n]) {
			return
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			o.rest(buf)
			return
		}
		if err != nil { // EOF; EIO when the last process has closed a terminal; closed
			return
		}
	}
}

// write passes on what was read. If nobody takes it any more, the workload is let
// know: writing to the pipe fails, or the terminal hangs up.
func (o *output) write(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	n, err := o.w.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err == nil {
		return true
	}
	o.err = err
	o.r.Close()
	return false
}

// rest copies what is there now and waits for no more.
func (o *output) rest(buf []byte) {
	if err := o.r.SetReadDeadline(time.Time{}); err != nil {
		return // closed
	}
	rc, err := o.r.SyscallConn()
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
		if err != nil || rerr != nil || n <= 0 || !o.write(buf[:n]) {
			return
		}
		total += n
	}
}

// drain returns when everything has been written, however long the caller's
// writer takes, and the writer's error.
func (o *output) drain() error {
	t := time.NewTimer(restGrace)
	defer t.Stop()
	select {
	case <-o.done:
		return o.err
	case <-t.C:
	}
	// The writer is slow, or somebody outside holds the other end.
	if err := o.r.SetReadDeadline(time.Unix(1, 0)); err != nil && !errors.Is(err, os.ErrClosed) {
		o.r.Close()
		return err
	}
	<-o.done
	return o.err
}

// input copies the caller's reader to the workload. A file is only read when there
// is something to read, so that closing the input ends the copy and takes nothing
// that the workload can no longer get. Any other reader keeps the goroutine until
// its Read returns, as with os/exec.
type input struct {
	r        io.Reader
	w        *os.File
	closeEnd bool     // close w at the end of r
	stop     *os.File // its close wakes the copy of a file
}

func (in *input) start() error {
	f, ok := in.r.(*os.File)
	if !ok {
		go func() {
			// Its errors are the end of one side, which both see for themselves.
			_, _ = io.Copy(in.w, in.r)
			in.end()
		}()
		return nil
	}
	// A duplicate, so that the caller may close its file at any time. Fd would
	// make it blocking.
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var fd int
	var derr error
	if err := rc.Control(func(n uintptr) { fd, derr = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return err
	}
	if derr != nil {
		return os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", derr)
	}
	wake, stop, err := os.Pipe()
	if err != nil {
		unix.Close(fd)
		return err
	}
	in.stop = stop
	go func() {
		in.copyFile(fd, int(wake.Fd()))
		unix.Close(fd)
		wake.Close()
		in.end()
	}()
	return nil
}

func (in *input) end() {
	if in.closeEnd {
		in.w.Close()
	}
}

func (in *input) copyFile(fd, wake int) {
	buf := make([]byte, copyBuffer)
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake)}}
	for {
		if _, err := unix.Poll(p, -1); err == unix.EINTR {
			continue
		} else if err != nil || p[1].Revents != 0 {
			return
		}
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR || err == unix.EAGAIN { // somebody else reads it too
			continue
		}
		if err != nil || n == 0 {
			return
		}
		if _, err := in.w.Write(buf[:n]); err != nil {
			return // the workload has closed it, or ended
		}
	}
}

// close ends the copy.
func (in *input) close() {
	in.w.Close()
	if in.stop != nil {
		in.stop.Close()
	}
}
