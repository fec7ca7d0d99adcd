package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// What lies between these lines of the report's file is written by the bench; what
// is around them is written by hand and stays.
const (
	markBegin = "<!-- bench: begin; written by make bench -->"
	markEnd   = "<!-- bench: end -->"
)

// writeReport puts the tables into file and the plot beside it.
func writeReport(file string, r *results) error {
	plot := strings.TrimSuffix(file, filepath.Ext(file)) + ".svg"
	if err := os.WriteFile(plot, []byte(plotSVG(r)), 0o644); err != nil {
		return err
	}
	old, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		old, err = []byte("# Performance\n\n"+markBegin+"\n"+markEnd+"\n"), nil
	}
	if err != nil {
		return err
	}
	text, err := insert(string(old), markdown(r, filepath.Base(plot)))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

// insert replaces what is between the markers.
func insert(old, text string) (string, error) {
	head, rest, ok := strings.Cut(old, markBegin)
	_, tail, ok2 := strings.Cut(rest, markEnd)
	if !ok || !ok2 {
		return "", fmt.Errorf("no lines %q and %q to write between", markBegin, markEnd)
	}
	return head + markBegin + "\n" + text + "\n" + markEnd + tail, nil
}

func markdown(r *results, plot string) string {
	var b strings.Builder
	about(&b, r)
	fmt.Fprintf(&b, "![Medians and spread of each path](%s)\n\n", plot)
	targetTable(&b, r)
	b.WriteString("\n## Figures\n\n" +
		"Each cell is the median (the least - the most) of all rounds, and in *italics* the\n" +
		"figure of the table's first path of sbx divided by this one, round by round: above 1 sbx\n" +
		"has more. 1 and 4 are streams, or connections at once. CPU is that of the network process, memory its resident memory (VmRSS).\n")
	for _, t := range reportTables() {
		t.write(&b, r)
	}
	pathList(&b, r)
	return strings.TrimRight(b.String(), "\n")
}

func about(b *strings.Builder, r *results) {
	fmt.Fprintf(b, "Measured %s on Linux %s, %d CPUs (%s). %s\n", r.Date.Format("2006-01-02"), r.Kernel, r.CPUs, r.CPU, rounds(r))
	list := func(head string, m map[string]string, form string) {
		var v []string
		for _, name := range slices.Sorted(maps.Keys(m)) {
			v = append(v, fmt.Sprintf(form, strings.TrimSuffix(name, " 1"), m[name]))
		}
		if len(v) > 0 {
			fmt.Fprintf(b, "\n%s: %s.\n", head, strings.Join(v, "; "))
		}
	}
	list("Versions", r.Versions, "%s %s")
	list("The host", r.Settings, "%s %s")
	list("**Missing**", r.Missing, "%s (%s)")
	if len(r.OtherLoad) > 0 {
		fmt.Fprintf(b, "\nBefore each round the machine was busy with other work at %.0f %% (median; at most %.0f %%).\n",
			median(r.OtherLoad)*100, slices.Max(r.OtherLoad)*100)
	}
	b.WriteString("\nCommands:\n\n")
	var seen []string
	for _, c := range r.Commands {
		if !slices.Contains(seen, c) {
			seen = append(seen, c)
			fmt.Fprintf(b, "    %s\n", c)
		}
	}
	if len(r.Commands) > 1 {
		fmt.Fprintf(b, "    bench --merge of their %d results\n", len(r.Commands))
	}
	b.WriteString("\n")
}

// rounds says how many rounds there were and how long their measures.
func rounds(r *results) string {
	var n, s []float64
	for _, c := range r.Cells {
		if len(c.Values) > 0 {
			n, s = append(n, float64(len(c.Values))), append(s, c.Seconds)
		}
	}
	if len(n) == 0 {
		return ""
	}
	to := func(v []float64) string {
		lo, hi := spread(v)
		if lo == hi {
			return fmt.Sprint(lo)
		}
		return fmt.Sprintf("%v to %v", lo, hi)
	}
	return fmt.Sprintf("Rounds: %s, of %s s for each measure.", to(n), to(s))
}

