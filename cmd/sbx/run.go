package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/sandbox"
	"golang.org/x/term"
)

func runCommand(g *globals) *command {
	o := &runOptions{}
	return &command{
		Use:   "run [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Short: "Run a command in a new sandbox",
		Long: `Runs IMAGE in the foreground and exits as its command does: 125 if sbx failed,
126 if the command cannot be invoked, 127 if it was not found, 128+N after
signal N. With -d it prints the sandbox's id and leaves it to itself. Without
--rm what is left of it stays until sbx rm. Options end at IMAGE. The image
"demo" is built in.`,
		Example: `  sbx run --rm -p 8080:80 demo
  sbx run --rm -it -v "$PWD:/work" -w /work debian:12 bash
  sbx run -d --name web -p 8080:80 demo
  sbx run --rm --network none --read-only --tmpfs /tmp debian:12 id`,
		Complete: completeRunArgs,
		RunE: func(c *command, args []string) error {
			if o.detach {
				return runDetached(c.Context(), g, c.Out(), o, args)
			}
			return runAction(c.Context(), g, o, args)
		},
		Define: o.define, OptionsFirst: true, // what follows IMAGE belongs to the command
	}
}

// runAction checks everything that needs no image first: a mistake shows before
// a long pull.
func runAction(ctx context.Context, g *globals, o *runOptions, args []string) error {
	watch := newStopwatch()
	cfg, err := o.config(args)
	if err != nil {
		return err
	}
	if err := o.connect(&cfg); err != nil {
		return err
	}
	detached, err := o.detachable(&cfg)
	if err != nil {
		return err
	}
	ctx, signals := catchSignals(ctx, g.term)
	defer signals.stop()
	_, s, err := o.create(ctx, g, cfg)
	if err != nil {
		return err
	}
	tty, err := rawTerminal(cfg.TTY, cfg.Stdin != nil, g.term)
	if err != nil {
		return errors.Join(err, s.Remove(ctx))
	}
	defer tty.restore()
	if o.timings {
		defer watch.print(g.term, s)
	}
	signals.catchAll()
	if err := s.Start(ctx); err != nil {
		return err
	}
	printNotes(g, s)
	announcePorts(g.term, cfg, s.Ports())
	signals.forward(s, tty, o.sigProxy)
	if detached == nil {
		return ended(g, s.Wait)
	}
	end := make(chan error, 1)
	go func() { end <- ended(g, s.Wait) }()
	select {
	case err := <-end:
		return err
	case <-detached.done:
		return s.Detach(context.WithoutCancel(ctx))
	}
}

// ended waits for a workload, whose end is that of this command.
func ended(g *globals, wait func(context.Context) (sandbox.ExitStatus, error)) error {
	status, err := wait(context.Background())
	return exitOf(g, status, err)
}

func exitOf(g *globals, status sandbox.ExitStatus, err error) error {
	if err == nil && status.OOMKilled {
		say(g.term, "sbx: note: the kernel killed a process of the sandbox: its memory was used up (--memory)")
	}
	if err == nil && status.Code != 0 {
		return exitStatus(status.Code)
	}
	return err
}

// detachable looks for the keys that leave the sandbox, if it has our terminal and
// stays without us.
func (o *runOptions) detachable(cfg *sandbox.Config) (*detachment, error) {
	keys, err := parseDetachKeys(o.detachKeys)
	if err != nil || !cfg.TTY || cfg.Stdin == nil || !cfg.Keep || len(keys) == 0 {
		return nil, err
	}
	in, d := newDetachReader(cfg.Stdin, keys)
	cfg.Stdin = in
	return d, nil
}

