package main

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/rootless-sbx/sbx/internal/topology"
	"github.com/rootless-sbx/sbx/sandbox"
)

var graphFormats = []string{"text", "dot", "svg"}

func networkGraphCommand(g *globals) *command {
	var format string
	var all bool
	c := &command{
		Use: "graph [OPTIONS]", Short: "Draw who is on which network", Args: wantArgs(0, 0),
		Example: "  sbx network graph\n  sbx network graph --format svg >networks.svg\n  sbx network graph --format dot | dot -Tpng >networks.png",
	}
	one(c.Flags(), &format, "format", graphFormats[0], "`FORMAT` of the drawing: text, dot (of Graphviz) or svg", graphFormats...)
	c.Flags().BoolVarP(&all, "all", "a", false, "also sandboxes that do not run")
	c.RunE = withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, _ []string) error {
		networks, err := e.Networks(ctx)
		if err != nil {
			return err
		}
		list, err := e.List(ctx, sandbox.Filter{All: all})
		if err != nil {
			return err
		}
		graph := newGraph(networks, list)
		switch format {
		case "dot":
			return graph.Dot(c.Out())
		case "svg":
			return graph.SVG(c.Out())
		}
		return graph.Text(c.Out())
	})
	return c
}

// newGraph puts each sandbox where it is: on its networks, on none, or with the one
// whose network it shares.
func newGraph(networks []sandbox.Network, list []sandbox.Inspection) *topology.Graph {
	slices.SortFunc(list, func(a, b sandbox.Inspection) int { return cmp.Compare(a.Name, b.Name) })
	sharing := map[string][]topology.Box{} // by the id of the owner
	owners := map[string]string{}          // whose network, by id
	for i := range list {
		if id, ok := strings.CutPrefix(list[i].HostConfig.NetworkMode, sandbox.NetworkContainer); ok {
			owners[list[i].ID] = id
		}
	}
	listed := func(id string) bool {
		return slices.ContainsFunc(list, func(in sandbox.Inspection) bool { return in.ID == id })
	}
	g := &topology.Graph{}
	var alone []topology.Box // of an owner that is not there
	for i := range list {
		in := &list[i]
		owner := owners[in.ID]
		if owner == "" {
			continue
		}
		for range owners { // it may share its own in turn
			if next := owners[owner]; next != "" {
				owner = next
			}
		}
		box := topology.Box{Name: boxName(in), Notes: stateNotes(in)}
		if listed(owner) {
			sharing[owner] = append(sharing[owner], box)
		} else {
			box.Notes = append(box.Notes, "with "+sandbox.NetworkContainer+owner[:12])
			alone = append(alone, box)
		}
	}
	at := map[string][]topology.Box{}
	for i := range list {
		in := &list[i]
		if owners[in.ID] != "" {
			continue
		}
		box := topology.Box{Name: boxName(in), Notes: stateNotes(in), Sharing: sharing[in.ID]}
		switch mode := in.HostConfig.NetworkMode; {
		case mode == sandbox.NetworkHost:
			g.Host = append(g.Host, box)
			continue
		case strings.HasPrefix(mode, sandbox.NetworkPath):
			box.Notes = append(box.Notes, mode)
			g.None = append(g.None, box)
			continue
		case mode == sandbox.NetworkNone || len(in.NetworkSettings.Networks) == 0:
			g.None = append(g.None, box)
			continue
		}
		for name, end := range in.NetworkSettings.Networks {
			here := box
			here.Notes = slices.Clone(box.Notes)
			for _, a := range []string{end.IPAddress, end.GlobalIPv6Address} {
				if a != "" {
					here.Notes = append(here.Notes, a)
				}
			}
			if ports := portsText(in); ports != "" && end.IPAddress+end.GlobalIPv6Address == in.NetworkSettings.IPAddress+in.NetworkSettings.GlobalIPv6Address {
				here.Notes = append(here.Notes, ports)
			}
			at[name] = append(at[name], here)
		}
	}
	g.None = append(g.None, alone...)
	for i := range networks {
		n := &networks[i]
		name := n.PublicName()
		if name == sandbox.NetworkHost || name == sandbox.NetworkNone {
			continue
		}
		drawn := topology.Network{Name: name, Closed: n.Internal, Boxes: at[name]}
		for _, p := range []interface {
			IsValid() bool
			String() string
		}{n.Subnet4, n.Subnet6} {
			if p.IsValid() {
				drawn.Notes = append(drawn.Notes, p.String())
			}
		}
		if n.Internal {
			drawn.Notes = append(drawn.Notes, "internal")
		}
		g.Networks = append(g.Networks, drawn)
	}
	return g
}

// stateNotes says so if it does not run.
func stateNotes(in *sandbox.Inspection) []string {
	if in.State.Running {
		return nil
	}
	return []string{in.State.Status}
}