func targetTable(b *strings.Builder, r *results) {
	b.WriteString("## Targets\n\n| measure | compared with | at least | aim | got | |\n|---|---|---|---|---|---|\n")
	for _, t := range targets() {
		got := t.got(r)
		least, aim := t.number(t.least), t.number(t.aim)
		if t.lower {
			least, aim = "≤ "+least, "≤ "+aim
		}
		of := t.of
		if of == "/s" || of == "MiB" {
			of = ""
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s |\n", t.what, of, strings.TrimPrefix(least, "≤ -"), strings.TrimPrefix(aim, "≤ -"), t.number(got), t.verdict(got))
	}
}

// reportTable is one table: a column for each figure, a row for each path.
type reportTable struct {
	title   string
	columns []column
}

type column struct{ head, scenario, metric string }

func reportTables() []reportTable {
	tcp := func(title, format string) reportTable {
		t := reportTable{title: title}
		for _, n := range []string{"1", "4"} {
			for _, way := range []string{"up", "down"} {
				t.columns = append(t.columns, column{way + ", " + n, fmt.Sprintf(format, way, n), "rate"})
			}
		}
		for _, way := range []string{"up", "down"} {
			t.columns = append(t.columns, column{"CPU " + way, fmt.Sprintf(format, way, "1"), "cpu/GiB"})
		}
		return t
	}
	beside := func(way string) reportTable {
		name := "beside/" + way
		return reportTable{"Beside another sandbox's TCP " + way + ", on one network", []column{
			{"p50", name + "/latency", "p50"}, {"p99", name + "/latency", "p99"}, {"of the other", name + "/latency", "other rate"},
			{"connections, 32 at once", name + "/connect", "connections"}, {"of the other", name + "/connect", "other rate"},
			{"TCP up", name + "/bulk", "rate"}, {"of the other", name + "/bulk", "other rate"}}}
	}
	return []reportTable{
		tcp("TCP, MTU 65520", "tcp/%s/%s/mtu65520/ip4"),
		tcp("TCP, MTU 1500", "tcp/%s/%s/mtu1500/ip4"),
		tcp("TCP, IPv6, MTU 65520", "tcp/%s/%s/mtu65520/ip6"),
		tcp("TCP, IPv6, MTU 1500", "tcp/%s/%s/mtu1500/ip6"),
		{"Congestion control as installed", []column{{"up, 1", "tcp-installed/up/1/mtu65520/ip4", "rate"}, {"down, 1", "tcp-installed/down/1/mtu65520/ip4", "rate"},
			{"published port in, 1", "port-installed/in/1", "rate"}, {"out, 1", "port-installed/out/1", "rate"}}},
		{"Published port", []column{{"in, 1", "port/in/1", "rate"}, {"out, 1", "port/out/1", "rate"}, {"in, 4", "port/in/4", "rate"}, {"out, 4", "port/out/4", "rate"},
			{"CPU in", "port/in/1", "cpu/GiB"}, {"CPU out", "port/out/1", "cpu/GiB"}}},
		{"Sandbox to sandbox", []column{{"1 stream", "east/1", "rate"}, {"4 streams", "east/4", "rate"}, {"CPU", "east/1", "cpu/GiB"}}},
		{"UDP, datagrams of 1,400 bytes, at most 1 % lost", []column{{"up", "udp/up", "goodput"}, {"up, packets", "udp/up", "pps"}, {"down", "udp/down", "goodput"}, {"down, packets", "udp/down", "pps"},
			{"flood up", "udp/up", "flood pps"}, {"lost", "udp/up", "flood loss"}, {"flood down", "udp/down", "flood pps"}, {"lost", "udp/down", "flood loss"}}},
		{"Latency and connections, out", []column{{"p50", "latency/tcp", "p50"}, {"p99", "latency/tcp", "p99"}, {"connections, 1 at once", "connect/out/1", "connections"}, {"32 at once", "connect/out/32", "connections"},
			{"CPU of a round trip", "latency/tcp", "cpu/each"}, {"CPU of a connection, 32 at once", "connect/out/32", "cpu/each"}}},
		{"Latency and connections, published port", []column{{"p50", "latency/port", "p50"}, {"p99", "latency/port", "p99"}, {"connections, 1 at once", "connect/port/1", "connections"}, {"32 at once", "connect/port/32", "connections"}}},
		beside("up"), beside("down"),
		{"DNS", []column{{"questions", "dns", "questions"}, {"CPU of one", "dns", "cpu/question"}}},
		{"Memory of the network process", []column{{"idle", "memory/load", "mem idle"}, {"after load", "memory/load", "mem load"},
			{"idle flow, 1,000", "memory/idle/1000", "mem flow"}, {"idle flow, 10,000", "memory/idle/10000", "mem flow"}, {"of them open", "memory/idle/10000", "flows"},
			{"busy flow, 1,000", "memory/busy/1000", "mem flow"}, {"busy flow, 10,000", "memory/busy/10000", "mem flow"}, {"of them open", "memory/busy/10000", "flows"}}},
		{"Start to exit of `true`", []column{{"time", "start", "time"}}},
	}
}

func (t reportTable) write(b *strings.Builder, r *results) {
	var columns []column
	var paths []string
	for _, c := range t.columns {
		have := r.pathsOf(c.scenario)
		if len(have) > 0 {
			columns = append(columns, c)
		}
		for _, p := range have {
			if !slices.Contains(paths, p) {
				paths = append(paths, p)
			}
		}
	}
	if len(columns) == 0 {
		return
	}
	fmt.Fprintf(b, "\n### %s\n\n| path |", t.title)
	for _, c := range columns {
		fmt.Fprintf(b, " %s |", strings.TrimSuffix(c.head+", "+unitOf(c.metric), ", "))
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(columns)) + "\n")
	ref := reference(paths)
	var notes []string
	for _, p := range paths {
		fmt.Fprintf(b, "| %s |", p)
		for _, c := range columns {
			fmt.Fprintf(b, " %s |", r.describe(c, p, ref))
			if why := r.errorOf(c.scenario, p); why != "" {
				if note := fmt.Sprintf("- %s: %s\n", p, why); !slices.Contains(notes, note) {
					notes = append(notes, note)
				}
			}
		}
		b.WriteString("\n")
	}
	if len(notes) > 0 {
		b.WriteString("\n" + strings.Join(notes, ""))
	}
}

