package topology

import (
	"fmt"
	"html"
	"io"
	"strings"
)

// Sizes of the picture, in its units: letters of the font are about letter wide.
const (
	letter = 7
	row    = 16 // of text
	pad    = 8
	gap    = 14  // between two things in a column
	street = 150 // between two columns
)

// place is a thing in the picture.
type place struct {
	id    string
	lines []string
	round bool
	x, y  int
	w, h  int
}

// SVG draws three columns: the host, the networks, the sandboxes.
func (g *Graph) SVG(w io.Writer) error {
	d := g.drawing()
	columns := [3][]*place{{{id: hostID, lines: []string{"host"}}}}
	for _, n := range d.networks {
		columns[1] = append(columns[1], &place{id: networkKey + n.Name, lines: append([]string{n.Name}, n.Notes...), round: true})
	}
	for _, b := range d.boxes {
		lines := []string{b.Name}
		for _, l := range d.lines {
			if l.to == boxKey+b.Name && l.label != "" {
				lines = append(lines, strings.Split(l.label, "\n")...)
			}
		}
		columns[2] = append(columns[2], &place{id: boxKey + b.Name, lines: lines})
	}
	at := map[string]*place{}
	x, height := pad, 0
	for _, column := range columns {
		y, width := pad, 0
		for _, p := range column {
			p.x, p.y = x, y
			for _, l := range p.lines {
				p.w = max(p.w, len([]rune(l))*letter+2*pad)
			}
			p.h = len(p.lines)*row + pad
			y += p.h + gap
			width = max(width, p.w)
			at[p.id] = p
		}
		x, height = x+width+street, max(height, y)
	}
	for _, column := range columns { // the shorter ones in the middle
		if n := len(column); n > 0 {
			last := column[n-1]
			for _, p := range column {
				p.y += (height - last.y - last.h - pad) / 2
			}
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="monospace" font-size="12">`+"\n", x-street+pad, height)
	for _, l := range d.lines {
		from, to := at[l.from], at[l.to]
		style := ""
		if l.dotted {
			style = ` stroke-dasharray="3 3"`
		}
		x1, y1, x2, y2 := from.x+from.w, from.y+from.h/2, to.x, to.y+to.h/2
		if l.dotted { // both are in the last column
			x1, x2 = from.x, to.x
			fmt.Fprintf(&b, `<path d="M%d %d C%d %d %d %d %d %d" fill="none" stroke="#777"%s/>`+"\n", x1, y1, x1-40, y1, x2-40, y2, x2, y2, style)
			continue
		}
		fmt.Fprintf(&b, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="#777"%s/>`+"\n", x1, y1, x2, y2, style)
	}
	for _, column := range columns {
		for _, p := range column {
			radius := 2
			if p.round {
				radius = 14
			}
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%d" height="%d" rx="%d" fill="#fff" stroke="#333"/>`+"\n", p.x, p.y, p.w, p.h, radius)
			for i, l := range p.lines {
				weight := ""
				if i == 0 {
					weight = ` font-weight="bold"`
				}
				fmt.Fprintf(&b, `<text x="%d" y="%d"%s>%s</text>`+"\n", p.x+pad, p.y+(i+1)*row-2, weight, html.EscapeString(l))
			}
		}
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}
