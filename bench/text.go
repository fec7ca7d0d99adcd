package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// format gives a figure with the unit of its metric.
func format(metric string, v float64) string {
	switch {
	case math.IsNaN(v):
		return "-"
	case metric == "rate", metric == "goodput", metric == "other rate":
		return fmt.Sprintf("%.2f Gbit/s", v/1e9)
	case metric == "cpu/GiB", metric == "machine/GiB":
		return fmt.Sprintf("%.2f s/GiB", v)
	case metric == "p50", metric == "p99":
		return fmt.Sprintf("%.0f us", v*1e6)
	case metric == "time":
		return fmt.Sprintf("%.1f ms", v*1e3)
	case metric == "cpu/question", metric == "cpu/each":
		return fmt.Sprintf("%.1f us", v*1e6)
	case metric == "mem flow":
		return fmt.Sprintf("%.1f KiB", v/(1<<10))
	case strings.HasPrefix(metric, "mem"):
		return fmt.Sprintf("%.1f MiB", v/(1<<20))
	case metric == "flood loss":
		return fmt.Sprintf("%.1f %%", v*100)
	case metric == "flows", metric == "failed":
		return fmt.Sprintf("%.0f", v)
	default:
		return fmt.Sprintf("%.0f /s", v)
	}
}

// figureOf and unitOf are the two halves of format.
func figureOf(metric string, v float64) string {
	number, _, _ := strings.Cut(format(metric, v), " ")
	return number
}

func unitOf(metric string) string {
	_, unit, _ := strings.Cut(format(metric, 0), " ")
	return unit
}

// printResults prints a table for each scenario; ratios are to the first path of sbx.
func printResults(out io.Writer, r *results) error {
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, s := range r.scenarios() {
		paths := r.pathsOf(s.name)
		ref := reference(paths)
		fmt.Fprintf(t, "\n%s\t(%s)\n", s.title, s.name)
		fmt.Fprintf(t, "path\tmedian\tmin - max\t/ %s\tothers\n", ref)
		for _, p := range paths {
			c := r.cell(s.name, p, s.metric)
			if c == nil || len(c.Values) == 0 {
				why := "no figure"
				if c != nil {
					why = c.Error
				}
				fmt.Fprintf(t, "%s\t%s\n", p, why)
				continue
			}
			lo, hi := spread(c.Values)
			var others []string
			for _, o := range r.Cells {
				if o.Scenario == s.name && o.Path == p && o.Metric != s.metric {
					others = append(others, o.Metric+" "+format(o.Metric, median(o.Values)))
				}
			}
			if c.Error != "" {
				others = append(others, fmt.Sprintf("%d of %d rounds failed: %s", c.Failed, c.Failed+len(c.Values), c.Error))
			}
			fmt.Fprintf(t, "%s\t%s\t%s - %s\t%.2f\t%s\n", p, format(s.metric, median(c.Values)), format(s.metric, lo), format(s.metric, hi),
				ratio(c.Values, r.values(s.name, ref, s.metric)), strings.Join(others, ", "))
		}
	}
	if load := slices.Max(append([]float64{0}, r.OtherLoad...)); load > 0.1 {
		fmt.Fprintf(t, "\nOthers kept up to %.0f %% of the machine busy: these figures are not to be trusted.\n", load*100)
	}
	return t.Flush()
}

func reference(paths []string) string {
	for _, p := range paths {
		if strings.HasPrefix(p, "sbx-") {
			return p
		}
	}
	if len(paths) > 0 {
		return paths[0]
	}
	return ""
}
