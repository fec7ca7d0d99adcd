package main

import (
	"context"
	"errors"
	"math"
	"syscall"
	"time"

	"github.com/rootless-sbx/sbx/sandbox"
)

// stopFlags are those of stop and restart.
type stopFlags struct {
	signal  string
	seconds int
	c       *command
}

func (o *stopFlags) define(c *command) {
	o.c = c
	c.Flags().StringVarP(&o.signal, "signal", "s", "", "`SIGNAL` to send, instead of the sandbox's own")
	c.Flags().IntVarP(&o.seconds, "timeout", "t", 0, "`SECONDS` after which it is killed, instead of the sandbox's own; -1 is never")
	c.Flags().IntVar(&o.seconds, "time", 0, "the same as --timeout")
	c.Flags().Lookup("time").Hidden = true
}

func (o *stopFlags) options() (opts sandbox.StopOptions, err error) {
	if o.signal != "" {
		if opts.Signal, err = parseSignal(o.signal); err != nil {
			return opts, err
		}
	}
	if o.c.Flags().Changed("timeout") || o.c.Flags().Changed("time") {
		t := time.Duration(-1)
		if o.seconds >= 0 && o.seconds < math.MaxInt64/int(time.Second) {
			t = time.Duration(o.seconds) * time.Second
		}
		opts.Timeout = &t
	}
	return opts, nil
}

func parseSignal(s string) (syscall.Signal, error) {
	n, err := sandbox.ParseSignal(s)
	if err != nil {
		return 0, &usage{msg: err.Error(), fix: sandbox.FixOf(err)}
	}
	return syscall.Signal(n), nil
}

func stopCommand(g *globals) *command {
	o := &stopFlags{}
	c := &command{
		Use: "stop [OPTIONS] SANDBOX [SANDBOX...]", Short: "Stop sandboxes", Args: wantArgs(1, -1),
		Long:     "Sends the stop signal, and SIGKILL to what has not ended when the time is over.",
		Complete: completeBoxes(-1, runningBox),
	}
	o.define(c)
	c.RunE = func(c *command, args []string) error {
		opts, err := o.options()
		if err != nil {
			return err
		}
		return eachBox(g, func(ctx context.Context, _ *command, s *sandbox.Sandbox) error { return s.StopWith(ctx, opts) })(c, args)
	}
	return c
}

func restartCommand(g *globals) *command {
	o := &stopFlags{}
	c := &command{
		Use: "restart [OPTIONS] SANDBOX [SANDBOX...]", Short: "Stop sandboxes and start them again", Args: wantArgs(1, -1),
		Complete: completeBoxes(-1, nil),
	}
	o.define(c)
	c.RunE = func(c *command, args []string) error {
		opts, err := o.options()
		if err != nil {
			return err
		}
		return eachBox(g, func(ctx context.Context, c *command, s *sandbox.Sandbox) error {
			if err := s.Restart(ctx, opts); err != nil {
				return err
			}
			printNotes(g, s)
			return nil
		})(c, args)
	}
	return c
}

func killCommand(g *globals) *command {
	signal := "SIGKILL"
	c := &command{
		Use: "kill [OPTIONS] SANDBOX [SANDBOX...]", Short: "Send a signal to sandboxes, SIGKILL if nothing else is said", Args: wantArgs(1, -1),
		Complete: completeBoxes(-1, runningBox),
	}
	c.Flags().StringVarP(&signal, "signal", "s", signal, "`SIGNAL` to send")
	c.RunE = func(c *command, args []string) error {
		sig, err := parseSignal(signal)
		if err != nil {
			return err
		}
		return eachBox(g, func(ctx context.Context, _ *command, s *sandbox.Sandbox) error {
			err := s.Signal(ctx, sig)
			if err == nil && sig == syscall.SIGKILL {
				// So that what comes next finds it ended.
				if _, err = s.Wait(ctx); errors.Is(err, sandbox.ErrNoSandbox) || errors.Is(err, sandbox.ErrMonitorDied) {
					err = nil
				}
			}
			return err
		})(c, args)
	}
	return c
}
