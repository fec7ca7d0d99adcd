package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/rootless-sbx/sbx/sandbox"
	"golang.org/x/term"
)

func createCommand(g *globals) *command {
	o := &runOptions{creates: true}
	return &command{
		Use:   "create [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Short: "Make a sandbox without starting it",
		Long:  "Prints its id. The options are those of sbx run.",
		Example: `  sbx create --name web -p 8080:80 demo
  sbx start web`,
		Complete: completeRunArgs,
		Define:   o.define, OptionsFirst: true,
		RunE: func(c *command, args []string) error { return createAction(c.Context(), g, c.Out(), o, args) },
	}
}

func createAction(ctx context.Context, g *globals, out io.Writer, o *runOptions, args []string) error {
	cfg, err := o.config(args)
	if err != nil {
		return err
	}
	cfg.OpenStdin, cfg.StdinOnce, cfg.Detach = o.interactive, o.interactive, true
	ctx, stop := withInterrupt(ctx)
	defer stop()
	_, s, err := o.create(ctx, g, cfg)
	if err != nil {
		return endedBy(ctx, err)
	}
	if err := s.Save(ctx); err != nil {
		return errors.Join(err, s.Remove(context.WithoutCancel(ctx)))
	}
	return printLines(out, s.ID())
}

// startNoted starts a sandbox and says what should be known.
func startNoted(ctx context.Context, g *globals, s *sandbox.Sandbox) error {
	if err := s.Start(ctx); err != nil {
		return err
	}
	printNotes(g, s)
	return nil
}

func printNotes(g *globals, s *sandbox.Sandbox) {
	for _, n := range s.Notes() {
		say(g.term, "sbx: note: %s", n)
	}
}

func startCommand(g *globals) *command {
	var attach, interactive, byPolicy bool
	var keys string
	c := &command{
		Use: "start [OPTIONS] SANDBOX [SANDBOX...]", Short: "Start sandboxes that do not run",
		Long: `With -a or -i one sandbox, and the exit code is its command's.

Nothing of sbx runs when no sandbox does: after a restart of the machine, or
the end of a session, sbx start --by-policy starts those that want it. With
--restart always that is each that has ever run; with unless-stopped, and with
on-failure after a failure, each that nobody has stopped. "sbx system autostart"
has systemd do it.`,
		Complete: completeBoxes(-1, stoppedBox),
	}
	fs := c.Flags()
	refuse(fs, "checkpoints need root", "", "checkpoint", "checkpoint-dir")
	fs.BoolVarP(&attach, "attach", "a", false, "connect its output, and forward signals")
	fs.BoolVarP(&interactive, "interactive", "i", false, "connect its input")
	fs.StringVar(&keys, "detach-keys", defaultDetachKeys, "`KEYS` that leave a terminal, e.g. ctrl-x,x")
	fs.BoolVar(&byPolicy, "by-policy", false, "those that do not run although their restart policy wants it")
	c.Args = func(c *command, args []string) error {
		if byPolicy {
			return wantArgs(0, 0)(c, args)
		}
		return wantArgs(1, -1)(c, args)
	}
	c.RunE = func(c *command, args []string) error {
		switch {
		case byPolicy && (attach || interactive):
			return usagef("sbx start -a and -i are for one sandbox, and --by-policy is not")
		case byPolicy:
			return withEngine(g, startByPolicy(g))(c, args)
		case !attach && !interactive:
			return eachBox(g, func(ctx context.Context, c *command, s *sandbox.Sandbox) error {
				err := startNoted(ctx, g, s)
				if errors.Is(err, sandbox.ErrRunning) {
					return nil // as with Docker
				}
				return err
			})(c, args)
		}
		if len(args) > 1 {
			return usagef("sbx start -a and -i are for one sandbox")
		}
		seq, err := parseDetachKeys(keys)
		if err != nil {
			return err
		}
		e, err := newEngine(g)
		if err != nil {
			return failed(err)
		}
		return startAttached(c.Context(), g, e, args[0], interactive, seq)
	}
	return c
}

// startByPolicy starts what its restart policy wants started, and prints its names.
// What fails does not keep the others.
func startByPolicy(g *globals) engineAction {
	return func(ctx context.Context, c *command, e *sandbox.Engine, _ []string) error {
		due, err := e.DueByPolicy(ctx)
		bad := err != nil
		if bad {
			printError(c.Err(), err)
		}
		for _, s := range due {
			err := startNoted(ctx, g, s)
			switch {
			case ctx.Err() != nil:
				return err
			case errors.Is(err, sandbox.ErrRunning), errors.Is(err, sandbox.ErrNoSandbox): // somebody was faster
			case err != nil:
				printError(c.Err(), fmt.Errorf("%s: %w", s.Name(), err))
				bad = true
			default:
				if err := printLines(c.Out(), s.Name()); err != nil {
					return err
				}
			}
		}
		if bad {
			return exitStatus(1)
		}
		return nil
	}
}

