package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/streams"
	"golang.org/x/sys/unix"
)

// stdio connects the workload to the caller's streams. Without a terminal each
// stream is a pipe of its own, never the caller's descriptor: the workload may
// change a descriptor's owner and flags, reopen it through /proc, and push
// characters into a terminal. With a terminal there is one pty, made inside.
type stdio struct {
	in       io.Reader
	out, err io.Writer
	through  bool        // the monitor copies: our pipes are sessions
	child    []wire.File // the workload's ends, or the monitor's
	outputs  []*output
	input    *input

	mu         sync.Mutex // guards what follows
	pty        *os.File
	rows, cols uint16 // asked for before there was a terminal
}

func newStdio(of Streams, tty, through bool) (*stdio, error) {
	st := &stdio{in: of.Stdin, out: of.Stdout, err: of.Stderr, through: through}
	var err error
	switch {
	case through:
		err = st.makeSessions(tty)
	case !tty:
		err = st.makePipes()
	}
	if err != nil {
		st.close()
		return nil, fmt.Errorf("standard streams: %w", err)
	}
	return st, nil
}

// makeSessions makes a pipe for each output that somebody wants. Both ends are
// polled.
func (st *stdio) makeSessions(tty bool) error {
	for _, o := range []struct {
		name string
		w    io.Writer
	}{{"stdout", st.out}, {"stderr", st.err}} {
		if o.w == nil || tty && o.name == "stderr" {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		st.child = append(st.child, wire.File{Name: o.name, File: w})
		st.outputs = append(st.outputs, newOutput(r, o.w))
	}
	return nil
}

func (st *stdio) makePipes() error {
	if st.in == nil {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		st.child = append(st.child, wire.File{Name: "stdin", File: null})
	} else {
		r, w, err := streams.Pipe(true)
		if err != nil {
			return err
		}
		st.child = append(st.child, wire.File{Name: "stdin", File: r})
		st.input = &input{r: st.in, w: w, closeEnd: true}
	}
	for _, o := range []struct {
		name string
		w    io.Writer
	}{{"stdout", st.out}, {"stderr", st.err}} {
		w, r, err := streams.Pipe(false)
		if err != nil {
			return err
		}
		st.child = append(st.child, wire.File{Name: o.name, File: w})
		st.outputs = append(st.outputs, newOutput(r, orDiscard(o.w)))
	}
	return nil
}

func (st *stdio) childFiles() []wire.File { return st.child }

func (st *stdio) closeChild() {
	for _, f := range st.child {
		f.File.Close()
	}
	st.child = nil
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// run starts the copies, once the workload runs: a sandbox that does not start
// takes nothing of the caller's input. pty is the terminal, in the input that the
// monitor has handed over, if there are such.
func (st *stdio) run(pty, in *os.File) error {
	st.closeChild()
	if in != nil && st.in != nil {
		st.input = &input{r: st.in, w: in, closeEnd: true}
	} else if in != nil {
		in.Close()
	}
	if pty != nil {
		if !st.through {
			st.outputs = []*output{newOutput(pty, orDiscard(st.out))}
		}
		if st.in != nil {
			st.input = &input{r: st.in, w: pty}
		}
		st.mu.Lock()
		st.pty = pty
		rows, cols := st.rows, st.cols
		st.mu.Unlock()
		if rows > 0 && cols > 0 {
			if err := st.resize(rows, cols); err != nil {
				return err
			}
		}
	}
	for _, o := range st.outputs {
		go o.run()
	}
	if st.input != nil {
		return st.input.start()
	}
	return nil
}

// size is what the terminal is to begin with, 0 if nobody has said.
func (st *stdio) size() (rows, cols uint16) {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.rows, st.cols
}

// resize of a terminal that is not there yet is remembered.
func (st *stdio) resize(rows, cols uint16) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.pty == nil {
		st.rows, st.cols = rows, cols
		return nil
	}
	rc, err := st.pty.SyscallConn() // Fd would make it blocking
	if err != nil {
		return err
	}
	var serr error
	err = rc.Control(func(fd uintptr) {
		serr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	if errors.Is(err, os.ErrClosed) {
		return nil // the sandbox has ended, or its output could not be written
	}
	return errors.Join(err, serr)
}

// drain waits until all output has been written. Every process of the sandbox is
// gone by now.
func (st *stdio) drain() error {
	var errs []error
	for _, o := range st.outputs {
		errs = append(errs, o.drain())
	}
	return errors.Join(errs...)
}

func (st *stdio) close() {
	st.closeChild()
	if st.input != nil {
		st.input.close()
	}
	for _, o := range st.outputs {
		o.Close()
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.pty != nil {
		st.pty.Close()
	}
}