// runDetached starts a sandbox that goes on without us.
func runDetached(ctx context.Context, g *globals, out io.Writer, o *runOptions, args []string) error {
	if len(o.attach) > 0 {
		return usagef("-d and -a contradict each other")
	}
	watch := newStopwatch()
	cfg, err := o.config(args)
	if err != nil {
		return err
	}
	cfg.Detach, cfg.OpenStdin = true, o.interactive
	ctx, stop := withInterrupt(ctx)
	defer stop()
	e, s, err := o.create(ctx, g, cfg)
	if err != nil {
		return endedBy(ctx, err)
	}
	if o.timings {
		defer watch.print(g.term, s)
	}
	if err := startNoted(ctx, g, s); err != nil {
		return endedBy(ctx, err)
	}
	announcePorts(g.term, cfg, s.Ports())
	if note := e.LogoutNote(); note != "" {
		say(g.term, "sbx: note: %s", note)
	}
	return printLines(out, s.ID())
}

// create makes the sandbox, with what is to be seen of it meanwhile and the file that
// tells its id.
func (o *runOptions) create(ctx context.Context, g *globals, cfg sandbox.Config) (_ *sandbox.Engine, s *sandbox.Sandbox, err error) {
	e, err := newEngine(g)
	if err != nil {
		return nil, nil, err
	}
	cid, err := newCIDFile(o.cidFile)
	if err != nil {
		return nil, nil, err
	}
	bars := newProgress(g.term.f, o.quiet)
	cfg.Progress = bars.event
	s, err = e.Create(ctx, cfg)
	bars.close()
	if err != nil {
		return nil, nil, errors.Join(err, cid.close())
	}
	if err := errors.Join(cid.write(s.ID()), cid.close()); err != nil {
		return nil, nil, errors.Join(err, s.Remove(context.WithoutCancel(ctx)))
	}
	return e, s, nil
}

// connect chooses the standard streams, as docker run does: all outputs, and the
// input with -i; with -a only those.
func (o *runOptions) connect(cfg *sandbox.Config) error {
	want := func(stream string) bool { return len(o.attach) == 0 || slices.Contains(o.attach, stream) }
	if want("stdout") {
		cfg.Stdout = os.Stdout
	}
	if want("stderr") {
		cfg.Stderr = os.Stderr
	}
	if o.interactive || slices.Contains(o.attach, "stdin") {
		cfg.Stdin = os.Stdin
	}
	if !cfg.TTY {
		return nil
	}
	if cfg.Stdin != nil && !term.IsTerminal(int(os.Stdin.Fd())) {
		return &usage{msg: "-t needs a terminal, and standard input is none", fix: "leave out -t, as in a script or a CI job; -i alone connects the input"}
	}
	if rows, cols, ok := windowSize(); ok {
		cfg.Rows, cfg.Cols = rows, cols
	}
	return nil
}

// cidFile is made before the sandbox and stays after it, as docker's; it goes
// again if no sandbox could be made.
type cidFile struct {
	f       *os.File
	written bool
}

func newCIDFile(path string) (*cidFile, error) {
	if path == "" {
		return &cidFile{}, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return nil, &usage{msg: fmt.Sprintf("--cidfile: %s exists already", path), fix: "make sure that no other sandbox uses it, and remove it: rm " + path}
	}
	if err != nil {
		return nil, fmt.Errorf("--cidfile: %w", err)
	}
	return &cidFile{f: f}, nil
}

func (c *cidFile) write(id string) error {
	if c.f == nil {
		return nil
	}
	if _, err := c.f.WriteString(id); err != nil {
		return fmt.Errorf("--cidfile: %w", err)
	}
	c.written = true
	return nil
}

func (c *cidFile) close() error {
	if c.f == nil {
		return nil
	}
	err := c.f.Close()
	if !c.written {
		err = errors.Join(err, os.Remove(c.f.Name()))
	}
	return err
}

// announcePorts says which host ports were chosen where the user left it open.
func announcePorts(w io.Writer, cfg sandbox.Config, ports []port.Status) {
	asked := map[int]bool{}
	for _, p := range cfg.Publish {
		asked[p.ParentPort] = p.ParentEnd == 0
	}
	for _, p := range ports {
		if asked[p.Spec.ParentPort] {
			continue
		}
		host := p.Spec.ParentIP
		if host == "" {
			host = "0.0.0.0"
		}
		say(w, "sbx: published %d/%s -> %s", p.Spec.ChildPort, p.Spec.Proto, net.JoinHostPort(host, strconv.Itoa(p.Spec.ParentPort)))
	}
}
