package streams

import (
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	pieceSize = 4 << 10
	// patience is how long a session may take nothing.
	patience = 10 * time.Second
	// MaxSessions bounds what one output is written to.
	MaxSessions = 16
)

// ErrTooMany is returned by Attach.
var ErrTooMany = fmt.Errorf("%d sessions are attached already", MaxSessions)

// Output is one of a workload's outputs.
type Output struct {
	Source
	log      io.Writer
	patience time.Duration

	mu       sync.Mutex // guards what follows
	sessions []*session // replaced, never changed
	ended    bool
}

// Kind says what a session means to the workload.
type Kind int

const (
	// Watching: it is let go when it takes nothing.
	Watching Kind = iota
	// Patient: it is waited for.
	Patient
	// Primary: it is waited for, and when it goes the workload is let know.
	Primary
)

// session is one that an output is written to.
type session struct {
	w    *os.File
	kind atomic.Int32  // a Kind
	gone chan struct{} // closed when it is not written to any more
}

func (s *session) is(k Kind) bool { return Kind(s.kind.Load()) == k }

// NewOutput takes the reading end. log never fails; nil means there is none.
func NewOutput(r *os.File, log io.Writer) *Output {
	if log == nil {
		log = io.Discard
	}
	return &Output{Source: NewSource(r), log: log, patience: patience}
}

// Attach writes what comes from now on to w as well, which it takes and closes at
// the end; the channel is closed then. w must be served by Go's poller.
func (o *Output) Attach(w *os.File, kind Kind) (<-chan struct{}, error) {
	s := &session{w: w, gone: make(chan struct{})}
	s.kind.Store(int32(kind))
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.ended:
		s.close()
	case len(o.sessions) >= MaxSessions:
		return nil, ErrTooMany
	default:
		o.sessions = append(slices.Clone(o.sessions), s)
	}
	return s.gone, nil
}

// Run copies until the output's end. It is called once.
func (o *Output) Run() { o.Source.Run(o.write, o.end) }

func (o *Output) write(b []byte) bool {
	// It never fails; see its type.
	_, _ = o.log.Write(b)
	o.mu.Lock()
	sessions := o.sessions
	o.mu.Unlock()
	for _, s := range sessions {
		if err := o.pass(s, b); err != nil {
			o.drop(s)
		}
	}
	return true
}

// pass writes to one session.
func (o *Output) pass(s *session, b []byte) error {
	if !s.is(Watching) {
		_, err := s.w.Write(b)
		return err
	}
	for len(b) > 0 {
		if err := s.w.SetWriteDeadline(time.Now().Add(o.patience)); err != nil {
			return err
		}
		// The deadline is for each piece that is taken.
		n, err := s.w.Write(b[:min(len(b), pieceSize)])
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// drop ends a session. If it is the one that the workload runs for, the workload
// is let know: its write fails, or its terminal hangs up.
func (o *Output) drop(s *session) {
	o.mu.Lock()
	o.sessions = slices.DeleteFunc(slices.Clone(o.sessions), func(x *session) bool { return x == s })
	o.mu.Unlock()
	s.close()
	if s.is(Primary) {
		o.r.Close()
	}
}

func (s *session) close() {
	s.w.Close()
	close(s.gone)
}

// end closes the sessions, which is how they see the end.
func (o *Output) end() {
	o.mu.Lock()
	sessions := o.sessions
	o.sessions, o.ended = nil, true
	o.mu.Unlock()
	for _, s := range sessions {
		s.close()
	}
	o.r.Close()
}

// Demote makes the primary session one that may go without the workload.
func (o *Output) Demote() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.sessions {
		if s.is(Primary) {
			s.kind.Store(int32(Watching))
		}
	}
}

// Hangup ends the sessions of this kind and of those that mean more, so that Drain does
// not wait for them.
func (o *Output) Hangup(least Kind) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.sessions {
		if Kind(s.kind.Load()) >= least {
			s.w.Close()
		}
	}
}
