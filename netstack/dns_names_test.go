package netstack

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func setRecords(t testing.TB, r *Resolver, owner string, names string, addrs ...string) {
	t.Helper()
	var a []netip.Addr
	for _, s := range addrs {
		a = append(a, mustAddr(s))
	}
	if err := r.SetRecords(owner, strings.Fields(names), a); err != nil {
		t.Fatal(err)
	}
}

// last is the last field of each record of an answer, sorted.
func last(rrs []dns.RR) string {
	var got []string
	for _, rr := range rrs {
		f := strings.Fields(rr.String())
		got = append(got, f[len(f)-1])
	}
	slices.Sort(got)
	return strings.Join(got, " ")
}

// TestDNSSuffixes is a name with what may follow it.
func TestDNSSuffixes(t *testing.T) {
	r := newResolver(t, ResolverConfig{Network: "Blue"}, dnsServer(t, dnsAnswering(dns.RcodeNameError, nil, nil)))
	setRecords(t, r, "id1", "web db.prod 0123456789ab", "10.1.2.2")
	for name, want := range map[string]string{
		"web.": "10.1.2.2", "WEB.blue.": "10.1.2.2", "web.sbx.internal.": "10.1.2.2", "web.blue.sbx.internal.": "10.1.2.2",
		"db.prod.": "10.1.2.2", "db.prod.blue.": "10.1.2.2", "0123456789ab.blue.": "10.1.2.2",
		"webblue.": "", "x.web.": "", "web.red.": "", "blue.": "", "web.red.sbx.internal.": "", "web.sbx.internal.blue.": "",
	} {
		a := dnsExchange(t, r, dnsQuery(name, dns.TypeA), false)
		if got := last(a.Answer); got != want || want == "" && a.Rcode != dns.RcodeNameError {
			t.Errorf("%s: %q, rcode %d, want %q", name, got, a.Rcode, want)
		}
	}
}

// TestDNSChangesAtOnce: what a sandbox has been told, it may not keep.
func TestDNSChangesAtOnce(t *testing.T) {
	r := newResolver(t, ResolverConfig{}, dnsServer(t, dnsAnswering(dns.RcodeNameError, nil, nil)))
	ask := func(name string) *dns.Msg { return dnsExchange(t, r, dnsQuery(name, dns.TypeA), false) }
	for _, name := range []string{"web.", "web.sbx.internal."} { // also such as the host's servers are asked for
		if a := ask(name); a.Rcode != dns.RcodeNameError {
			t.Fatalf("%v", a)
		}
	}
	if a := ask("web.sbx.internal."); a.Ns[0].(*dns.SOA).Minttl != 0 || a.Ns[0].Header().Ttl != 0 {
		t.Errorf("a negative answer may be kept: %v", a)
	}
	for _, addr := range []string{"10.1.2.2", "10.1.2.3"} {
		setRecords(t, r, "id1", "web", addr)
		for _, name := range []string{"web.", "web.sbx.internal."} {
			if a := ask(name); last(a.Answer) != addr || a.Answer[0].Header().Ttl != 0 {
				t.Errorf("%s: %v, want %s for no time", name, a, addr)
			}
		}
	}
	r.Remove("id1")
	if a := ask("web."); a.Rcode != dns.RcodeNameError {
		t.Errorf("after its end: %v", a)
	}
}

// TestDNSRoundRobin: each of those who share a name comes first in turn.
func TestDNSRoundRobin(t *testing.T) {
	r := newResolver(t, ResolverConfig{})
	for i := range 3 {
		setRecords(t, r, fmt.Sprint("id", i), fmt.Sprint("web", i, " web"), fmt.Sprint("10.1.2.", 10+i), fmt.Sprintf("fd00:1::%d", 10+i))
	}
	first := map[string]int{}
	for range 9 {
		a := dnsExchange(t, r, dnsQuery("web.", dns.TypeA), false)
		if last(a.Answer) != "10.1.2.10 10.1.2.11 10.1.2.12" {
			t.Fatalf("%v", a)
		}
		first[last(a.Answer[:1])]++
	}
	if len(first) != 3 || first["10.1.2.10"] != 3 || first["10.1.2.11"] != 3 {
		t.Errorf("first in line: %v", first)
	}
	for i := range 3 * maxSharers {
		setRecords(t, r, fmt.Sprint("many", i), "many", fmt.Sprintf("fd00:1::1:%x", i))
	}
	seen := map[string]bool{}
	for range 3 * maxSharers {
		a := dnsExchange(t, r, dnsQuery("many.", dns.TypeAAAA), true)
		if len(a.Answer) != maxSharers {
			t.Fatalf("%d addresses, limit %d", len(a.Answer), maxSharers)
		}
		seen[last(a.Answer[:1])] = true
	}
	if len(seen) != 3*maxSharers {
		t.Errorf("%d of %d were first", len(seen), 3*maxSharers)
	}
}

