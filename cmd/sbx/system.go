package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/rootless-sbx/sbx/sandbox"
)

func systemCommand(g *globals) *command {
	c := &command{Use: "system COMMAND", Short: "Look after what sbx keeps on the disk"}
	c.add(autostartCommand(g), systemUsageCommand(g), eventsCommand(g), infoCommand(g), systemPruneCommand(g))
	return c
}

func systemPruneCommand(g *globals) *command {
	var all, force, volumes bool
	c := &command{
		Use: "prune [OPTIONS]", Short: "Remove stopped sandboxes, unused networks, images without a name", Args: wantArgs(0, 0),
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "also every image that no sandbox uses")
	c.Flags().BoolVar(&volumes, "volumes", false, "also anonymous volumes that no sandbox has")
	c.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	c.RunE = withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, _ []string) error {
		if !force {
			what := "all sandboxes that do not run, all networks that no other sandbox is on, and all images without a name"
			if all {
				what = "all sandboxes that do not run, all networks that no other sandbox is on, and all images that no other sandbox uses"
			}
			if volumes {
				what += ", and all anonymous volumes that no other sandbox has"
			}
			if err := confirm(c, "This removes "+what+"."); err != nil {
				return err
			}
		}
		return reclaiming(ctx, c, e, func() error {
			gone, err := pruneBoxes(ctx, e)
			section(c, "Deleted Containers:", gone)
			if err != nil {
				return err
			}
			gone, err = e.PruneNetworks(ctx, nil)
			section(c, "Deleted Networks:", gone)
			if err != nil {
				return err
			}
			if volumes {
				gone, err := e.PruneVolumes(ctx, false)
				section(c, "Deleted Volumes:", gone)
				if err != nil {
					return err
				}
			}
			return pruneImages(ctx, c, e, all)
		})
	})
	return c
}

func pruneImages(ctx context.Context, c *command, e *sandbox.Engine, all bool) error {
	store, err := e.Images()
	if err != nil {
		return err
	}
	gone, err := store.Prune(ctx, all)
	section(c, "Deleted Images:", gone)
	return err
}

// pruneBoxes removes the sandboxes that do not run. One that is started meanwhile
// stays.
func pruneBoxes(ctx context.Context, e *sandbox.Engine) (gone []string, err error) {
	list, err := e.List(ctx, sandbox.Filter{All: true, Match: stoppedBox})
	if err != nil {
		return nil, err
	}
	for _, in := range list {
		s, err := e.Open(ctx, in.ID)
		if err == nil {
			err = s.RemoveWith(ctx, sandbox.RemoveOptions{})
		}
		switch {
		case err == nil:
			gone = append(gone, in.ID)
		case !errors.Is(err, sandbox.ErrNoSandbox) && !errors.Is(err, sandbox.ErrRunning):
			return gone, err
		}
	}
	return gone, nil
}

// section prints a list under its title, if there is anything in it.
func section(c *command, title string, lines []string) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintln(c.Out(), title)
	for _, l := range lines {
		fmt.Fprintln(c.Out(), l)
	}
	fmt.Fprintln(c.Out())
}
