package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/rootless-sbx/sbx/internal/wire"
	"golang.org/x/sys/unix"
)

// stdio connects the workload to the caller's streams. Without a terminal each
// stream is a pipe of its own, never the caller's descriptor: the workload may
// change a descriptor's owner and flags, reopen it through /proc, and push
// characters into a terminal. With a terminal there is one pty, made inside.
type stdio struct {
	in        io.Reader
	out, err  io.Writer
	tty       bool
	child     []wire.File    // the workload's ends
	parent    []*os.File     // ours
	copies    sync.WaitGroup // of output
	stdinPipe *os.File
	mu        sync.Mutex // guards pty
	pty       *os.File
}

func newStdio(cfg *Config) (*stdio, error) {
	st := &stdio{in: cfg.Stdin, out: cfg.Stdout, err: cfg.Stderr, tty: cfg.TTY}
	if st.out == nil {
		st.out = io.Discard
	}
	if st.err == nil {
		st.err = io.Discard
	}
	if st.tty {
		return st, nil
	}
	if err := st.makePipes(); err != nil {
		st.close()
		return nil, fmt.Errorf("standard streams: %w", err)
	}
	return st, nil
}

func (st *stdio) makePipes() error {
	if st.in == nil {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		st.child = append(st.child, wire.File{Name: "stdin", File: null})
	} else {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		st.child = append(st.child, wire.File{Name: "stdin", File: r})
		st.stdinPipe = w
		// Not waited for: the reader may block for ever, as on a terminal.
		go func() {
			io.Copy(w, st.in)
			w.Close()
		}()
	}
	for _, o := range []struct {
		name string
		w    io.Writer
	}{{"stdout", st.out}, {"stderr", st.err}} {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		st.child = append(st.child, wire.File{Name: o.name, File: w})
		st.parent = append(st.parent, r)
		st.copies.Add(1)
		go func() {
			defer st.copies.Done()
			if _, err := io.Copy(o.w, r); err != nil && !errors.Is(err, os.ErrClosed) {
				// Nobody takes the output any more: let the workload see that.
				r.Close()
			}
		}()
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

// attachTerminal starts the copies between the caller's streams and the pty.
func (st *stdio) attachTerminal(pty *os.File) {
	st.mu.Lock()
	st.pty = pty
	st.mu.Unlock()
	if st.in != nil {
		go io.Copy(pty, st.in)
	}
	st.copies.Add(1)
	go func() {
		defer st.copies.Done()
		// Ends with EIO when the last process has closed the terminal.
		io.Copy(st.out, pty)
	}()
}

func (st *stdio) resize(rows, cols uint16) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.pty == nil {
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
	return errors.Join(err, serr)
}

// drain waits until all output has been written; every writer is gone by now.
func (st *stdio) drain() { st.copies.Wait() }

func (st *stdio) close() {
	st.closeChild()
	for _, f := range st.parent {
		f.Close()
	}
	if st.stdinPipe != nil {
		st.stdinPipe.Close()
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.pty != nil {
		st.pty.Close()
		st.pty = nil
	}
}
