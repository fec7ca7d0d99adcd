package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/rootless-sbx/sbx/sandbox"
	"golang.org/x/term"
)

// statsEvery is the time between two measurements, of which the load is the difference.
const statsEvery = time.Second

// statsRow has the keys of docker stats --format.
type statsRow struct {
	BlockIO, CPUPerc, Container, ID, MemPerc, MemUsage, Name, NetIO, PIDs string
}

var statsHeaders = map[string]string{
	"BlockIO": "BLOCK I/O", "CPUPerc": "CPU %", "Container": "CONTAINER", "ID": "CONTAINER ID", "MemPerc": "MEM %",
	"MemUsage": "MEM USAGE / LIMIT", "Name": "NAME", "NetIO": "NET I/O", "PIDs": "PIDS",
}

const statsTable = "table {{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}"

func statsCommand(g *globals) *command {
	w := &statsView{g: g}
	var noStream bool
	c := &command{
		Use: "stats [OPTIONS] [SANDBOX...]", Short: "Show what sandboxes use, as it changes",
		Long:     "Those that run, or those that are named. -- is what cannot be known here: a\nsandbox without a cgroup is measured by its processes.",
		Complete: completeBoxes(-1, runningBox),
	}
	fs := c.Flags()
	fs.BoolVarP(&w.all, "all", "a", false, "also those that do not run")
	fs.StringVar(&w.format, "format", "", "`FORMAT`: table, json, a Go template, or \"table TEMPLATE\"")
	fs.BoolVar(&noStream, "no-stream", false, "print one measurement and end")
	fs.BoolVar(&w.whole, "no-trunc", false, "print whole ids")
	c.RunE = withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, args []string) error {
		w.e, w.out, w.refs = e, c.Out(), args
		if w.format == "" || w.format == "table" {
			w.format = statsTable
		}
		if err := w.check(ctx); err != nil {
			return err
		}
		if noStream {
			return w.once(ctx)
		}
		err := w.stream(ctx)
		if ctx.Err() != nil {
			return nil // how it is ended
		}
		return err
	})
	return c
}

// statsView is a list of sandboxes that is measured again and again.
type statsView struct {
	g          *globals
	e          *sandbox.Engine
	out        io.Writer
	refs       []string // nil: all of them
	all, whole bool
	format     string

	before map[string]*sandbox.Stats // by id
	noted  bool
	lines  int // of the frame on the terminal
}

// check refuses what is wrong with the command line before it measures for a second.
func (w *statsView) check(ctx context.Context) error {
	for _, ref := range w.refs {
		if _, err := w.e.Open(ctx, ref); err != nil {
			return err
		}
	}
	return printItems(io.Discard, w.format, statsHeaders, []statsRow{{}})
}

func (w *statsView) once(ctx context.Context) error {
	if _, err := w.measure(ctx); err != nil {
		return err
	}
	if err := pause(ctx, statsEvery); err != nil {
		return err
	}
	rows, err := w.measure(ctx)
	if err != nil {
		return err
	}
	return printItems(w.out, w.format, statsHeaders, rows)
}

func (w *statsView) stream(ctx context.Context) error {
	f, ok := w.out.(*os.File)
	tty := ok && term.IsTerminal(int(f.Fd()))
	for {
		rows, err := w.measure(ctx)
		if err != nil {
			return err
		}
		if len(rows) == 0 && len(w.refs) > 0 {
			return nil // all have been removed
		}
		var b bytes.Buffer
		if err := printItems(&b, w.format, statsHeaders, rows); err != nil {
			return err
		}
		frame := b.Bytes()
		if tty {
			frame = w.redraw(b.String())
		}
		if _, err := w.out.Write(frame); err != nil {
			return err
		}
		if err := pause(ctx, statsEvery); err != nil {
			return err
		}
	}
}

