package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/sandbox"
)

// pruneFilter says what may go: what was made before a time, has all of some labels
// and none of others.
type pruneFilter struct {
	until         time.Time
	with, without []string
}

// parsePruneFilter reads the filters of docker prune, of which keys are possible here.
func parsePruneFilter(list []string, keys ...string) (f pruneFilter, err error) {
	for _, s := range list {
		key, v, ok := strings.Cut(s, "=")
		if key, not := strings.CutSuffix(key, "!"); not && key == "label" && ok && v != "" {
			f.without = append(f.without, v)
			continue
		}
		if !ok || v == "" || !slices.Contains(keys, key) {
			return f, usagef("--filter %q: want %s=VALUE", s, strings.Join(keys, "=VALUE or "))
		}
		switch key {
		case "until":
			if f.until, err = parseTime("--filter until", v, time.Now()); err != nil {
				return f, err
			}
		case "label":
			f.with = append(f.with, v)
		}
	}
	return f, nil
}

func (f pruneFilter) match(made time.Time, labels map[string]string) bool {
	has := func(l string) bool { return hasLabel(labels, l) }
	return (f.until.IsZero() || made.Before(f.until)) &&
		!slices.ContainsFunc(f.with, func(l string) bool { return !has(l) }) && !slices.ContainsFunc(f.without, has)
}

// hasLabel says whether labels fit KEY or KEY=VALUE.
func hasLabel(labels map[string]string, want string) bool {
	key, value, valued := strings.Cut(want, "=")
	have, ok := labels[key]
	return ok && (!valued || have == value)
}

// pruneFlags are those of all prune commands.
type pruneFlags struct {
	all, force bool
	filters    []string
	keys       []string
}

func (o *pruneFlags) define(c *command, all string, keys ...string) {
	fs := c.Flags()
	if o.keys = keys; all != "" {
		fs.BoolVarP(&o.all, "all", "a", false, all)
	}
	lists(fs, &o.filters, "filter", "", "only these; `FILTER` is "+strings.NewReplacer("until", "until=TIME", "label", "label=KEY[=VALUE] or label!=KEY[=VALUE]").Replace(strings.Join(keys, ", ")))
	fs.BoolVarP(&o.force, "force", "f", false, "do not ask")
}

// run asks, prunes with the filter, and says what has come back.
func (o *pruneFlags) run(g *globals, what func() string, prune func(ctx context.Context, c *command, e *sandbox.Engine, f pruneFilter) error) func(*command, []string) error {
	return withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, _ []string) error {
		f, err := parsePruneFilter(o.filters, o.keys...)
		if err != nil {
			return err
		}
		if !o.force {
			if err := confirm(c, "This removes "+what()+"."); err != nil {
				return err
			}
		}
		u, err := e.DiskUsage(ctx)
		if err != nil {
			return err
		}
		if err := prune(ctx, c, e, f); err != nil {
			return err
		}
		return printLines(c.Out(), "Total reclaimed space: "+size(u.Reclaimed()))
	})
}

func systemPruneCommand(g *globals) *command {
	var o pruneFlags
	var volumes bool
	c := &command{
		Use: "prune [OPTIONS]", Short: "Remove stopped sandboxes, unused networks, images without a name", Args: wantArgs(0, 0),
	}
	o.define(c, "also every image that no sandbox uses", "until", "label")
	c.Flags().BoolVar(&volumes, "volumes", false, "also anonymous volumes that no sandbox has")
	what := func() string {
		text := "all sandboxes that do not run, all networks that no other sandbox is on, and all images without a name"
		if o.all {
			text = "all sandboxes that do not run, all networks that no other sandbox is on, and all images that no other sandbox uses"
		}
		if volumes {
			text += ", and all anonymous volumes that no other sandbox has"
		}
		return text
	}
	c.RunE = o.run(g, what, func(ctx context.Context, c *command, e *sandbox.Engine, f pruneFilter) error {
		if volumes && !f.until.IsZero() {
			return usagef("--filter until= is not for --volumes: a volume has no time of its last use")
		}
		if err := pruneBoxes(ctx, c, e, f); err != nil {
			return err
		}
		gone, err := e.PruneNetworks(ctx, func(n *sandbox.Network) bool { return f.match(n.Created, n.Labels) })
		if err := errors.Join(section(c, "Deleted Networks:", gone), err); err != nil {
			return err
		}
		if volumes {
			if err := pruneVolumes(ctx, c, e, f, false); err != nil {
				return err
			}
		}
		return pruneImages(ctx, c, e, f, o.all)
	})
	return c
}

