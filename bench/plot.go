package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// A panel of the plot: the medians of one figure as bars, with their spread.
type panel struct {
	title, scenario, metric string
	unit                    float64 // what one of the unit is
	label                   string
}

func panels() []panel {
	return []panel{
		{"TCP up, 1 stream", "tcp/up/1/mtu65520/ip4", "rate", 1e9, "Gbit/s"},
		{"TCP down, 1 stream", "tcp/down/1/mtu65520/ip4", "rate", 1e9, "Gbit/s"},
		{"Published port, in, 1 stream", "port/in/1", "rate", 1e9, "Gbit/s"},
		{"Published port, out, 1 stream", "port/out/1", "rate", 1e9, "Gbit/s"},
		{"UDP up, at most 1 % lost", "udp/up", "goodput", 1e9, "Gbit/s"},
		{"UDP down, at most 1 % lost", "udp/down", "goodput", 1e9, "Gbit/s"},
		{"TCP ping-pong, p50 (less is better)", "latency/tcp", "p50", 1e-6, "us"},
		{"Connections, 32 at once", "connect/out/32", "connections", 1e3, "thousand/s"},
		{"DNS questions", "dns", "questions", 1e3, "thousand/s"},
		{"Start to exit of true (less is better)", "start", "time", 1e-3, "ms"},
	}
}

const (
	panelWidth = 440
	barHeight  = 15
	barStep    = 21
	nameWidth  = 135
	valueWidth = 62
)

// plotSVG draws two panels beside each other, as many rows as needed. Colours follow
// the reader's light or dark scheme.
func plotSVG(r *results) string {
	var body strings.Builder
	x, y, rowHeight := 0, 0, 0
	for _, p := range panels() {
		bars := barsOf(r, p)
		if len(bars) == 0 {
			continue
		}
		height := 44 + barStep*len(bars)
		drawPanel(&body, p, bars, x, y)
		rowHeight = max(rowHeight, height)
		if x == 0 {
			x = panelWidth
		} else {
			x, y, rowHeight = 0, y+rowHeight, 0
		}
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">
<style>
text { fill: #1f2328 } .sbx { fill: #1f6feb } .peer { fill: #8c959f } .limit { fill: #c4cad1 } .spread { stroke: #1f2328 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .sbx { fill: #58a6ff } .peer { fill: #7d8590 } .limit { fill: #484f58 } .spread { stroke: #e6edf3 }
}
</style>
%s</svg>
`, 2*panelWidth, y+rowHeight+4, body.String())
}

type bar struct {
	path         string
	mid, lo, hi  float64
	class, value string
}

func barsOf(r *results, p panel) []bar {
	var bars []bar
	for _, path := range r.pathsOf(p.scenario) {
		v := r.values(p.scenario, path, p.metric)
		b := bar{path: path, class: "peer"}
		switch {
		case strings.HasPrefix(path, "sbx-"):
			b.class = "sbx"
		case path == "veth" || path == "loopback":
			b.class = "limit"
		}
		if len(v) == 0 {
			b.value = "failed"
			if c := r.cell(p.scenario, path, p.metric); c == nil || c.Error == "" {
				continue
			}
		} else {
			lo, hi := spread(v)
			b.mid, b.lo, b.hi = median(v)/p.unit, lo/p.unit, hi/p.unit
			b.value = short(b.mid)
		}
		bars = append(bars, b)
	}
	return bars
}

func short(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.1f", v)
}

func drawPanel(b *strings.Builder, p panel, bars []bar, x, y int) {
	top := 0.0
	for _, v := range bars {
		top = math.Max(top, v.hi)
	}
	fmt.Fprintf(b, "<g transform=\"translate(%d %d)\">\n<text x=\"8\" y=\"22\" font-weight=\"bold\">%s, %s</text>\n", x, y, html.EscapeString(p.title), p.label)
	room := float64(panelWidth - nameWidth - valueWidth)
	at := func(v float64) float64 {
		if top == 0 {
			return nameWidth
		}
		return nameWidth + v/top*room
	}
	for i, v := range bars {
		yy := 34 + i*barStep
		fmt.Fprintf(b, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", nameWidth-6, yy+12, html.EscapeString(v.path))
		fmt.Fprintf(b, "<rect class=%q x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\"/>\n", v.class, nameWidth, yy, at(v.mid)-nameWidth, barHeight)
		fmt.Fprintf(b, "<path class=\"spread\" d=\"M%.1f %dH%.1f\"/>\n", at(v.lo), yy+barHeight/2, at(v.hi))
		fmt.Fprintf(b, "<text x=\"%.1f\" y=\"%d\">%s</text>\n", at(v.hi)+6, yy+12, v.value)
	}
	b.WriteString("</g>\n")
}
