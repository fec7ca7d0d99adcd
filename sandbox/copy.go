package sandbox

import (
	"io"
	"os"

	"github.com/rootless-sbx/sbx/sandbox/internal/streams"
	"golang.org/x/sys/unix"
)

const copyBuffer = 64 << 10

// output copies one of the workload's streams to the caller's writer.
type output struct {
	streams.Source
	w   io.Writer
	err error // of the writer; set when the copy has ended
}

func newOutput(r *os.File, w io.Writer) *output {
	return &output{Source: streams.NewSource(r), w: w}
}

func (o *output) run() { o.Run(o.write, func() {}) }

// write passes on what was read. If nobody takes it any more, the workload is let
// know: writing to the pipe fails, or the terminal hangs up.
func (o *output) write(b []byte) bool {
	n, err := o.w.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err == nil {
		return true
	}
	o.err = err
	o.Close()
	return false
}

// drain returns when everything has been written, however long the caller's
// writer takes, and the writer's error.
func (o *output) drain() error {
	if err := o.Drain(); err != nil {
		return err
	}
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
