package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/rootless-sbx/sbx/sandbox"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

func runCommand() *cli.Command {
	return &cli.Command{
		Name:      "run",
		Usage:     "run a command in a new sandbox",
		ArgsUsage: "IMAGE [COMMAND [ARG...]]",
		Flags:     runFlags(),
		Action:    runAction,
		Description: `Runs IMAGE in the foreground and exits as its command does: 125 if sbx failed,
126 if the command cannot be invoked, 127 if it was not found, 128+N after signal N.
The image "demo" is built in: sbx run --rm -p 8080:80 demo`,
	}
}

func runAction(c *cli.Context) error {
	cfg, err := runConfig(c)
	if err != nil {
		return err
	}
	e, err := newEngine(c)
	if err != nil {
		return err
	}
	ctx, signals := catchSignals(c.Context)
	defer signals.stop()

	if err := checkTerminal(c, &cfg); err != nil {
		return err
	}
	bars := newProgress(c.App.ErrWriter, c.Bool("quiet"))
	cfg.Progress = bars.event
	s, err := e.Create(ctx, cfg)
	bars.close()
	if err != nil {
		return err
	}
	if err := writeCIDFile(c.String("cidfile"), s.ID()); err != nil {
		s.Remove(ctx)
		return err
	}
	if c.String("cidfile") != "" {
		defer os.Remove(c.String("cidfile"))
	}
	restore, err := rawTerminal(cfg)
	if err != nil {
		s.Remove(ctx)
		return err
	}
	defer restore()
	if err := s.Start(ctx); err != nil {
		return err
	}
	for _, n := range s.Notes() {
		fmt.Fprintf(c.App.ErrWriter, "sbx: note: %s\r\n", n)
	}
	signals.forward(s, cfg.TTY, c.Bool("sig-proxy"))
	status, err := s.Wait(context.WithoutCancel(ctx))
	restore()
	if err != nil {
		return err
	}
	if status.Code != 0 {
		return exitStatus(status.Code)
	}
	return nil
}

// checkTerminal connects the standard streams.
func checkTerminal(c *cli.Context, cfg *sandbox.Config) error {
	cfg.Stdout, cfg.Stderr = os.Stdout, os.Stderr
	if c.Bool("interactive") {
		cfg.Stdin = os.Stdin
	}
	if !cfg.TTY {
		return nil
	}
	if cfg.Stdin != nil && !term.IsTerminal(int(os.Stdin.Fd())) {
		return usagef("--tty needs a terminal on standard input, which is none here; leave out -t, as in a script or a CI job")
	}
	if w, h, err := term.GetSize(int(os.Stdout.Fd())); err == nil {
		cfg.Rows, cfg.Cols = uint16(h), uint16(w)
	}
	return nil
}

// rawTerminal lets every key reach the workload. The returned function undoes it
// and may be called twice.
func rawTerminal(cfg sandbox.Config) (func(), error) {
	if !cfg.TTY || cfg.Stdin == nil {
		return func() {}, nil
	}
	fd := int(os.Stdin.Fd())
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("put the terminal into raw mode: %w", err)
	}
	return func() { term.Restore(fd, old) }, nil
}

func writeCIDFile(path, id string) error {
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return usagef("--cidfile %s exists already; remove it or name another", path)
	}
	if err != nil {
		return fmt.Errorf("--cidfile: %w", err)
	}
	_, err = io.WriteString(f, id)
	return errors.Join(err, f.Close())
}

// signals turns signals into the end of the start-up, and then forwards them.
type signals struct {
	ch     chan os.Signal
	cancel context.CancelCauseFunc
	target chan target
	done   chan struct{}
}

type target struct {
	s     *sandbox.Sandbox
	tty   bool
	proxy bool
}

func catchSignals(ctx context.Context) (context.Context, *signals) {
	ctx, cancel := context.WithCancelCause(ctx)
	g := &signals{ch: make(chan os.Signal, 64), cancel: cancel, target: make(chan target, 1), done: make(chan struct{})}
	signal.Notify(g.ch, forwarded()...)
	go g.loop()
	return ctx, g
}

// forwarded are the signals that the workload gets. Job control stays with sbx
// itself, SIGCHLD and SIGURG are its own.
func forwarded() []os.Signal {
	own := map[syscall.Signal]bool{
		unix.SIGKILL: true, unix.SIGSTOP: true, unix.SIGCHLD: true, unix.SIGURG: true,
		unix.SIGTSTP: true, unix.SIGTTIN: true, unix.SIGTTOU: true, unix.SIGCONT: true,
		32: true, 33: true, // the threads library's
	}
	var list []os.Signal
	for s := syscall.Signal(1); s <= 64; s++ {
		if !own[s] {
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

func (g *signals) forward(s *sandbox.Sandbox, tty, proxy bool) { g.target <- target{s, tty, proxy} }

func (g *signals) loop() {
	var t target
	interrupts := 0
	for {
		select {
		case <-g.done:
			return
		case t = <-g.target:
			// A resize that came in between.
			t.resize()
		case got := <-g.ch:
			sig := got.(syscall.Signal)
			switch sig {
			case unix.SIGPIPE: // the copy of the output sees it as an error
			case unix.SIGWINCH:
				t.resize()
			default:
				if sig == unix.SIGINT || sig == unix.SIGTERM {
					interrupts++
				}
				if t.s == nil {
					if sig == unix.SIGINT || sig == unix.SIGTERM || sig == unix.SIGHUP || sig == unix.SIGQUIT {
						g.cancel(interrupted(sig))
					}
					continue
				}
				g.deliver(t, sig, interrupts)
			}
		}
	}
}

// deliver forwards a signal; the third request to end is an order.
func (g *signals) deliver(t target, sig syscall.Signal, interrupts int) {
	if interrupts >= 3 {
		fmt.Fprint(os.Stderr, "sbx: third interrupt: killing the sandbox\r\n")
		sig = unix.SIGKILL
	} else if !t.proxy {
		return
	}
	if err := t.s.Signal(context.Background(), sig); err != nil {
		fmt.Fprintf(os.Stderr, "sbx: forward signal %v: %v\r\n", sig, err)
	}
}

func (t target) resize() {
	if t.s == nil || !t.tty {
		return
	}
	if w, h, err := term.GetSize(int(os.Stdout.Fd())); err == nil {
		t.s.Resize(uint16(h), uint16(w))
	}
}

// interrupted ends a start-up.
type interrupted syscall.Signal

func (s interrupted) Error() string { return "interrupted: " + syscall.Signal(s).String() }