func startAttached(ctx context.Context, g *globals, e *sandbox.Engine, ref string, interactive bool, keys []byte) error {
	ctx, signals := catchSignals(ctx, g.term)
	defer signals.stop()
	s, err := e.Open(ctx, ref)
	if err != nil {
		return failed(err)
	}
	in, detached := newDetachReader(os.Stdin, keys)
	streams := sandbox.Streams{Stdout: os.Stdout, Stderr: os.Stderr}
	if interactive && s.OpenStdin() {
		streams.Stdin = in
	}
	rows, cols, _ := windowSize()
	s.Connect(streams, rows, cols)
	tty, err := rawTerminal(s.TTY(), streams.Stdin != nil, g.term)
	if err != nil {
		return failed(err)
	}
	defer tty.restore()
	signals.catchAll()
	if err := startNoted(ctx, g, s); err != nil {
		return workloadFailed(err)
	}
	signals.forward(attachedTo{s, s.Resize, detached}, tty, true)
	return waitAttached(g, s.Wait, detached)
}

// waitAttached waits for the end of a session, or for the keys that leave it.
func waitAttached(g *globals, wait func(context.Context) (sandbox.ExitStatus, error), detached *detachment) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-detached.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	status, err := wait(ctx)
	err = exitOf(g, status, err)
	if detached.is() {
		return nil
	}
	return failed(err)
}

// workloadFailed keeps the exit code of a command that could not be started.
func workloadFailed(err error) error {
	if errors.Is(err, sandbox.ErrCommandNotFound) || errors.Is(err, sandbox.ErrCommandNotExecutable) {
		return err
	}
	return failed(err)
}

func attachCommand(g *globals) *command {
	var noStdin bool
	var keys string
	sigProxy := true
	c := &command{
		Use: "attach [OPTIONS] SANDBOX", Short: "Connect to the streams of a sandbox that runs", Args: wantArgs(1, 1),
		Long:     "The exit code is its command's. What was written before is in sbx logs.",
		Complete: completeBoxes(1, runningBox),
	}
	fs := c.Flags()
	fs.BoolVar(&noStdin, "no-stdin", false, "leave its input alone")
	fs.BoolVar(&sigProxy, "sig-proxy", true, "forward signals to the command")
	fs.StringVar(&keys, "detach-keys", defaultDetachKeys, "`KEYS` that leave a terminal, e.g. ctrl-x,x")
	c.RunE = func(c *command, args []string) error {
		seq, err := parseDetachKeys(keys)
		if err != nil {
			return err
		}
		e, err := newEngine(g)
		if err != nil {
			return failed(err)
		}
		ctx, signals := catchSignals(c.Context(), g.term)
		defer signals.stop()
		s, err := e.Open(ctx, args[0])
		if err != nil {
			return failed(err)
		}
		in, detached := newDetachReader(os.Stdin, seq)
		streams := sandbox.Streams{Stdout: os.Stdout, Stderr: os.Stderr}
		if !noStdin && s.OpenStdin() {
			streams.Stdin = in
		}
		if s.TTY() && streams.Stdin != nil && !term.IsTerminal(int(os.Stdin.Fd())) {
			return &usage{msg: "the sandbox has a terminal, and standard input is none", fix: "attach from a terminal, or with --no-stdin"}
		}
		x, err := s.Attach(ctx, streams)
		if err != nil {
			return failed(err)
		}
		defer x.Close()
		tty, err := rawTerminal(s.TTY(), streams.Stdin != nil, g.term)
		if err != nil {
			return failed(err)
		}
		defer tty.restore()
		signals.catchAll()
		signals.forward(attachedTo{s, x.Resize, detached}, tty, sigProxy)
		return waitAttached(g, x.Wait, detached)
	}
	return c
}

// attachedTo is what a session's signals go to: the end of the session is not that
// of the sandbox.
type attachedTo struct {
	*sandbox.Sandbox
	resize   func(rows, cols uint16) error
	detached *detachment
}

func (a attachedTo) Resize(rows, cols uint16) error { return a.resize(rows, cols) }

// Stop leaves the sandbox.
func (a attachedTo) Stop(context.Context) error {
	a.detached.leave()
	return nil
}

// Signal does not pass on the end of our terminal.
func (a attachedTo) Signal(ctx context.Context, sig syscall.Signal) error {
	err := a.Sandbox.Signal(ctx, sig)
	if errors.Is(err, sandbox.ErrNotRunning) {
		return sandbox.ErrEnded
	}
	return err
}
