// Package topology draws which sandbox is on which network: as a tree of text, as a
// graph for Graphviz, and as a picture.
package topology

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// Graph is everything that a user has.
type Graph struct {
	Networks []Network
	// Host are the sandboxes with the host's own network, None those without one.
	Host, None []Box
}

// Network and who is on it.
type Network struct {
	Name string
	// Notes are its subnets and what is special about it.
	Notes []string
	// Closed: nothing leads out of it.
	Closed bool
	Boxes  []Box
}

// Box is a sandbox, in one of its places. Its name is the same in all of them.
type Box struct {
	Name string
	// Notes are its addresses there, its published ports, its state.
	Notes []string
	// Sharing are the sandboxes that have the same network namespace.
	Sharing []Box
}

// Text draws a tree.
func (g *Graph) Text(w io.Writer) error {
	root := node{text: "host"}
	for _, n := range g.Networks {
		at := node{text: join(n.Name, n.Notes), below: boxes(n.Boxes)}
		if len(n.Boxes) == 0 {
			at.below = []node{{text: "(nobody)"}}
		}
		root.below = append(root.below, at)
	}
	if len(g.Host) > 0 {
		root.below = append(root.below, node{text: "(the host's own network)", below: boxes(g.Host)})
	}
	if len(g.None) > 0 {
		root.below = append(root.below, node{text: "(no network)", below: boxes(g.None)})
	}
	var b strings.Builder
	root.write(&b, "", "")
	_, err := io.WriteString(w, b.String())
	return err
}

// node is a line of the tree.
type node struct {
	text  string
	below []node
}

func boxes(list []Box) (nodes []node) {
	for _, b := range list {
		nodes = append(nodes, node{text: join(b.Name, b.Notes), below: boxes(b.Sharing)})
	}
	return nodes
}

func join(name string, notes []string) string {
	return strings.Join(append([]string{name}, notes...), "  ")
}

func (n node) write(b *strings.Builder, first, rest string) {
	b.WriteString(first + n.text + "\n")
	for i, below := range n.below {
		if i == len(n.below)-1 {
			below.write(b, rest+"└── ", rest+"    ")
		} else {
			below.write(b, rest+"├── ", rest+"│   ")
		}
	}
}

// line connects two things of a drawing.
type line struct {
	from, to string
	label    string
	dotted   bool
}

// drawing is the graph with each sandbox once.
type drawing struct {
	networks []Network
	boxes    []Box // each with the notes that it has everywhere
	lines    []line
}

const (
	hostID     = "host"
	networkKey = "network "
	boxKey     = "sandbox "
)

func (g *Graph) drawing() *drawing {
	d := &drawing{networks: g.Networks}
	for _, n := range g.Networks {
		if !n.Closed {
			d.lines = append(d.lines, line{from: hostID, to: networkKey + n.Name})
		}
		for _, b := range n.Boxes {
			d.add(b, networkKey+n.Name)
		}
	}
	for _, b := range g.Host {
		d.add(b, hostID)
	}
	for _, b := range g.None {
		d.add(b, "")
	}
	return d
}

func (d *drawing) add(b Box, at string) {
	known := slices.ContainsFunc(d.boxes, func(o Box) bool { return o.Name == b.Name })
	if !known {
		d.boxes = append(d.boxes, b)
	}
	if at != "" {
		d.lines = append(d.lines, line{from: at, to: boxKey + b.Name, label: strings.Join(b.Notes, "\n")})
	}
	if known {
		return // who shares its network has been seen
	}
	for _, s := range b.Sharing {
		d.boxes = append(d.boxes, Box{Name: s.Name})
		d.lines = append(d.lines, line{from: boxKey + b.Name, to: boxKey + s.Name, label: strings.Join(s.Notes, "\n"), dotted: true})
	}
}

// Dot writes the graph in Graphviz' language.
func (g *Graph) Dot(w io.Writer) error {
	d := g.drawing()
	var b strings.Builder
	b.WriteString("graph sbx {\n\trankdir=LR\n\tnode [fontname=\"sans-serif\" shape=box]\n\tedge [fontname=\"sans-serif\" fontsize=10]\n")
	fmt.Fprintf(&b, "\t%q [shape=house]\n", hostID)
	for _, n := range d.networks {
		fmt.Fprintf(&b, "\t%q [shape=ellipse label=%s]\n", networkKey+n.Name, dotText(append([]string{n.Name}, n.Notes...)))
	}
	for _, box := range d.boxes {
		fmt.Fprintf(&b, "\t%q [label=%s]\n", boxKey+box.Name, dotText([]string{box.Name}))
	}
	for _, l := range d.lines {
		style := ""
		if l.dotted {
			style = " style=dotted"
		}
		fmt.Fprintf(&b, "\t%q -- %q [label=%s%s]\n", l.from, l.to, dotText(strings.Split(l.label, "\n")), style)
	}
	b.WriteString("}\n")
	_, err := io.WriteString(w, b.String())
	return err
}

var dotEscape = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func dotText(lines []string) string {
	for i := range lines {
		lines[i] = dotEscape.Replace(lines[i])
	}
	return `"` + strings.Join(lines, `\n`) + `"`
}