func TestDNSServices(t *testing.T) {
	r := newResolver(t, ResolverConfig{Network: "blue"}, dnsServer(t, dnsAnswering(dns.RcodeNameError, nil, nil)))
	setRecords(t, r, "id1", "web1 web", "10.1.2.2", "fd00:1::2")
	setRecords(t, r, "id2", "web2 web", "10.1.2.3")
	for owner, s := range map[string][]Service{"id1": {{"tcp", 80}, {"udp", 443}}, "id2": {{"tcp", 80}, {"tcp", 8080}}} {
		if err := r.SetServices(owner, s); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ name, targets, extra string }{
		{"_80._tcp.web1.", "80 web1.", "10.1.2.2 fd00:1::2"},
		{"_http._tcp.web1.blue.", "80 web1.", "10.1.2.2 fd00:1::2"},
		{"_80._TCP.web.sbx.internal.", "80 web1. 80 web2.", "10.1.2.2 10.1.2.3 fd00:1::2"},
		{"_8080._tcp.web.", "8080 web2.", "10.1.2.3"},
		{"_443._udp.web1.", "443 web1.", "10.1.2.2 fd00:1::2"},
		{"_443._tcp.web1.", "", ""}, {"_0._tcp.web1.", "", ""}, {"_99999._tcp.web1.", "", ""}, {"_80._sctp.web1.", "", ""},
		{"_nosuch._tcp.web1.", "", ""}, {"_80._tcp.other.", "", ""}, {"_80._tcp.", "", ""}, {"_.", "", ""}, {"_80.web1.", "", ""},
	} {
		a := dnsExchange(t, r, dnsQuery(c.name, dns.TypeSRV), true)
		var got []string
		for _, rr := range a.Answer {
			got = append(got, fmt.Sprint(rr.(*dns.SRV).Port, " ", rr.(*dns.SRV).Target))
		}
		slices.Sort(got)
		if strings.Join(got, " ") != c.targets || last(a.Extra) != c.extra || c.targets == "" && a.Rcode != dns.RcodeNameError {
			t.Errorf("%s: %v", c.name, a)
		}
	}
	if a := dnsExchange(t, r, dnsQuery("_80._tcp.web.", dns.TypeTXT), false); a.Rcode != dns.RcodeSuccess || len(a.Answer) != 0 {
		t.Errorf("another type of a service's name: %v", a)
	}
	// They stay when the names change, and go with the owner.
	setRecords(t, r, "id1", "web9", "10.1.2.9")
	if a := dnsExchange(t, r, dnsQuery("_80._tcp.web9.", dns.TypeSRV), false); last(a.Extra) != "10.1.2.9" {
		t.Errorf("after a change of names: %v", a)
	}
	r.Remove("id1")
	if r.SetServices("id1", nil) == nil || r.SetServices("id2", []Service{{"icmp", 1}}) == nil || r.SetServices("id2", make([]Service, maxOwnerServices+1)) == nil {
		t.Error("bad services were taken")
	}
}

// TestDNSInternal: the host's servers are not asked, not even for what other
// servers would be.
func TestDNSInternal(t *testing.T) {
	r := newResolver(t, ResolverConfig{Internal: true}, dnsServer(t, dnsRefusing(t)))
	setRecords(t, r, "id1", "web", "10.1.2.2")
	for name, want := range map[string]int{
		"web.": dns.RcodeSuccess, "host.sbx.internal.": dns.RcodeSuccess, "x.sbx.internal.": dns.RcodeNameError,
		"example.com.": dns.RcodeServerFailure, "8.8.8.8.in-addr.arpa.": dns.RcodeServerFailure, "other.": dns.RcodeServerFailure,
	} {
		if a := dnsExchange(t, r, dnsQuery(name, dns.TypeA), false); a.Rcode != want {
			t.Errorf("%s: rcode %d, want %d", name, a.Rcode, want)
		}
	}
}

