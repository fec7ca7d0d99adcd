package netstack

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxAwaited is how many questions wait for names at a time.
	maxAwaited = 256
	// namePatience is how long one waits: less than the 5 s of the libraries that ask.
	namePatience = 4 * time.Second
	// nameAgain is how often it looks, as other networks do not tell of a new name.
	nameAgain = 250 * time.Millisecond
)

// settling is the first moment of a network whose sandboxes are there already: their
// names come one after the other. "No such name" would be believed.
type settling struct {
	end     time.Time
	waiting chan struct{}

	mu      sync.Mutex // guards what follows
	changed chan struct{}
}

func (s *settling) begin(d time.Duration) {
	s.end = time.Now().Add(d)
	s.waiting, s.changed = make(chan struct{}, maxAwaited), make(chan struct{})
}

// over says that all names are there.
func (s *settling) over() bool { return !time.Now().Before(s.end) }

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

// Settling says whether names are still coming.
func (r *Resolver) Settling() bool { return !r.young.over() }

// MayHave says whether a query is for a name that looks like one of a sandbox here.
func (r *Resolver) MayHave(query []byte) bool {
	req, rcode, ok := parseQuery(query)
	return ok && rcode == dns.RcodeSuccess && r.zone.mayHave(req.Question[0].Name)
}

// find looks for a name in the zone and then with peers, again and again while one of
// them does not know yet. m is the zone's answer, other that of a peer. Unsure: it has
// waited long enough, and there may be such a name all the same.
func (r *Resolver) find(ctx context.Context, q dns.Question, peers func() (*dns.Msg, bool)) (m, other *dns.Msg, unsure bool) {
	look := func() bool {
		if m = r.zone.answer(q); has(m) {
			return true
		}
		other, unsure = peers()
		unsure = unsure || !r.young.over() && r.zone.mayHave(q.Name)
		return other != nil || !unsure
	}
	if look() {
		return m, other, false
	}
	select {
	case r.young.waiting <- struct{}{}:
		defer func() { <-r.young.waiting }()
	default:
		return nil, nil, true
	}
	ctx, cancel := context.WithTimeout(ctx, namePatience)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()
	again := time.NewTicker(nameAgain)
	defer again.Stop()
	for {
		next := r.young.next()
		if look() {
			return m, other, false
		}
		select {
		case <-next:
		case <-again.C:
		case <-ctx.Done():
			return nil, nil, true
		}
	}
}

// mayHave says whether a name looks like one of a sandbox here.
func (z *zone) mayHave(name string) bool {
	name = strings.ToLower(name)
	if p, ok := reversePrefix(name); ok {
		return z.own(p)
	}
	for strings.HasPrefix(name, "_") { // of a service
		_, name, _ = strings.Cut(name, ".")
	}
	return strings.Count(name, ".") == 1 || slices.ContainsFunc(z.suffixes, func(s string) bool { return strings.HasSuffix(name, s) })
}
