package netstack

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// maxAwaited is how many questions wait for names at a time.
const maxAwaited = 256

// settling is the first moment of a network whose sandboxes are there already: their
// names come one after the other. "No such name" would be believed.
type settling struct {
	ctx     context.Context // ends when all names are there; nil: they are
	waiting chan struct{}

	mu      sync.Mutex // guards what follows
	changed chan struct{}
}

func (s *settling) begin(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	s.waiting, s.changed = make(chan struct{}, maxAwaited), make(chan struct{})
	var cancel context.CancelFunc
	s.ctx, cancel = context.WithCancel(ctx)
	time.AfterFunc(d, cancel)
}

// over says that all names are there.
func (s *settling) over() bool { return s.ctx == nil || s.ctx.Err() != nil }

// news wakes those who wait.
func (s *settling) news() {
	if s.over() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// next is closed with the next change.
func (s *settling) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Settling says whether Await may wait.
func (r *Resolver) Settling() bool { return !r.young.over() }

// Await is Local for who can wait for a name that is about to come.
func (r *Resolver) Await(ctx context.Context, query []byte) []byte {
	req, rcode, ok := parseQuery(query)
	if !ok || rcode != dns.RcodeSuccess {
		return nil
	}
	r.find(ctx, req.Question[0], func() *dns.Msg { return nil })
	return r.Local(query)
}

// find looks for a name in the zone and then with peers, again and again while names are
// coming. m is the zone's answer, other that of a peer.
func (r *Resolver) find(ctx context.Context, q dns.Question, peers func() *dns.Msg) (m, other *dns.Msg) {
	look := func() bool {
		if m = r.zone.answer(q); has(m) {
			return true
		}
		other = peers()
		return other != nil
	}
	if look() || r.young.over() || !r.zone.mayHave(strings.ToLower(q.Name)) {
		return m, other
	}
	select {
	case r.young.waiting <- struct{}{}:
		defer func() { <-r.young.waiting }()
	default:
		return m, other
	}
	for {
		next := r.young.next()
		if look() {
			return m, other
		}
		select {
		case <-next:
		case <-r.young.ctx.Done():
			look()
			return m, other
		case <-ctx.Done():
			return m, other
		}
	}
}

// mayHave says whether a name looks like one of a sandbox here.
func (z *zone) mayHave(name string) bool {
	if p, ok := reversePrefix(name); ok {
		return z.own(p)
	}
	for strings.HasPrefix(name, "_") { // of a service
		_, name, _ = strings.Cut(name, ".")
	}
	return strings.Count(name, ".") == 1 || slices.ContainsFunc(z.suffixes, func(s string) bool { return strings.HasSuffix(name, s) })
}
