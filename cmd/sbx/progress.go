package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/docker/go-units"
	"github.com/rootless-sbx/sbx/image"
	"golang.org/x/term"
)

const (
	redraw   = 100 * time.Millisecond // at most that often
	barCells = 30                     // at most that wide
)

// progress shows a pull or a load: one line with a bar over all blobs on a
// terminal, a line for each step elsewhere.
type progress struct {
	w     io.Writer
	quiet bool
	width func() int // of the terminal; nil if there is none
	now   func() time.Time

	mu     sync.Mutex // guards what follows
	name   string     // what is being fetched
	blobs  map[string]*blobState
	begun  time.Time // the first byte
	drawn  time.Time
	onLine bool // the bar is there
}

type blobState struct {
	phase       image.Phase
	done, total int64
	had         bool // was in the store already
}

func newProgress(f *os.File, quiet bool) *progress {
	p := &progress{w: f, quiet: quiet, now: time.Now, blobs: map[string]*blobState{}}
	if term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		p.width = func() int {
			w, _, err := term.GetSize(int(f.Fd()))
			if err != nil || w == 0 {
				return narrow
			}
			return w
		}
	}
	return p
}

// event takes one step of the store's.
func (p *progress) event(e image.Event) {
	if p.quiet {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.Phase == image.PhaseResolve {
		p.name = e.Layer
	}
	first := p.note(e)
	switch {
	case p.width == nil && first:
		p.line(e)
	case p.width == nil:
	case e.Phase == image.PhaseRetry:
		p.clear()
		p.line(e)
	default:
		p.draw()
	}
}

// note remembers the state of a blob, and says whether its phase is new.
func (p *progress) note(e image.Event) bool {
	if e.Phase == image.PhaseResolve || e.Phase == image.PhaseRetry {
		return true
	}
	b := p.blobs[e.Layer]
	if b == nil {
		b = &blobState{}
		p.blobs[e.Layer] = b
	}
	first := b.phase != e.Phase
	b.phase = e.Phase
	b.total = max(b.total, e.Total)
	switch e.Phase {
	case image.PhaseDownload, image.PhaseLoad:
		b.done = e.Done
		if p.begun.IsZero() {
			p.begun = p.now()
		}
	case image.PhaseExists:
		b.done, b.had = b.total, true
	case image.PhaseDone:
		b.done = b.total
	}
	return first
}

func (p *progress) line(e image.Event) {
	short := e.Layer
	if hex, ok := strings.CutPrefix(short, "sha256:"); ok {
		short = fmt.Sprintf("%.12s", hex)
	}
	switch e.Phase {
	case image.PhaseResolve:
		fmt.Fprintf(p.w, "Pulling %s\n", e.Layer)
	case image.PhaseDownload:
		fmt.Fprintf(p.w, "%s: Downloading %s\n", short, size(e.Total))
	case image.PhaseLoad:
		fmt.Fprintf(p.w, "%s: Loading %s\n", short, size(e.Total))
	case image.PhaseRetry:
		say(p.w, "%s: trying again: %v", short, e.Err)
	case image.PhaseExists:
		fmt.Fprintf(p.w, "%s: Already exists\n", short)
	case image.PhaseDone:
		fmt.Fprintf(p.w, "%s: Complete\n", short)
	}
}

// draw renews the bar if it is old enough.
func (p *progress) draw() {
	now := p.now()
	if now.Sub(p.drawn) < redraw {
		return
	}
	p.drawn = now
	p.onLine = true
	fmt.Fprintf(p.w, "\r%s\x1b[K", p.text(p.width()-1, now))
}

// text is the bar's line, at most width characters wide.
func (p *progress) text(width int, now time.Time) string {
	what := "Loading"
	if p.name != "" {
		what = "Pulling " + p.name
	}
	var done, total, fetched int64
	for _, b := range p.blobs {
		total += b.total
		done += min(b.done, b.total)
		if !b.had {
			fetched += b.done
		}
	}
	if total == 0 {
		return clip(what, width)
	}
	numbers := fmt.Sprintf("%3d%% %s/%s", done*100/total, size(done), size(total))
	if d := now.Sub(p.begun); !p.begun.IsZero() && d > time.Second {
		numbers += fmt.Sprintf(" %s/s", size(int64(float64(fetched)/d.Seconds())))
	}
	cells := min(barCells, width-utf8.RuneCountInString(what+numbers)-4)
	if cells < barCells/3 { // no room for both: the name goes first
		what = "image"
		cells = min(barCells, width-len(what+numbers)-4)
	}
	if cells < 3 {
		return clip(numbers, width)
	}
	full := int(done * int64(cells) / total)
	bar := strings.Repeat("=", full)
	if full < cells {
		bar += ">" + strings.Repeat(" ", cells-full-1)
	}
	return fmt.Sprintf("%s [%s] %s", what, bar, numbers)
}

// close removes the bar.
func (p *progress) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
}

func (p *progress) clear() {
	if p.onLine {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.onLine = false
	}
}

func size(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }

func clip(s string, width int) string {
	if r := []rune(s); len(r) > width {
		return string(r[:max(width, 0)])
	}
	return s
}
