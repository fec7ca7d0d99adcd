package image

import (
	"io"
	"sync"
	"time"
)

// Phase is what happens to a layer.
type Phase string

// The phases; each layer ends in PhaseExists or PhaseDone.
const (
	PhaseResolve  Phase = "resolve"  // asking for the manifest; Layer is the reference
	PhaseWait     Phase = "wait"     // queued, or another process downloads it
	PhaseDownload Phase = "download" // from the registry
	PhaseLoad     Phase = "load"     // from an archive
	PhaseRetry    Phase = "retry"    // a request failed and will be repeated; see Err
	PhaseExists   Phase = "exists"   // was in the store already
	PhaseDone     Phase = "done"     // is in the store, verified
)

// Event is one step of progress. Events come one at a time, for each blob at
// most ten a second.
type Event struct {
	// Layer is the digest of the blob.
	Layer string
	Phase Phase
	// Done and Total bytes.
	Done, Total int64
	// Err is why there is a retry.
	Err error
}

type progress struct {
	mu sync.Mutex // serialises fn
	fn func(Event)
}

func newProgress(fn func(Event)) *progress { return &progress{fn: fn} }

func (p *progress) emit(e Event) {
	if p.fn == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fn(e)
}

// reader reports what is read through it.
func (p *progress) reader(r io.Reader, layer string, phase Phase, total int64) io.Reader {
	if p.fn == nil {
		return r
	}
	p.emit(Event{Layer: layer, Phase: phase, Total: total})
	return &progressReader{p: p, r: r, ev: Event{Layer: layer, Phase: phase, Total: total}, last: time.Now()}
}

type progressReader struct {
	p    *progress
	r    io.Reader
	ev   Event
	last time.Time
}

func (r *progressReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.ev.Done += int64(n)
	if now := time.Now(); now.Sub(r.last) >= 100*time.Millisecond {
		r.last = now
		r.p.emit(r.ev)
	}
	return n, err
}
