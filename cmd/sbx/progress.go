package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/docker/go-units"
	"github.com/rootless-sbx/sbx/image"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress shows a pull or a load: one bar over all layers on a terminal, a line
// for each step elsewhere.
type progress struct {
	w     io.Writer
	quiet bool
	tty   bool

	mu     sync.Mutex // guards what follows
	bar    *progressbar.ProgressBar
	done   map[string]int64
	total  map[string]int64
	phases map[string]image.Phase
}

func newProgress(w io.Writer, quiet bool) *progress {
	f, ok := w.(*os.File)
	return &progress{
		w: w, quiet: quiet, tty: ok && term.IsTerminal(int(f.Fd())),
		done: map[string]int64{}, total: map[string]int64{}, phases: map[string]image.Phase{},
	}
}

// event takes one step of the store's.
func (p *progress) event(e image.Event) {
	if p.quiet {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	first := p.phases[e.Layer] != e.Phase
	p.phases[e.Layer] = e.Phase
	if p.tty {
		p.draw(e)
		return
	}
	if first {
		p.line(e)
	}
}

func (p *progress) line(e image.Event) {
	short := strings.TrimPrefix(e.Layer, "sha256:")
	if len(short) > 12 && !strings.Contains(short, "/") {
		short = short[:12]
	}
	switch e.Phase {
	case image.PhaseResolve:
		fmt.Fprintf(p.w, "Pulling %s\n", e.Layer)
	case image.PhaseDownload, image.PhaseLoad:
		verb := map[image.Phase]string{image.PhaseDownload: "Downloading", image.PhaseLoad: "Loading"}[e.Phase]
		fmt.Fprintf(p.w, "%s: %s %s\n", short, verb, units.HumanSize(float64(e.Total)))
	case image.PhaseRetry:
		fmt.Fprintf(p.w, "%s: trying again: %v\n", short, e.Err)
	case image.PhaseExists:
		fmt.Fprintf(p.w, "%s: Already exists\n", short)
	case image.PhaseDone:
		fmt.Fprintf(p.w, "%s: Complete\n", short)
	}
}

func (p *progress) draw(e image.Event) {
	if e.Phase == image.PhaseResolve {
		return
	}
	if e.Total > 0 {
		p.total[e.Layer] = e.Total
	}
	switch e.Phase {
	case image.PhaseDownload, image.PhaseLoad:
		p.done[e.Layer] = e.Done
	case image.PhaseDone, image.PhaseExists:
		p.done[e.Layer] = p.total[e.Layer]
	}
	var done, total int64
	for l, t := range p.total {
		total += t
		done += min(p.done[l], t)
	}
	if total == 0 {
		return
	}
	if p.bar == nil {
		p.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(p.w),
			progressbar.OptionShowBytes(true),
			progressbar.OptionSetWidth(30),
			progressbar.OptionClearOnFinish(),
			progressbar.OptionSetDescription("image"),
		)
	}
	p.bar.ChangeMax64(total)
	p.bar.Set64(done)
}

// close removes the bar.
func (p *progress) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		p.bar.Clear()
		p.bar = nil
	}
}
