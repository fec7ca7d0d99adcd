package main

import (
	"context"
	"strconv"
	"strings"

	"github.com/rootless-sbx/sbx/sandbox"
)

func pauseCommand(g *globals) *command {
	return &command{
		Use: "pause SANDBOX [SANDBOX...]", Short: "Stop every process of sandboxes for a while", Args: wantArgs(1, -1),
		Long:     "They keep what they have and go on after sbx unpause. It needs a cgroup: what\nwas started with -d or with limits has one, where sbx doctor finds any.",
		Complete: completeBoxes(-1, func(in *sandbox.Inspection) bool { return in.State.Running && !in.State.Paused }),
		RunE:     eachBox(g, func(ctx context.Context, _ *command, s *sandbox.Sandbox) error { return s.Pause(ctx) }),
	}
}

func unpauseCommand(g *globals) *command {
	return &command{
		Use: "unpause SANDBOX [SANDBOX...]", Short: "Let sandboxes go on that were paused", Args: wantArgs(1, -1),
		Complete: completeBoxes(-1, func(in *sandbox.Inspection) bool { return in.State.Paused }),
		RunE:     eachBox(g, func(ctx context.Context, _ *command, s *sandbox.Sandbox) error { return s.Unpause(ctx) }),
	}
}

func updateCommand(g *globals) *command {
	var (
		changes sandbox.Changes
		restart string
	)
	c := &command{
		Use: "update [OPTIONS] SANDBOX [SANDBOX...]", Short: "Change the limits of sandboxes, or their restart policy", Args: wantArgs(1, -1),
		Long:     "At once if they run, and for their next start. What is not named stays.",
		Example:  "  sbx update -m 512m --cpus 1.5 web\n  sbx update --restart on-failure:3 web db",
		Complete: completeBoxes(-1, nil),
	}
	resourceFlags(c.Flags(), &changes.Resources)
	c.Flags().StringVar(&restart, "restart", "", "start it again when it ends: `POLICY` is no, on-failure[:N], always or unless-stopped")
	for _, u := range unsupportedFlags() {
		switch u.name {
		case "cpu-rt-period", "cpu-rt-runtime", "kernel-memory":
			defineRefused(c.Flags(), u)
		}
	}
	c.RunE = func(c *command, args []string) error {
		if restart != "" {
			p, err := parseRestart(restart)
			if err != nil {
				return err
			}
			changes.Restart = &p
		}
		if changes.Restart == nil && changes.Resources.Zero() {
			return &usage{msg: "sbx update needs something to change", fix: "name a limit, as -m 512m, or --restart; see sbx update --help"}
		}
		return eachBox(g, func(ctx context.Context, _ *command, s *sandbox.Sandbox) error { return s.Update(ctx, changes) })(c, args)
	}
	return c
}

// parseRestart reads a restart policy, whose name the library checks.
func parseRestart(s string) (sandbox.RestartPolicy, error) {
	name, times, counted := strings.Cut(s, ":")
	p := sandbox.RestartPolicy{Name: name}
	if counted {
		n, err := strconv.Atoi(times)
		if err != nil || n < 0 || name != "on-failure" {
			return p, &usage{msg: "--restart " + strconv.Quote(s) + " is no policy", fix: "write it as no, on-failure, on-failure:3, always or unless-stopped"}
		}
		p.Max = n
	}
	return p, nil
}