// describe is a table's cell; errors are told below the table.
func (r *results) describe(c column, path, ref string) string {
	v := r.values(c.scenario, path, c.metric)
	if len(v) == 0 {
		if r.errorOf(c.scenario, path) != "" {
			return "none"
		}
		return ""
	}
	lo, hi := spread(v)
	s := fmt.Sprintf("%s (%s - %s)", figureOf(c.metric, median(v)), figureOf(c.metric, lo), figureOf(c.metric, hi))
	if base := r.values(c.scenario, ref, c.metric); path != ref && len(base) > 0 {
		if x := ratio(base, v); !math.IsNaN(x) && !math.IsInf(x, 0) {
			s += fmt.Sprintf(" *%.2f*", x)
		}
	}
	return s
}

// errorOf is the last error of a path in a scenario, and in how many rounds it had
// one.
func (r *results) errorOf(scenario, path string) string {
	for _, c := range r.Cells {
		if c.Scenario == scenario && c.Path == path && c.Error != "" {
			if len(c.Values) == 0 {
				return c.Error
			}
			return fmt.Sprintf("%s (%d of %d rounds)", c.Error, c.Failed, c.Failed+len(c.Values))
		}
	}
	return ""
}

func pathList(b *strings.Builder, r *results) {
	b.WriteString("\n### Paths\n\n| path | |\n|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(r.Paths)) {
		fmt.Fprintf(b, "| %s | %s |\n", name, r.Paths[name])
	}
}
