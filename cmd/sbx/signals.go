package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/rootless-sbx/sbx/sandbox"
	"golang.org/x/sys/unix"
)

// brokenPipeGrace is how long a workload whose output nobody reads may take to
// end by itself. An ordinary command of a pipeline would die at its next write;
// pid 1 gets an error that it may ignore.
const brokenPipeGrace = time.Second

// orders is the number of interrupts that kill the sandbox.
const orders = 3

// signals turns signals into the end of the start-up, and then forwards them.
type signals struct {
	out    *terminal
	ch     chan os.Signal
	cancel context.CancelCauseFunc
	target chan target
	all    chan struct{} // closed when all signals are caught
	done   chan struct{}
	ending sync.Once // the way out when the other end of the output has gone
}

// workload is what gets the signals.
type workload interface {
	Signal(context.Context, syscall.Signal) error
	Resize(rows, cols uint16) error
	Stop(context.Context) error
}

type target struct {
	s     workload
	tty   *tty
	proxy bool
}

func catchSignals(ctx context.Context, out *terminal) (context.Context, *signals) {
	ctx, cancel := context.WithCancelCause(ctx)
	g := &signals{out: out, ch: make(chan os.Signal, 64), cancel: cancel, target: make(chan target, 1), done: make(chan struct{})}
	signal.Notify(g.ch, caught(early...)...)
	go g.loop()
	return ctx, g
}

// early are the signals that mean something before the start, see beforeStart; and
// SIGPIPE, which would end sbx at a write to its standard error.
var early = []syscall.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGTSTP, unix.SIGPIPE}

var every = func() (list []syscall.Signal) {
	for s := syscall.Signal(1); s <= 64; s++ {
		list = append(list, s)
	}
	return list
}()

// catchAll catches those too that are forwarded to a workload. To catch all takes
// the runtime a millisecond: it is for beside the start. Until then they are lost.
func (g *signals) catchAll() {
	g.all = make(chan struct{})
	go func() {
		defer close(g.all)
		signal.Notify(g.ch, caught(every...)...)
	}()
}

// caught are those signals that sbx handles: all that can be caught, except those
// that the Go runtime and the thread library need, those of a background job that
// touches the terminal, and those that whoever started sbx has it ignore (nohup).
func caught(of ...syscall.Signal) []os.Signal {
	own := map[syscall.Signal]bool{
		unix.SIGKILL: true, unix.SIGSTOP: true, unix.SIGCHLD: true, unix.SIGURG: true,
		unix.SIGTTIN: true, unix.SIGTTOU: true, 32: true, 33: true,
	}
	var list []os.Signal
	for _, s := range of {
		if !own[s] && !signal.Ignored(s) {
			list = append(list, s)
		}
	}
	return list
}

func (g *signals) stop() {
	signal.Stop(g.ch)
	close(g.done)
	g.cancel(nil)
}

// forward sends what comes from now on to the sandbox. catchAll comes before it.
func (g *signals) forward(s workload, t *tty, proxy bool) {
	<-g.all
	g.target <- target{s, t, proxy}
}

func (g *signals) loop() {
	var t target
	interrupts := 0
	for {
		select {
		case <-g.done:
			return
		case t = <-g.target:
			g.resize(t) // one that came in between
		case got := <-g.ch:
			sig := got.(syscall.Signal)
			if sig == unix.SIGINT || sig == unix.SIGTERM {
				interrupts++
			}
			if t.s == nil {
				g.beforeStart(sig)
				continue
			}
			g.handle(t, sig, interrupts)
		}
	}
}

// beforeStart ends the start-up; nothing runs yet that could get a signal.
func (g *signals) beforeStart(sig syscall.Signal) {
	switch sig {
	case unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT:
		g.cancel(interrupted(sig))
	case unix.SIGTSTP:
		g.complain("stop", unix.Kill(os.Getpid(), unix.SIGSTOP))
	}
}

func (g *signals) handle(t target, sig syscall.Signal, interrupts int) {
	switch sig {
	case unix.SIGWINCH:
		g.resize(t)
		return
	case unix.SIGTSTP: // job control is sbx's own: the sandbox goes on
		g.complain("stop", t.tty.suspend())
		g.resize(t)
		return
	case unix.SIGCONT:
		g.complain("continue", t.tty.again())
		g.resize(t)
		return
	case unix.SIGPIPE: // also comes from a workload that closes its input
		if unread(1) {
			g.end(t, brokenPipeGrace)
		}
		return
	}
	if sig == unix.SIGHUP && hungUp(0, 1, 2) {
		// Not the request to read a configuration again: the terminal was closed.
		g.complain("forward SIGHUP", t.s.Signal(context.Background(), sig))
		g.end(t, 0)
		return
	}
	if interrupts >= orders {
		if interrupts == orders {
			say(g.out, "sbx: third interrupt: killing the sandbox")
		}
		sig = unix.SIGKILL
	} else if !t.proxy {
		return
	}
	g.complain("forward "+unix.SignalName(sig), t.s.Signal(context.Background(), sig))
}

// end stops a sandbox that nobody looks at any more: with its stop signal, and
// after its stop timeout or, if that is shorter, grace, with SIGKILL.
func (g *signals) end(t target, grace time.Duration) {
	g.ending.Do(func() {
		go func() {
			if grace > 0 {
				kill := time.AfterFunc(grace, func() {
					g.complain("kill", t.s.Signal(context.Background(), unix.SIGKILL))
				})
				defer kill.Stop()
			}
			g.complain("stop the sandbox", t.s.Stop(context.Background()))
		}()
	})
}

func (g *signals) resize(t target) {
	if t.s == nil {
		return
	}
	if rows, cols, ok := windowSize(); ok {
		g.complain("resize", t.s.Resize(rows, cols))
	}
}

func (g *signals) complain(what string, err error) {
	if err != nil && !errors.Is(err, sandbox.ErrEnded) {
		say(g.out, "sbx: %s: %v", what, err)
	}
}
