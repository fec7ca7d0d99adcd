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
	c := &command{
		Use: "inspect [OPTIONS] NAME [NAME...]", Short: "Show everything about sandboxes, images or networks", Args: wantArgs(1, -1),
		Complete: func(c *command, in typed) offers {
			o := completeBoxes(-1, nil)(c, in)
			o.words = append(o.words, completeImages(-1)(c, in).words...)
			return o
		},
	}
	c.Flags().StringVarP(&format, "format", "f", "", "`FORMAT` of the output: json, or a Go template")
	one(c.Flags(), &kind, "type", "", "only a thing of this `KIND`: container (or sandbox), image or network", "container", "sandbox", "image", "network")
	c.RunE = withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, args []string) error {
		list := []any{}
		var bad error
		for _, ref := range args {
			in, err := inspectOne(ctx, e, kind, ref)
			if err != nil {
				bad = errors.Join(bad, err)
				continue
			}
			list = append(list, in)
		}
		return errors.Join(printInspection(c.Out(), format, list), bad)
	})
	return c
}

// inspectOne looks for a sandbox, then for an image, and then for a network.
func inspectOne(ctx context.Context, e *sandbox.Engine, kind, ref string) (any, error) {
	if kind == "network" {
		return e.InspectNetwork(ctx, ref)
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
		if errors.Is(err, sandbox.ErrNoNetwork) {
			err = fmt.Errorf("no such sandbox, image or network: %s", ref)
		}
		return n, err
	}
	return in, err
}
