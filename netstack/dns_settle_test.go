package netstack

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestDNSSettling: while names are coming, who asks for one waits for it, and nobody
// waits for anything else.
func TestDNSSettling(t *testing.T) {
	other := newResolver(t, ResolverConfig{Network: "red", Settle: time.Hour})
	setRecords(t, other, "id9", "cache", "10.1.2.77")
	r := newResolver(t, ResolverConfig{Network: "blue", Settle: time.Hour, Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
		Peers: func(netip.Addr) func(context.Context, []byte) ([]byte, bool) {
			return func(_ context.Context, q []byte) ([]byte, bool) { return other.Local(q), false }
		},
	}, dnsServer(t, dnsAnswering(dns.RcodeNameError, nil, nil)))
	setRecords(t, r, "id0", "early", "10.1.2.1")
	for name, want := range map[string]int{"early.": dns.RcodeSuccess, "cache.": dns.RcodeSuccess, "example.com.": dns.RcodeNameError, "1.2.0.192.in-addr.arpa.": dns.RcodeNameError} {
		if a := dnsExchange(t, r, dnsQuery(name, dns.TypeA), false); a.Rcode != want {
			t.Errorf("%s: rcode %d, want %d", name, a.Rcode, want)
		}
	}

	questions := []*dns.Msg{dnsQuery("late.", dns.TypeA), dnsQuery("Late.blue.", dns.TypeA), dnsQuery("late.sbx.internal.", dns.TypeA), dnsQuery("2.2.1.10.in-addr.arpa.", dns.TypePTR), dnsQuery("_80._tcp.late.", dns.TypeSRV)}
	answers := make(chan *dns.Msg)
	for _, q := range questions {
		go func() { answers <- dnsExchange(t, r, q, false) }()
	}
	await(t, "the questions", func() bool { return len(r.young.waiting) == len(questions) })
	setRecords(t, r, "id1", "late", "10.1.2.2")
	if err := r.SetServices("id1", []Service{{"tcp", 80}}); err != nil {
		t.Fatal(err)
	}
	for range questions {
		if a := <-answers; len(a.Answer) != 1 {
			t.Errorf("%v", a)
		}
	}

	// Another network does not know yet, as its process is young or is not there at all.
	var late atomic.Bool
	old := newResolver(t, ResolverConfig{Peers: func(netip.Addr) func(context.Context, []byte) ([]byte, bool) {
		return func(_ context.Context, q []byte) ([]byte, bool) {
			if !late.Load() {
				return nil, r.MayHave(q)
			}
			return r.Local(q), false
		}
	}}, dnsServer(t, dnsAnswering(dns.RcodeNameError, nil, nil)))
	go func() { answers <- dnsExchange(t, old, dnsQuery("late.blue.", dns.TypeA), false) }()
	await(t, "the question", func() bool { return len(old.young.waiting) == 1 })
	late.Store(true)
	if a := <-answers; len(a.Answer) != 1 {
		t.Errorf("%v", a)
	}
	late.Store(false)
	if a := dnsExchange(t, old, dnsQuery("example.com.", dns.TypeA), false); a.Rcode != dns.RcodeNameError {
		t.Errorf("%v", a)
	}

	// Who has waited long enough is told to ask again, and not that there is no such name.
	soon, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	q, err := dnsQuery("nobody.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	a := new(dns.Msg)
	if err := a.Unpack(r.Exchange(soon, q, dnsClient, false)); err != nil || a.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v, %v", a, err)
	}

	// However many ask, so many wait; the end of the resolver ends it.
	ended := make(chan []byte)
	for i := range maxAwaited + 1 {
		go func() {
			q, _ := dnsQuery(fmt.Sprintf("nobody%d.", i), dns.TypeA).Pack()
			ended <- r.Exchange(t.Context(), q, dnsClient, false)
		}()
	}
	<-ended
	await(t, "the questions", func() bool { return len(r.young.waiting) == maxAwaited })
	r.Close()
	for range maxAwaited {
		<-ended
	}

	short := newResolver(t, ResolverConfig{Settle: time.Millisecond})
	if a := dnsExchange(t, short, dnsQuery("nobody.sbx.internal.", dns.TypeA), false); a.Rcode != dns.RcodeNameError || short.Settling() {
		t.Errorf("%v", a)
	}
}