// TestDNSPeers is a client on two networks.
func TestDNSPeers(t *testing.T) {
	other := newResolver(t, ResolverConfig{Network: "red", Internal: true})
	setRecords(t, other, "id9", "cache web", "10.1.2.77")
	asked := 0
	r := newResolver(t, ResolverConfig{Network: "blue", Peers: func(client netip.Addr) func(context.Context, []byte) ([]byte, bool) {
		if client != dnsClient {
			t.Errorf("asked for %s", client)
		}
		return func(_ context.Context, q []byte) ([]byte, bool) {
			asked++
			return other.Local(q), false
		}
	}}, dnsServer(t, dnsAnswering(0, []dns.RR{dnsRR(t, "example.com. 60 IN A 192.0.2.9")}, nil)))
	setRecords(t, r, "id1", "web", "10.1.2.2")
	for _, c := range []struct {
		name  string
		typ   uint16
		want  string
		asked int
	}{
		{"web.", dns.TypeA, "10.1.2.2", 0}, // its own network goes before the others
		{"web.", dns.TypeAAAA, "", 0},      // also for what it does not have
		{"web.red.", dns.TypeA, "10.1.2.77", 1},
		{"CACHE.", dns.TypeA, "10.1.2.77", 1},
		{"cache.sbx.internal.", dns.TypeA, "10.1.2.77", 1},
		{"77.2.1.10.in-addr.arpa.", dns.TypePTR, "cache.", 1},
		{"nobody.sbx.internal.", dns.TypeA, "", 1},
		{"example.com.", dns.TypeA, "192.0.2.9", 1},
	} {
		asked = 0
		if a := dnsExchange(t, r, dnsQuery(c.name, c.typ), false); last(a.Answer) != c.want || asked != c.asked {
			t.Errorf("%s: asked %d times, want %d: %v", c.name, asked, c.asked, a)
		}
	}
	if s := r.Stats(); s.Peers != 4 {
		t.Errorf("%+v", s)
	}
}

// TestDNSPeersBounded: peers that lie, or never answer.
func TestDNSPeersBounded(t *testing.T) {
	var reply []byte
	r := newResolver(t, ResolverConfig{Peers: func(netip.Addr) func(context.Context, []byte) ([]byte, bool) {
		return func(context.Context, []byte) ([]byte, bool) { return reply, false }
	}},
		dnsServer(t, dnsAnswering(dns.RcodeNameError, nil, nil)))
	liar := dnsQuery("other.", dns.TypeA)
	liar.Response, liar.Answer = true, []dns.RR{dnsRR(t, "other. 60 IN A 192.0.2.66")}
	lie, err := liar.Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, reply = range [][]byte{nil, {}, {1, 2, 3}, make([]byte, 12), lie} {
		if a := dnsExchange(t, r, dnsQuery("name.", dns.TypeA), false); a.Rcode != dns.RcodeNameError {
			t.Errorf("% x was believed: %v", reply, a)
		}
	}

	entered := make(chan struct{})
	stuck := newResolver(t, ResolverConfig{Peers: func(netip.Addr) func(context.Context, []byte) ([]byte, bool) {
		return func(ctx context.Context, _ []byte) ([]byte, bool) {
			if d, ok := ctx.Deadline(); !ok || time.Until(d) > peersTimeout {
				t.Error("no bound on the time")
			}
			close(entered)
			<-ctx.Done()
			return nil, false
		}
	}}, dnsServer(t, dnsAnswering(dns.RcodeNameError, nil, nil)))
	done := make(chan []byte)
	go func() {
		b, _ := dnsQuery("name.", dns.TypeA).Pack()
		done <- stuck.Exchange(context.Background(), b, dnsClient, false)
	}()
	<-entered
	stuck.Close() // ends it
	<-done
}

func BenchmarkExchangeZone(b *testing.B) {
	r := newResolver(b, ResolverConfig{Network: "blue"})
	for i := range 1000 {
		setRecords(b, r, fmt.Sprint("id", i), fmt.Sprint("web", i), fmt.Sprintf("10.1.%d.%d", 2+i/256, i%256), fmt.Sprintf("fd00:1::%x", i))
	}
	for _, name := range []string{"web77.", "web77.blue."} {
		b.Run(name, func(b *testing.B) {
			q, _ := dnsQuery(name, dns.TypeA).Pack()
			for b.Loop() {
				if r.Exchange(b.Context(), q, dnsClient, false) == nil {
					b.Fatal("no answer")
				}
			}
		})
	}
}
