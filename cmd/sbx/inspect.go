package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/sandbox"
)

func inspectAnyCommand(g *globals) *command {
	var format, kind string
	var sizes bool
	c := &command{
		Use: "inspect [OPTIONS] NAME [NAME...]", Short: "Show everything about sandboxes, images, networks or volumes", Args: wantArgs(1, -1),
		Complete: func(c *command, in typed) offers {
			o := completeBoxes(-1, nil)(c, in)
			o.words = append(o.words, completeImages(-1)(c, in).words...)
			return o
		},
	}
	c.Flags().StringVarP(&format, "format", "f", "", "`FORMAT` of the output: json, or a Go template")
	c.Flags().BoolVarP(&sizes, "size", "s", false, "say what a sandbox takes on the disk")
	one(c.Flags(), &kind, "type", "", "only a thing of this `KIND`: container (or sandbox), image, network or volume", "container", "sandbox", "image", "network", "volume")
	c.RunE = withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, args []string) error {
		list := []any{}
		var bad error
		for _, ref := range args {
			in, err := inspectOne(ctx, e, kind, ref)
			if err != nil {
				bad = errors.Join(bad, err)
				continue
			}
			if box, ok := in.(*sandbox.Inspection); ok && sizes {
				u, err := e.DiskUsage(ctx)
				if err != nil {
					return err
				}
				own, all := u.Of(box)
				box.SizeRw, box.SizeRootFs = &own, &all
			}
			list = append(list, in)
		}
		return errors.Join(printInspection(c.Out(), format, list), bad)
	})
	return c
}

// inspectOne looks for a sandbox, then for an image, a network, and a volume.
func inspectOne(ctx context.Context, e *sandbox.Engine, kind, ref string) (any, error) {
	switch kind {
	case "network":
		return e.InspectNetwork(ctx, ref)
	case "volume":
		return inspectVolume(e, ref)
	}
	if kind != "image" {
		s, err := e.Open(ctx, ref)
		if err == nil {
			return s.Inspect(ctx)
		}
		if kind != "" || !errors.Is(err, sandbox.ErrNoSandbox) {
			return nil, err
		}
	}
	store, err := e.Images()
	if err != nil {
		return nil, err
	}
	in, err := store.Inspect(ctx, ref)
	if kind == "" && errors.Is(err, image.ErrNotFound) {
		n, err := e.InspectNetwork(ctx, ref)
		if !errors.Is(err, sandbox.ErrNoNetwork) {
			return n, err
		}
		if v, err := inspectVolume(e, ref); err == nil {
			return v, nil
		}
		return nil, fmt.Errorf("no such sandbox, image, network or volume: %s", ref)
	}
	return in, err
}

func inspectVolume(e *sandbox.Engine, name string) (any, error) {
	v, err := e.Volumes().Get(name)
	if err != nil {
		return nil, err
	}
	return newVolumeRow(v), nil
}
