package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/sandbox"
)

// volumeRow has the keys of docker volume ls --format and volume inspect.
type volumeRow struct {
	CreatedAt  string
	Driver     string
	Labels     map[string]string
	Mountpoint string
	Name       string
	Scope      string
}

func newVolumeRow(v *fsoverlay.Volume) volumeRow {
	return volumeRow{CreatedAt: v.Created.Format(time.RFC3339), Driver: "local", Labels: v.Labels, Mountpoint: v.DataDir, Name: v.Name, Scope: "local"}
}

func volumeCommand(g *globals) *command {
	c := &command{Use: "volume COMMAND", Short: "Manage volumes"}
	c.add(volumeCreateCommand(g), volumeListCommand(g), volumeInspectCommand(g), volumeRemoveCommand(g), volumePruneCommand(g))
	return c
}

func volumeCreateCommand(g *globals) *command {
	var labels []string
	c := &command{Use: "create [OPTIONS] [NAME]", Short: "Make a volume", Args: wantArgs(0, 1)}
	lists(c.Flags(), &labels, "label", "", "set the label `KEY=VALUE`")
	const bind = "bind a directory that is mounted as you want it: --volume /DIR:/TARGET"
	defineRefused(c.Flags(), unsupportedFlag{name: "driver", short: "d", harmless: []string{"local"}, why: "volumes are directories below sbx's data directory", fix: bind})
	defineRefused(c.Flags(), unsupportedFlag{name: "opt", short: "o", why: "volumes are ordinary directories of yours", fix: bind})
	refuse(c.Flags(), "sbx runs on one machine", "", "availability", "group", "limit-bytes", "required-bytes", "scope", "secret", "sharing", "topology-preferred", "topology-required", "type")
	c.RunE = withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, args []string) error {
		o := runOptions{labels: labels}
		var cfg sandbox.Config
		if err := o.parseLabels(&cfg); err != nil {
			return err
		}
		v, err := e.Volumes().Create(ctx, strings.Join(args, ""), cfg.Labels)
		if errors.Is(err, fsoverlay.ErrVolumeExists) {
			err = nil // as with Docker
		}
		if err != nil {
			return err
		}
		return printLines(c.Out(), v.Name)
	})
	return c
}

func volumeListCommand(g *globals) *command {
	var quiet bool
	var format string
	var filters []string
	c := &command{Use: "ls [OPTIONS]", Short: "List volumes", Args: wantArgs(0, 0), Aliases: []string{"list"}}
	fs := c.Flags()
	fs.BoolVarP(&quiet, "quiet", "q", false, "print names only")
	fs.StringVar(&format, "format", "", "`FORMAT`: json, a Go template, or \"table TEMPLATE\"")
	lists(fs, &filters, "filter", "f", "only these; `FILTER` is name=PART, label=KEY[=VALUE], dangling=true|false or driver=local")
	defineRefused(fs, unsupportedFlag{name: "cluster", boolean: true, harmless: []string{"false"}, why: "sbx runs on one machine"})
	c.RunE = withEngine(g, func(_ context.Context, c *command, e *sandbox.Engine, _ []string) error {
		list, err := e.Volumes().List()
		if err != nil {
			return err
		}
		users, err := e.VolumeUsers()
		if err != nil {
			return err
		}
		var rows []volumeRow
		for _, v := range list {
			ok, err := volumeFits(v, users, filters)
			if err != nil {
				return err
			}
			if ok {
				rows = append(rows, newVolumeRow(v))
			}
		}
		if quiet && format == "" {
			format = "{{.Name}}"
		}
		if format == "" || format == "table" {
			format = "table {{.Driver}}\t{{.Name}}"
		}
		return printItems(c.Out(), format, map[string]string{"Driver": "DRIVER", "Name": "VOLUME NAME", "Mountpoint": "MOUNTPOINT", "Scope": "SCOPE", "CreatedAt": "CREATED AT", "Labels": "LABELS"}, rows)
	})
	return c
}

// volumeFits says whether a volume is wanted; users are the sandboxes that have volumes.
func volumeFits(v *fsoverlay.Volume, users map[string]string, filters []string) (bool, error) {
	for _, f := range filters {
		key, want, _ := strings.Cut(f, "=")
		switch key {
		case "name":
			if !strings.Contains(v.Name, want) {
				return false, nil
			}
		case "label":
			if !hasLabel(v.Labels, want) {
				return false, nil
			}
		case "dangling":
			if want != "true" && want != "false" {
				return false, usagef("--filter %q: want dangling=true or dangling=false", f)
			}
			if (users[v.Name] == "") != (want == "true") {
				return false, nil
			}
		case "driver":
			if want != "local" {
				return false, nil
			}
		default:
			return false, usagef("--filter %q: want name=PART, label=KEY[=VALUE], dangling=true|false or driver=local", f)
		}
	}
	return true, nil
}

// completeVolumes offers volumes.
func completeVolumes(c *command, in typed) (o offers) {
	e, err := sandbox.NewEngine(sandbox.Options{})
	if err != nil {
		return o
	}
	list, err := e.Volumes().List()
	if err != nil {
		return o
	}
	for _, v := range list {
		if !slices.Contains(in.args, v.Name) {
			o.words = append(o.words, v.Name)
		}
	}
	return o
}

func volumeInspectCommand(g *globals) *command {
	var format string
	c := &command{Use: "inspect [OPTIONS] VOLUME [VOLUME...]", Short: "Show everything about volumes", Args: wantArgs(1, -1), Complete: completeVolumes}
	c.Flags().StringVarP(&format, "format", "f", "", "`FORMAT` of the output: json, or a Go template")
	c.RunE = withEngine(g, func(_ context.Context, c *command, e *sandbox.Engine, args []string) error {
		list := []volumeRow{}
		var bad error
		for _, name := range args {
			v, err := e.Volumes().Get(name)
			if err != nil {
				bad = errors.Join(bad, err)
				continue
			}
			list = append(list, newVolumeRow(v))
		}
		return errors.Join(printInspection(c.Out(), format, list), bad)
	})
	return c
}

func volumeRemoveCommand(g *globals) *command {
	var force bool
	c := &command{Use: "rm [OPTIONS] VOLUME [VOLUME...]", Short: "Remove volumes that no sandbox has", Args: wantArgs(1, -1), Aliases: []string{"remove"}, Complete: completeVolumes}
	c.Flags().BoolVarP(&force, "force", "f", false, "do not mind one that is not there")
	c.RunE = withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, args []string) error {
		return eachOf(ctx, c, args, func(name string) error {
			err := e.RemoveVolume(ctx, name)
			if force && errors.Is(err, fsoverlay.ErrNoVolume) {
				return nil
			}
			return err
		})
	})
	return c
}
