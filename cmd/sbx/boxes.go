package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/rootless-sbx/sbx/sandbox"
)

// failure is what went wrong while a command worked on sandboxes: as with Docker its
// exit code is 1, and 125 is for the command line.
type failure struct{ error }

func (f failure) Unwrap() error { return f.error }

func failed(err error) error {
	var (
		u      *usage
		status exitStatus
		sig    interrupted
	)
	if err == nil || errors.As(err, &u) || errors.As(err, &status) || errors.As(err, &sig) {
		return err
	}
	return failure{err}
}

type engineAction func(ctx context.Context, c *command, e *sandbox.Engine, args []string) error

// withEngine opens the user's directories for a command, which an interrupt ends.
func withEngine(g *globals, f engineAction) func(*command, []string) error {
	return func(c *command, args []string) error {
		e, err := newEngine(g)
		if err != nil {
			return failed(err)
		}
		ctx, stop := withInterrupt(c.Context())
		defer stop()
		return failed(endedBy(ctx, f(ctx, c, e, args)))
	}
}

// eachBox does the same to several sandboxes.
func eachBox(g *globals, f func(ctx context.Context, c *command, s *sandbox.Sandbox) error) func(*command, []string) error {
	return withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, args []string) error {
		return eachOf(ctx, c, args, func(ref string) error {
			s, err := e.Open(ctx, ref)
			if err != nil {
				return err
			}
			return f(ctx, c, s)
		})
	})
}

// errNothing is what eachOf's function returns of one that needs no word.
var errNothing = errors.New("nothing to do")

// eachOf does the same to several objects, one after the other, and prints what the
// user called each. What fails does not keep the others.
func eachOf(ctx context.Context, c *command, args []string, f func(ref string) error) error {
	bad := false
	for _, ref := range args {
		err := f(ref)
		switch {
		case ctx.Err() != nil:
			return err
		case err == errNothing:
		case err != nil:
			printError(c.Err(), err)
			bad = true
		default:
			if err := printLines(c.Out(), ref); err != nil {
				return err
			}
		}
	}
	if bad {
		return exitStatus(1)
	}
	return nil
}

// withBox is for a command about one sandbox, its first argument.
func withBox(g *globals, f func(ctx context.Context, c *command, s *sandbox.Sandbox, args []string) error) func(*command, []string) error {
	return withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, args []string) error {
		s, err := e.Open(ctx, args[0])
		if err != nil {
			return err
		}
		return f(ctx, c, s, args[1:])
	})
}

// completeBoxes offers the names of sandboxes, of those that run or of those that do
// not, for the first most arguments; any number if most is negative.
func completeBoxes(most int, which func(*sandbox.Inspection) bool) completion {
	return func(c *command, in typed) (o offers) {
		if most >= 0 && len(in.args) >= most {
			return o
		}
		e, err := sandbox.NewEngine(sandbox.Options{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return o
		}
		list, err := e.List(c.Context(), sandbox.Filter{All: true, Match: which})
		if err != nil {
			return o
		}
		for _, b := range list {
			name, id := boxName(&b), b.ID[:12]
			if slices.Contains(in.args, name) || slices.Contains(in.args, id) {
				continue
			}
			o.words = append(o.words, name)
			if in.current != "" { // of an id only the rest: there are too many
				o.words = append(o.words, id+"\t"+name)
			}
		}
		return o
	}
}

func runningBox(in *sandbox.Inspection) bool { return in.State.Running }
func stoppedBox(in *sandbox.Inspection) bool { return !in.State.Running }

func boxName(in *sandbox.Inspection) string { return strings.TrimPrefix(in.Name, "/") }

func renameCommand(g *globals) *command {
	return &command{
		Use: "rename SANDBOX NAME", Short: "Give a sandbox another name", Args: wantArgs(2, 2),
		Complete: completeBoxes(1, nil),
		RunE: withBox(g, func(ctx context.Context, _ *command, s *sandbox.Sandbox, args []string) error {
			return s.Rename(ctx, args[0])
		}),
	}
}

func waitCommand(g *globals) *command {
	return &command{
		Use: "wait SANDBOX [SANDBOX...]", Short: "Wait until sandboxes have ended, and print their exit codes", Args: wantArgs(1, -1),
		Complete: completeBoxes(-1, runningBox),
		RunE: withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, args []string) error {
			bad := false
			for _, ref := range args {
				s, err := e.Open(ctx, ref)
				var status sandbox.ExitStatus
				if err == nil {
					status, err = s.Wait(ctx)
				}
				if ctx.Err() != nil {
					return err
				}
				if err != nil {
					printError(c.Err(), err)
					bad = true
				} else if err := printLines(c.Out(), fmt.Sprint(status.Code)); err != nil {
					return err
				}
			}
			if bad {
				return exitStatus(1)
			}
			return nil
		}),
	}
}

func removeCommand(g *globals) *command {
	var o sandbox.RemoveOptions
	c := &command{
		Use: "rm [OPTIONS] SANDBOX [SANDBOX...]", Short: "Remove sandboxes", Args: wantArgs(1, -1), Aliases: []string{"remove"},
		Complete: completeBoxes(-1, nil),
	}
	remove := eachBox(g, func(ctx context.Context, _ *command, s *sandbox.Sandbox) error {
		err := s.RemoveWith(ctx, o)
		var se *sandbox.StateError
		if errors.As(err, &se) && errors.Is(err, sandbox.ErrRunning) {
			se.Fix = "stop it first, or remove it with -f"
		}
		return err
	})
	c.RunE = func(c *command, args []string) error {
		if !o.Force {
			return remove(c, args)
		}
		return withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, args []string) error {
			var there []string
			for _, a := range args {
				// As with Docker, -f does not mind what is not there.
				if _, err := e.Open(ctx, a); !errors.Is(err, sandbox.ErrNoSandbox) {
					there = append(there, a)
				} else {
					printError(c.Err(), err)
				}
			}
			if len(there) == 0 {
				return nil
			}
			return remove(c, there)
		})(c, args)
	}
	defineRefused(c.Flags(), unsupportedFlag{name: "link", short: "l", boolean: true, harmless: []string{"false"}, why: "there are no links between sandboxes"})
	c.Flags().BoolVarP(&o.Force, "force", "f", false, "kill what runs first, and do not mind one that is not there")
	c.Flags().BoolVarP(&o.Volumes, "volumes", "v", false, "remove their anonymous volumes too")
	return c
}
