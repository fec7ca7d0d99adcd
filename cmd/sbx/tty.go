package main

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// tty is the user's terminal while the workload has it: in raw mode, so that
// every key gets there. The zero value is none.
type tty struct {
	out *terminal

	mu  sync.Mutex  // guards what follows
	old *term.State // nil unless in raw mode
}

// rawTerminal lets every key reach the workload if that has a terminal and reads
// from this one.
func rawTerminal(has, reads bool, out *terminal) (*tty, error) {
	t := &tty{out: out}
	if !has || !reads {
		return t, nil
	}
	return t, t.makeRaw()
}

func (t *tty) makeRaw() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.old != nil {
		return nil
	}
	old, err := term.MakeRaw(int(os.Stdin.Fd()))
	if err != nil {
		return fmt.Errorf("put the terminal into raw mode: %w", err)
	}
	t.old = old
	t.out.raw.Store(true)
	return nil
}

// restore undoes it and may be called twice.
func (t *tty) restore() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.old == nil {
		return
	}
	// Fails only when the terminal has gone.
	term.Restore(int(os.Stdin.Fd()), t.old)
	t.old = nil
	t.out.raw.Store(false)
}

// suspend stops sbx as SIGTSTP would, with the terminal as it was found, and
// returns when it has been continued in the foreground.
func (t *tty) suspend() error {
	t.mu.Lock()
	was := t.old != nil
	t.mu.Unlock()
	t.restore()
	if err := unix.Kill(os.Getpid(), unix.SIGSTOP); err != nil {
		return err
	}
	if !was {
		return nil
	}
	return t.makeRaw()
}

// again makes the terminal raw once more: sbx was stopped by SIGSTOP, and the
// shell has reset it.
func (t *tty) again() error {
	t.mu.Lock()
	was := t.old != nil
	t.mu.Unlock()
	if !was {
		return nil
	}
	_, err := term.MakeRaw(int(os.Stdin.Fd()))
	return err
}

// windowSize is that of the first standard stream that is a terminal.
func windowSize() (rows, cols uint16, ok bool) {
	for _, f := range []*os.File{os.Stdout, os.Stdin, os.Stderr} {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 0 {
			return uint16(h), uint16(w), true
		}
	}
	return 0, 0, false
}

// hungUp says whether one of these descriptors is a terminal that has been closed.
func hungUp(fds ...int) bool {
	for _, fd := range fds {
		if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == unix.EIO {
			return true
		}
	}
	return false
}

// unread says whether fd is a pipe that nobody reads any more.
func unread(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1 && p[0].Revents&unix.POLLERR != 0
}