// redraw returns what puts a frame in the place of the one before it, cut to the
// terminal's size.
func (w *statsView) redraw(text string) []byte {
	lines := strings.SplitAfter(strings.TrimSuffix(text, "\n"), "\n")
	rows, cols, ok := windowSize()
	if ok {
		lines = lines[:min(len(lines), max(int(rows)-1, 1))]
	}
	var b bytes.Buffer
	if w.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", w.lines)
	}
	for _, l := range lines {
		r := []rune(strings.TrimSuffix(l, "\n"))
		if ok && len(r) > int(cols) {
			r = r[:cols]
		}
		b.WriteString(string(r) + "\x1b[K\n")
	}
	b.WriteString("\x1b[J")
	w.lines = len(lines)
	return b.Bytes()
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// measure returns a row for each sandbox, as compared with the measurement before.
func (w *statsView) measure(ctx context.Context) ([]statsRow, error) {
	refs := w.refs
	if len(refs) == 0 {
		list, err := w.e.List(ctx, sandbox.Filter{All: w.all})
		if err != nil {
			return nil, err
		}
		for i := range list {
			refs = append(refs, list[i].ID)
		}
	}
	var boxes []*sandbox.Sandbox
	var names []string
	for _, ref := range refs {
		s, err := w.e.Open(ctx, ref)
		if errors.Is(err, sandbox.ErrNoSandbox) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		boxes, names = append(boxes, s), append(names, ref)
	}
	before := w.before
	w.before = map[string]*sandbox.Stats{}
	var rows []statsRow
	for i, m := range sandbox.Measure(ctx, boxes) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		switch {
		case errors.Is(m.Err, sandbox.ErrNoSandbox):
			continue
		case m.Err != nil && !errors.Is(m.Err, sandbox.ErrNotRunning):
			return nil, m.Err
		case m.Stats == nil && !w.all && len(w.refs) == 0:
			continue // it has ended just now
		}
		r := newStatsRow(m, before[m.Sandbox.ID()])
		if r.Container = names[i]; len(w.refs) == 0 {
			r.Container = m.Sandbox.ID()
			if !w.whole {
				r.Container = short(r.Container)
			}
		}
		if !w.whole {
			r.ID = short(r.ID)
		}
		rows = append(rows, r)
		w.before[m.Sandbox.ID()] = m.Stats
		if m.Stats != nil && m.Estimated && !w.noted {
			w.noted = true
			say(w.g.term, "sbx: note: no cgroup counts for %s: it is measured by its processes, and memory that they share counts several times", r.Name)
		}
	}
	return rows, nil
}

func short(id string) string { return id[:min(12, len(id))] }

// newStatsRow compares with the measurement before; nil is none.
func newStatsRow(m sandbox.Measurement, before *sandbox.Stats) statsRow {
	r := statsRow{ID: m.Sandbox.ID(), Name: m.Sandbox.Name(), CPUPerc: "--", MemUsage: "-- / --", MemPerc: "--", NetIO: "--", BlockIO: "--", PIDs: "--"}
	st := m.Stats
	if st == nil {
		return r
	}
	if before != nil && st.Time.After(before.Time) {
		// It may have been started again, or a process of an estimate has ended.
		used := max(0, st.CPU-before.CPU)
		r.CPUPerc = fmt.Sprintf("%.2f%%", 100*float64(used)/float64(st.Time.Sub(before.Time)))
	}
	if st.Memory > 0 {
		r.MemUsage = units.BytesSize(float64(st.Memory)) + " / " + units.BytesSize(float64(st.MemoryLimit))
	}
	if st.Memory > 0 && st.MemoryLimit > 0 {
		r.MemPerc = fmt.Sprintf("%.2f%%", 100*float64(st.Memory)/float64(st.MemoryLimit))
	}
	r.NetIO, r.BlockIO = transferText(st.Network), transferText(st.Block)
	if st.PIDs > 0 {
		r.PIDs = fmt.Sprint(st.PIDs)
	}
	return r
}

func transferText(t *sandbox.Transfer) string {
	if t == nil {
		return "--"
	}
	return units.HumanSizeWithPrecision(float64(t.In), 3) + " / " + units.HumanSizeWithPrecision(float64(t.Out), 3)
}