func boxPruneCommand(g *globals) *command {
	var o pruneFlags
	c := &command{Use: "prune [OPTIONS]", Short: "Remove sandboxes that do not run", Args: wantArgs(0, 0)}
	o.define(c, "", "until", "label")
	c.RunE = o.run(g, func() string { return "all sandboxes that do not run" }, pruneBoxes)
	return c
}

func imagePruneCommand(g *globals) *command {
	var o pruneFlags
	c := &command{Use: "prune [OPTIONS]", Short: "Remove images that have no name", Args: wantArgs(0, 0)}
	o.define(c, "remove every image that no sandbox uses", "until", "label")
	what := func() string {
		if o.all {
			return "all images that no sandbox uses"
		}
		return "all images without a name"
	}
	c.RunE = o.run(g, what, func(ctx context.Context, c *command, e *sandbox.Engine, f pruneFilter) error {
		return pruneImages(ctx, c, e, f, o.all)
	})
	return c
}

func volumePruneCommand(g *globals) *command {
	var o pruneFlags
	c := &command{Use: "prune [OPTIONS]", Short: "Remove anonymous volumes that no sandbox has", Args: wantArgs(0, 0)}
	o.define(c, "named ones too", "label")
	what := func() string {
		if o.all {
			return "all volumes that no sandbox has"
		}
		return "all anonymous volumes that no sandbox has"
	}
	c.RunE = o.run(g, what, func(ctx context.Context, c *command, e *sandbox.Engine, f pruneFilter) error {
		return pruneVolumes(ctx, c, e, f, o.all)
	})
	return c
}

func pruneImages(ctx context.Context, c *command, e *sandbox.Engine, f pruneFilter, all bool) error {
	store, err := e.Images()
	if err != nil {
		return err
	}
	gone, err := store.Prune(ctx, func(img *image.Image) bool {
		return (all || len(img.Names) == 0) && f.match(img.Created(), img.Config.Config.Labels)
	})
	return errors.Join(section(c, "Deleted Images:", gone), err)
}

func pruneVolumes(ctx context.Context, c *command, e *sandbox.Engine, f pruneFilter, all bool) error {
	gone, err := e.PruneVolumes(ctx, func(v *fsoverlay.Volume) bool {
		return (all || v.Anonymous) && f.match(v.Created, v.Labels)
	})
	return errors.Join(section(c, "Deleted Volumes:", gone), err)
}

// pruneBoxes removes the sandboxes that do not run. One that is started meanwhile
// stays.
func pruneBoxes(ctx context.Context, c *command, e *sandbox.Engine, f pruneFilter) error {
	list, err := e.List(ctx, sandbox.Filter{All: true, Match: func(in *sandbox.Inspection) bool {
		return stoppedBox(in) && f.match(in.Created, in.Config.Labels)
	}})
	var gone []string
	for _, in := range list {
		s, oerr := e.Open(ctx, in.ID)
		if oerr == nil {
			oerr = s.RemoveWith(ctx, sandbox.RemoveOptions{})
		}
		if oerr == nil {
			gone = append(gone, in.ID)
		} else if !errors.Is(oerr, sandbox.ErrNoSandbox) && !errors.Is(oerr, sandbox.ErrRunning) {
			err = oerr
			break
		}
	}
	return errors.Join(section(c, "Deleted Containers:", gone), err)
}

// section prints a list under its title, if there is anything in it.
func section(c *command, title string, lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	return printLines(c.Out(), append(append([]string{title}, lines...), "")...)
}
