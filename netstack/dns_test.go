package netstack

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

var dnsClient = mustAddr("10.1.2.2")

// dnsServer runs a handler on a loopback port, UDP and TCP.
func dnsServer(t testing.TB, h dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	pc, ln := listenBoth(t)
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: ln, Handler: h}} {
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		done := make(chan struct{})
		go func() { defer close(done); s.ActivateAndServe() }()
		<-up
		t.Cleanup(func() { s.Shutdown(); <-done })
	}
	return pc.LocalAddr().(*net.UDPAddr).AddrPort()
}

// listenBoth takes a loopback port for UDP and TCP. A port that is free for one
// of them may be in use for the other.
func listenBoth(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 100 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", ln.Addr().String())
		if err == nil {
			return pc, ln
		}
		ln.Close()
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil, nil
}

func newResolver(t testing.TB, cfg ResolverConfig, servers ...netip.AddrPort) *Resolver {
	t.Helper()
	cfg.Servers = servers
	cfg.Gateway4, cfg.Gateway6 = mustAddr("10.1.2.1"), mustAddr("fd00:1::1")
	cfg.Subnets = []netip.Prefix{mustPrefix("10.1.2.0/23"), mustPrefix("fd00:1::/64")}
	if cfg.Timeout == 0 {
		cfg.Timeout = 300 * time.Millisecond
	}
	r, err := NewResolver(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func dnsQuery(name string, typ uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, typ)
	return m
}

func dnsExchange(t testing.TB, r *Resolver, m *dns.Msg, tcp bool) *dns.Msg {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	out := r.Exchange(t.Context(), b, dnsClient, tcp)
	if out == nil {
		t.Fatalf("no answer to %v", m.Question)
	}
	a := new(dns.Msg)
	if err := a.Unpack(out); err != nil {
		t.Fatal(err)
	}
	if a.Id != m.Id || !a.Response || !a.RecursionAvailable || len(a.Question) != 1 || a.Question[0] != m.Question[0] {
		t.Fatalf("not an answer to %v:\n%v", m, a)
	}
	return a
}

func dnsRR(t testing.TB, s string) dns.RR {
	t.Helper()
	r, err := dns.NewRR(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// answering returns a handler that answers every question with rrs.
func dnsAnswering(rcode int, answer, ns []dns.RR) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetRcode(q, rcode)
		m.Answer, m.Ns, m.Compress = answer, ns, true
		if opt := q.IsEdns0(); opt != nil {
			m.SetEdns0(1232, opt.Do())
		}
		w.WriteMsg(m)
	}
}

func dnsRefusing(t testing.TB) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) {
		t.Errorf("this must not leave the network: %v", q.Question)
		dns.HandleFailed(w, q)
	}
}

func TestDNSZone(t *testing.T) {
	r := newResolver(t, ResolverConfig{}, dnsServer(t, dnsRefusing(t)))
	if err := r.SetRecords("id1", []string{"Web", "www.sbx.internal."}, []netip.Addr{mustAddr("10.1.2.2"), mustAddr("fd00:1::2")}); err != nil {
		t.Fatal(err)
	}
	if err := r.SetRecords("id2", []string{"db", "web"}, []netip.Addr{mustAddr("10.1.3.3")}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		typ   uint16
		rcode int
		want  string
	}{
		{"host.sbx.internal.", dns.TypeA, 0, "10.1.2.1"},
		{"HOST.sbx.Internal.", dns.TypeAAAA, 0, "fd00:1::1"},
		{"gateway.sbx.internal.", dns.TypeA, 0, "10.1.2.1"},
		{"host.docker.internal.", dns.TypeA, 0, "10.1.2.1"},
		{"host.containers.internal.", dns.TypeA, 0, "10.1.2.1"},
		{"host.sbx.internal.", dns.TypeMX, 0, ""},
		{"host.sbx.internal.", dns.TypeANY, 0, "10.1.2.1 fd00:1::1"},
		{"nobody.sbx.internal.", dns.TypeA, dns.RcodeNameError, ""},
		{"sbx.internal.", dns.TypeA, 0, ""},
		{"localhost.", dns.TypeA, 0, "127.0.0.1"},
		{"foo.localhost.", dns.TypeAAAA, 0, "::1"},
		{"wEb.", dns.TypeA, 0, "10.1.2.2 10.1.3.3"},
		{"web.", dns.TypeAAAA, 0, "fd00:1::2"},
		{"db.", dns.TypeAAAA, 0, ""},
		{"www.sbx.internal.", dns.TypeA, 0, "10.1.2.2"},
		{"2.2.1.10.in-addr.arpa.", dns.TypePTR, 0, "web."},
		{"3.3.1.10.in-addr.arpa.", dns.TypePTR, 0, "db."},
		{"1.2.1.10.in-addr.arpa.", dns.TypePTR, 0, "host.sbx.internal."},
		{"9.2.1.10.in-addr.arpa.", dns.TypePTR, dns.RcodeNameError, ""},
		{"x.9.2.1.10.in-addr.arpa.", dns.TypePTR, dns.RcodeNameError, ""},
		{"2.1.10.in-addr.arpa.", dns.TypeSOA, 0, ""},
		{"2.2.1.10.in-addr.arpa.", dns.TypeTXT, 0, ""},
		{"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, 0, "web."},
		{"7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, dns.RcodeNameError, ""},
		{"F.0.0.0.0.0.0.0.0.1.0.0.0.0.0.D.F.IP6.ARPA.", dns.TypePTR, 0, ""},
	} {
		t.Run(tt.name+dns.TypeToString[tt.typ], func(t *testing.T) {
			a := dnsExchange(t, r, dnsQuery(tt.name, tt.typ), false)
			var got []string
			for _, rr := range a.Answer {
				f := strings.Fields(rr.String())
				got = append(got, f[len(f)-1])
			}
			slices.Sort(got) // those of a shared name come in turn
			if a.Rcode != tt.rcode || strings.Join(got, " ") != tt.want || !a.Authoritative {
				t.Errorf("rcode %d, %q, want %d, %q\n%v", a.Rcode, got, tt.rcode, tt.want, a)
			}
			if tt.want == "" && len(a.Ns) != 1 {
				t.Errorf("negative answer without SOA: %v", a)
			}
		})
	}
	r.Remove("id1")
	if a := dnsExchange(t, r, dnsQuery("web.", dns.TypeA), false); len(a.Answer) != 1 {
		t.Errorf("after Remove: %v", a)
	}
	if a := dnsExchange(t, r, dnsQuery("2.2.1.10.in-addr.arpa.", dns.TypePTR), false); a.Rcode != dns.RcodeNameError {
		t.Errorf("PTR after Remove: %v", a)
	}
	if n := len(r.zone.names); n != 2 { // web and db of id2
		t.Errorf("%d names left: %v", n, r.zone.names)
	}
	var bad *ErrRecord
	for _, n := range []string{"", "a..b", "host.sbx.internal", "a b", strings.Repeat("a.", 130)} {
		if err := r.SetRecords("x", []string{n}, nil); !errors.As(err, &bad) {
			t.Errorf("name %q: %v", n, err)
		}
	}
	if r.SetRecords("", nil, nil) == nil || r.SetRecords("x", make([]string, maxOwnerNames+1), nil) == nil || r.SetRecords("x", nil, []netip.Addr{{}}) == nil {
		t.Error("bad records were taken")
	}
	for i := range maxRecordOwners - 1 {
		if err := r.SetRecords(fmt.Sprint("o", i), []string{"web"}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if r.SetRecords("one-more", nil, nil) == nil {
		t.Error("no bound on owners")
	}
}

func TestDNSRefusals(t *testing.T) {
	r := newResolver(t, ResolverConfig{}, dnsServer(t, dnsRefusing(t)))
	for name, tt := range map[string]struct {
		change func(m *dns.Msg)
		rcode  int
	}{
		"AXFR":         {func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }, dns.RcodeRefused},
		"IXFR":         {func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeIXFR }, dns.RcodeRefused},
		"OPT":          {func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeOPT }, dns.RcodeFormatError},
		"chaos":        {func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused},
		"EDNS version": {func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }, dns.RcodeBadVers},
	} {
		m := dnsQuery("example.com.", dns.TypeA)
		tt.change(m)
		if a := dnsExchange(t, r, m, false); a.Rcode != tt.rcode {
			t.Errorf("%s: %v", name, a)
		}
	}
	if a := dnsExchange(t, r, dnsQuery("example.com.", dns.TypeANY), false); len(a.Answer) != 1 || a.Answer[0].Header().Rrtype != dns.TypeHINFO {
		t.Errorf("ANY: %v", a)
	}
	good, _ := dnsQuery("example.com.", dns.TypeA).Pack()
	change := func(f func(b []byte) []byte) []byte { return f(slices.Clone(good)) }
	for name, tt := range map[string]struct {
		in    []byte
		rcode int // -1: no answer
	}{
		"empty":         {nil, -1},
		"short":         {good[:11], -1},
		"an answer":     {change(func(b []byte) []byte { b[2] |= 0x80; return b }), -1},
		"notify":        {change(func(b []byte) []byte { b[2] |= dns.OpcodeNotify << 3; return b }), dns.RcodeNotImplemented},
		"update":        {change(func(b []byte) []byte { b[2] |= dns.OpcodeUpdate << 3; return b }), dns.RcodeNotImplemented},
		"no question":   {change(func(b []byte) []byte { b[5] = 0; return b }), dns.RcodeFormatError},
		"two questions": {change(func(b []byte) []byte { b[5] = 2; return b }), dns.RcodeFormatError},
		"with answer":   {change(func(b []byte) []byte { b[7] = 1; return b }), dns.RcodeFormatError},
		"cut":           {good[:len(good)-3], dns.RcodeFormatError},
		"OPT missing":   {change(func(b []byte) []byte { b[11] = 1; return b }), dns.RcodeFormatError},
		"pointer loop":  {change(func(b []byte) []byte { b[12], b[13] = 0xc0, 12; return b }), dns.RcodeFormatError},
		"too long":      {append(slices.Clone(good), make([]byte, maxQuery)...), dns.RcodeFormatError},
		"two OPTs": {change(func(b []byte) []byte {
			b[11] = 2
			return append(b, 0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 0)
		}), dns.RcodeFormatError},
	} {
		out := r.Exchange(t.Context(), tt.in, dnsClient, false)
		if tt.rcode < 0 {
			if out != nil {
				t.Errorf("%s: answered %x", name, out)
			}
			continue
		}
		if len(out) != 12 || out[0] != tt.in[0] || out[1] != tt.in[1] || out[2]&0x80 == 0 || int(out[3]&15) != tt.rcode {
			t.Errorf("%s: %x", name, out)
		}
	}
}

func TestDNSForward(t *testing.T) {
	var seen atomic.Pointer[dns.Msg]
	var asked atomic.Int32
	r := newResolver(t, ResolverConfig{}, dnsServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		seen.Store(q.Copy())
		asked.Add(1)
		m := new(dns.Msg)
		m.SetReply(q)
		m.RecursionAvailable, m.AuthenticatedData = true, true
		m.Answer = []dns.RR{dnsRR(t, q.Question[0].Name+" 300 IN A 192.0.2.1")}
		m.SetEdns0(4096, q.IsEdns0().Do())
		w.WriteMsg(m)
	}))
	q := dnsQuery("wWw.Example.com.", dns.TypeA)
	a := dnsExchange(t, r, q, false)
	if len(a.Answer) != 1 || a.IsEdns0() != nil || a.AuthenticatedData || a.Answer[0].Header().Ttl != 300 {
		t.Errorf("plain: %v", a)
	}
	if up := seen.Load(); up.IsEdns0() == nil || up.IsEdns0().UDPSize() != ednsSize || !up.RecursionDesired {
		t.Errorf("asked upstream: %v", up)
	}
	if a := dnsExchange(t, r, dnsQuery("www.example.COM.", dns.TypeA), true); len(a.Answer) != 1 || asked.Load() != 1 {
		t.Errorf("asked %d times for one name", asked.Load())
	}
	q = dnsQuery("www.example.com.", dns.TypeA)
	q.SetEdns0(1400, true)
	q.CheckingDisabled = true
	if a := dnsExchange(t, r, q, false); a.IsEdns0() == nil || !a.IsEdns0().Do() || !a.AuthenticatedData || !a.CheckingDisabled {
		t.Errorf("DNSSEC: %v", a)
	}
	if up := seen.Load(); asked.Load() != 2 || !up.IsEdns0().Do() || !up.CheckingDisabled {
		t.Errorf("DO and CD upstream: %v", up)
	}
	// An option that may change the answer is passed on and not cached; one
	// that is between neighbours is neither.
	for i := range 2 {
		q = dnsQuery("www.example.com.", dns.TypeA)
		q.SetEdns0(1400, false)
		q.IsEdns0().Option = []dns.EDNS0{
			&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.IPv4(192, 0, 2, 0).To4()},
			&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"},
		}
		dnsExchange(t, r, q, false)
		if up := seen.Load().IsEdns0(); int(asked.Load()) != 3+i || len(up.Option) != 1 || up.Option[0].Option() != dns.EDNS0SUBNET {
			t.Errorf("asked %d times, options %v", asked.Load(), up)
		}
	}
}

// TestDNSInside: addresses inside from a name outside are counted, and passed on unless
// they are to be refused.
func TestDNSInside(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		t.Run(fmt.Sprintf("refuse %v", refuse), func(t *testing.T) { testDNSInside(t, refuse) })
	}
}

func testDNSInside(t *testing.T, refuse bool) {
	var answer atomic.Pointer[dns.RR]
	var told bytes.Buffer
	r := newResolver(t, ResolverConfig{CacheEntries: -1, RefuseInside: refuse, Logger: slog.New(slog.NewTextHandler(&told, nil))}, dnsServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		m.Answer = []dns.RR{dnsRR(t, q.Question[0].Name+" 300 IN CNAME x.example.com."), *answer.Load()}
		w.WriteMsg(m)
	}))
	for _, c := range []struct {
		rr     string
		inside uint64
	}{
		{"A 192.0.2.1", 0}, {"A 10.0.0.1", 1}, {"A 192.168.1.1", 1}, {"A 127.0.0.1", 1}, {"A 169.254.169.254", 1}, {"A 0.0.0.0", 1},
		{"AAAA 2001:db8::1", 0}, {"AAAA ::1", 1}, {"AAAA fd00:ec2::254", 1}, {"AAAA fe80::1", 1}, {"AAAA ::ffff:10.0.0.1", 1}, {"TXT 10.0.0.1", 0},
		{"A 100.64.0.1", 1}, {"A 0.1.2.3", 1}, {"AAAA 64:ff9b::a00:1", 1}, {"AAAA 64:ff9b::c000:201", 0},
		{"HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1,10.0.0.1", 1}, {"SVCB 1 . ipv6hint=fd00::1", 1}, {"HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1", 0},
	} {
		rr := dnsRR(t, "x.example.com. 300 IN "+c.rr)
		answer.Store(&rr)
		before := r.Stats().Inside
		want := 2
		if refuse && c.inside > 0 {
			want = 0
		}
		if a := dnsExchange(t, r, dnsQuery("rebind.example.com.", rr.Header().Rrtype), false); len(a.Answer) != want || a.Rcode != dns.RcodeSuccess {
			t.Errorf("%s: %v", c.rr, a)
		}
		if got := r.Stats().Inside - before; got != c.inside {
			t.Errorf("%s: counted %d times", c.rr, got)
		}
	}
	if n := strings.Count(told.String(), "rebind.example.com."); n != 1 {
		t.Errorf("told %d times, want it once in a while: %s", n, told.String())
	}
}

// TestDNSRate: one client's questions leave the host at a bounded rate. What is in the
// cache, and other clients, are not concerned.
func TestDNSRate(t *testing.T) {
	var clock atomic.Int64
	var asked atomic.Int32
	r := newResolver(t, ResolverConfig{MaxRate: 50, now: func() time.Time { return time.Unix(clock.Load(), 0) }}, dnsServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		m := new(dns.Msg)
		m.SetReply(q)
		m.Answer = []dns.RR{dnsRR(t, q.Question[0].Name+" 300 IN A 192.0.2.1")}
		w.WriteMsg(m)
	}))
	guest, other := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.1.2.4")
	ask := func(from netip.Addr, name string, tcp bool) []byte {
		b, err := dnsQuery(name, dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		return r.Exchange(t.Context(), b, from, tcp)
	}
	for i := range 30 {
		answer := ask(guest, fmt.Sprintf("n%d.example.", i), false)
		if (answer != nil) != (i < 10) { // a fifth at once
			t.Errorf("question %d: answered %v", i, answer != nil)
		}
	}
	if answer := ask(guest, "n0.example.", false); answer == nil {
		t.Error("no answer from the cache")
	}
	if answer := ask(other, "other.example.", false); answer == nil {
		t.Error("the other client pays for the first")
	}
	m := new(dns.Msg)
	if err := m.Unpack(ask(guest, "tcp.example.", true)); err != nil || m.Rcode != dns.RcodeServerFailure {
		t.Errorf("by TCP: %v, %v", m, err)
	}
	clock.Add(1)
	if answer := ask(guest, "later.example.", false); answer == nil {
		t.Error("no answer a second later")
	}
	if s := r.Stats(); asked.Load() != 12 || s.Limited != 21 || s.Dropped != 0 {
		t.Errorf("%d questions asked, %+v", asked.Load(), s)
	}
}

func TestDNSTruncation(t *testing.T) {
	var many []dns.RR
	for i := range 200 {
		many = append(many, dnsRR(t, fmt.Sprintf("big.example. 60 IN A 192.0.2.%d", i)))
	}
	var tcpAsked atomic.Int32
	srv := func(tcpWorks bool) netip.AddrPort {
		return dnsServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
			m := new(dns.Msg)
			m.SetReply(q)
			m.Answer, m.Compress = many, true
			if w.LocalAddr().Network() == "udp" {
				m.Truncate(512)
			} else if tcpAsked.Add(1); !tcpWorks {
				w.Close()
				return
			}
			w.WriteMsg(m)
		})
	}
	r := newResolver(t, ResolverConfig{}, srv(true))
	for _, tt := range []struct {
		edns uint16
		tcp  bool
		tc   bool
		max  int
	}{{0, false, true, 512}, {100, false, true, 512}, {1232, false, true, 1232}, {4096, false, false, 4096}, {65535, false, false, 4096}, {0, true, false, 65535}} {
		q := dnsQuery("big.example.", dns.TypeA)
		if tt.edns > 0 {
			q.SetEdns0(tt.edns, false)
		}
		b, _ := q.Pack()
		out := r.Exchange(t.Context(), b, dnsClient, tt.tcp)
		a := new(dns.Msg)
		if err := a.Unpack(out); err != nil || len(out) > tt.max || a.Truncated != tt.tc || !tt.tc && len(a.Answer) != 200 {
			t.Errorf("%+v: %d bytes, TC %v, %d records, %v", tt, len(out), a.Truncated, len(a.Answer), err)
		}
	}
	if n := tcpAsked.Load(); n != 1 {
		t.Errorf("asked by TCP %d times", n)
	}
	// Where the whole answer is not to be had, a client by UDP gets the rest.
	r = newResolver(t, ResolverConfig{}, srv(false))
	if a := dnsExchange(t, r, dnsQuery("big.example.", dns.TypeA), false); !a.Truncated || a.Rcode != 0 {
		t.Errorf("no TCP upstream: %v", a)
	}
	if a := dnsExchange(t, r, dnsQuery("big.example.", dns.TypeA), true); a.Rcode != dns.RcodeServerFailure {
		t.Errorf("no TCP upstream, client by TCP: %v", a)
	}
}

// TestDNSBadServers: what a liar says is not believed, and the next one is asked.
func TestDNSBadServers(t *testing.T) {
	good := dnsServer(t, dnsAnswering(0, []dns.RR{dnsRR(t, "a.example. 60 IN A 192.0.2.1")}, nil))
	lie := func(change func(m *dns.Msg)) dns.HandlerFunc {
		return func(w dns.ResponseWriter, q *dns.Msg) {
			m := new(dns.Msg)
			m.SetReply(q)
			m.Answer = []dns.RR{dnsRR(t, "a.example. 60 IN A 6.6.6.6")}
			change(m)
			w.WriteMsg(m)
		}
	}
	closedAddr := refusingPort(t, "udp", "127.0.0.1")
	for name, bad := range map[string]netip.AddrPort{
		"wrong id":       dnsServer(t, lie(func(m *dns.Msg) { m.Id++ })),
		"wrong name":     dnsServer(t, lie(func(m *dns.Msg) { m.Question[0].Name = "b.example." })),
		"wrong type":     dnsServer(t, lie(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA })),
		"a query":        dnsServer(t, lie(func(m *dns.Msg) { m.Response = false })),
		"no question":    dnsServer(t, lie(func(m *dns.Msg) { m.Question = nil })),
		"silent":         dnsServer(t, func(dns.ResponseWriter, *dns.Msg) {}),
		"SERVFAIL":       dnsServer(t, dnsAnswering(dns.RcodeServerFailure, nil, nil)),
		"REFUSED":        dnsServer(t, dnsAnswering(dns.RcodeRefused, nil, nil)),
		"garbage":        dnsServer(t, func(w dns.ResponseWriter, _ *dns.Msg) { w.Write([]byte("garbage from the server")) }),
		"nobody listens": closedAddr,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newResolver(t, ResolverConfig{Timeout: 150 * time.Millisecond}, bad, good)
			for range 2 {
				a := dnsExchange(t, r, dnsQuery("a.example.", dns.TypeA), false)
				if len(a.Answer) != 1 || !strings.HasSuffix(a.Answer[0].String(), "192.0.2.1") {
					t.Errorf("%v", a)
				}
				r.cache.clear()
			}
			start := time.Now()
			if dnsExchange(t, r, dnsQuery("b.example.", dns.TypeA), false); time.Since(start) > 140*time.Millisecond {
				t.Errorf("the silent server was asked first again: %v", time.Since(start))
			}
		})
	}
	t.Run("flood", func(t *testing.T) {
		// Forged answers before the real one.
		srv := dnsServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
			for i := range 20 {
				lie(func(m *dns.Msg) { m.Id += uint16(i + 1) })(w, q)
			}
			dnsAnswering(0, []dns.RR{dnsRR(t, "a.example. 60 IN A 192.0.2.1")}, nil)(w, q)
		})
		r := newResolver(t, ResolverConfig{}, srv)
		if a := dnsExchange(t, r, dnsQuery("a.example.", dns.TypeA), false); len(a.Answer) != 1 || !strings.HasSuffix(a.Answer[0].String(), "192.0.2.1") {
			t.Errorf("%v", a)
		}
		if n := r.Stats().Spoofed; n != 20 {
			t.Errorf("%d forged answers counted", n)
		}
	})
	t.Run("real rcodes", func(t *testing.T) {
		for _, rcode := range []int{dns.RcodeNameError, dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotAuth} {
			r := newResolver(t, ResolverConfig{}, dnsServer(t, dnsAnswering(rcode, nil, nil)))
			if a := dnsExchange(t, r, dnsQuery("a.example.", dns.TypeA), false); a.Rcode != rcode {
				t.Errorf("rcode %d became %d", rcode, a.Rcode)
			}
		}
		r := newResolver(t, ResolverConfig{}, dnsServer(t, func(dns.ResponseWriter, *dns.Msg) {}))
		if a := dnsExchange(t, r, dnsQuery("a.example.", dns.TypeA), false); a.Rcode != dns.RcodeServerFailure {
			t.Errorf("silence became %v", a)
		}
	})
	t.Run("before EDNS", func(t *testing.T) {
		for _, full := range []bool{true, false} {
			r := newResolver(t, ResolverConfig{}, dnsServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
				if q.IsEdns0() != nil {
					m := new(dns.Msg)
					m.SetRcode(q, dns.RcodeFormatError)
					if !full {
						m.Question = nil
					}
					w.WriteMsg(m)
					return
				}
				dnsAnswering(0, []dns.RR{dnsRR(t, "a.example. 60 IN A 192.0.2.1")}, nil)(w, q)
			}))
			if a := dnsExchange(t, r, dnsQuery("a.example.", dns.TypeA), false); len(a.Answer) != 1 {
				t.Errorf("header only %v: %v", !full, a)
			}
		}
	})
}

func TestDNSCacheTTL(t *testing.T) {
	var asked atomic.Int32
	soa := dnsRR(t, "example. 900 IN SOA ns.example. mail.example. 1 2 3 4 30")
	answers := map[string]dns.HandlerFunc{
		"pos.example.":   dnsAnswering(0, []dns.RR{dnsRR(t, "pos.example. 100 IN CNAME x.example."), dnsRR(t, "x.example. 50 IN A 192.0.2.1")}, nil),
		"nx.example.":    dnsAnswering(dns.RcodeNameError, nil, []dns.RR{soa}),
		"nod.example.":   dnsAnswering(0, nil, []dns.RR{soa}),
		"nosoa.example.": dnsAnswering(dns.RcodeNameError, nil, nil),
		"zero.example.":  dnsAnswering(0, []dns.RR{dnsRR(t, "zero.example. 0 IN A 192.0.2.1")}, nil),
		"neg.example.":   dnsAnswering(0, []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "neg.example.", Rrtype: dns.TypeA, Class: 1, Ttl: 1 << 31}, A: net.IPv4(1, 2, 3, 4)}}, nil),
		"fail.example.":  dnsAnswering(dns.RcodeServerFailure, nil, nil),
	}
	var mu sync.Mutex
	now := time.Unix(1000, 0)
	r := newResolver(t, ResolverConfig{now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }}, dnsServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		answers[q.Question[0].Name](w, q)
	}))
	pass := func(d time.Duration) { mu.Lock(); now = now.Add(d); mu.Unlock() }
	for name, ttl := range map[string]time.Duration{
		"pos.example.": 50 * time.Second, "nx.example.": 30 * time.Second, "nod.example.": 30 * time.Second,
		"nosoa.example.": 0, "zero.example.": 0, "neg.example.": 0, "fail.example.": time.Second,
	} {
		t.Run(name, func(t *testing.T) {
			first := dnsExchange(t, r, dnsQuery(name, dns.TypeA), false)
			n := asked.Load()
			if ttl > 0 {
				pass(ttl - 300*time.Millisecond)
				again := dnsExchange(t, r, dnsQuery(name, dns.TypeA), false)
				if asked.Load() != n {
					t.Fatal("not cached")
				}
				for i, rr := range again.Answer {
					if want := first.Answer[i].Header().Ttl - uint32(ttl/time.Second) + 1; rr.Header().Ttl != want {
						t.Errorf("TTL %d, want %d", rr.Header().Ttl, want)
					}
				}
				pass(300 * time.Millisecond)
			}
			if dnsExchange(t, r, dnsQuery(name, dns.TypeA), false); asked.Load() == n {
				t.Error("cached for too long")
			}
		})
	}
}

func TestDNSCacheBounds(t *testing.T) {
	r := newResolver(t, ResolverConfig{CacheEntries: 50, CacheBytes: 10_000}, dnsServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		dnsAnswering(0, []dns.RR{dnsRR(t, q.Question[0].Name+" 60 IN TXT "+strings.Repeat("x", 200))}, nil)(w, q)
	}))
	for i := range 100 {
		dnsExchange(t, r, dnsQuery(fmt.Sprintf("n%d.example.", i), dns.TypeTXT), false)
		if s := r.Stats(); s.CacheEntries > 50 || s.CacheBytes > 10_000 {
			t.Fatalf("%+v", s)
		}
	}
	s := r.Stats()
	if s.CacheEntries < 10 {
		t.Errorf("%+v", s)
	}
	dnsExchange(t, r, dnsQuery("n99.example.", dns.TypeTXT), false)
	if r.Stats().CacheHits != 1 {
		t.Error("the newest entry is gone")
	}
	r.cache.clear()
	if s := r.Stats(); s.CacheEntries != 0 || s.CacheBytes != 0 {
		t.Errorf("after clear: %+v", s)
	}
}

func TestDNSSingleFlightAndBounds(t *testing.T) {
	var asked atomic.Int32
	release := make(chan struct{})
	r := newResolver(t, ResolverConfig{Timeout: 5 * time.Second, MaxPerClient: 20, MaxUpstream: 25}, dnsServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		<-release
		dnsAnswering(0, []dns.RR{dnsRR(t, "a.example. 0 IN A 192.0.2.1")}, nil)(w, q)
	}))
	var wg sync.WaitGroup
	ask := func(from string, name string, tcp bool, got *atomic.Int32) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			b, _ := dnsQuery(name, dns.TypeA).Pack()
			if out := r.Exchange(context.Background(), b, mustAddr(from), tcp); out != nil && out[3]&15 == 0 {
				got.Add(1)
			}
		}()
	}
	eventually := func(what string, f func() bool) {
		t.Helper()
		for range 500 {
			if f() {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("%s: %+v", what, r.Stats())
	}
	var same, others atomic.Int32
	for range 20 {
		ask("10.1.2.2", "a.example.", false, &same)
	}
	eventually("sharing", func() bool { s := r.Stats(); return s.Upstream == 1 && s.Shared == 19 && asked.Load() == 1 })
	b, _ := dnsQuery("other.example.", dns.TypeA).Pack()
	if out := r.Exchange(t.Context(), b, dnsClient, false); out != nil {
		t.Errorf("over a client's bound: %x", out)
	}
	if out := r.Exchange(t.Context(), b, dnsClient, true); out == nil || out[3]&15 != dns.RcodeServerFailure {
		t.Errorf("over a client's bound, by TCP: %x", out)
	}
	for i := range 30 {
		ask(fmt.Sprintf("10.1.3.%d", i), fmt.Sprintf("n%d.example.", i), false, &others)
	}
	eventually("global bound", func() bool { return r.Stats().Dropped == 2+6 })
	// A client that hangs up is charged for what it started.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r.Exchange(ctx, b, mustAddr("10.1.3.3"), false) != nil || r.Stats().Dropped != 9 {
		t.Error("a cancelled query got in over the bound")
	}
	close(release)
	wg.Wait()
	if same.Load() != 20 || others.Load() != 24 {
		t.Errorf("%d and %d answers", same.Load(), others.Load())
	}
	r.Close()
	if len(r.flights) != 0 || r.alone != 0 || len(r.clients) != 0 {
		t.Errorf("left over: %d flights, %d alone, clients %v", len(r.flights), r.alone, r.clients)
	}
	if out := r.Exchange(t.Context(), b, dnsClient, false); out != nil {
		t.Errorf("after Close: %x", out)
	}
}

func TestDNSCloseEndsQueries(t *testing.T) {
	before := runtime.NumGoroutine()
	srv, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	r := newResolver(t, ResolverConfig{Timeout: time.Minute}, srv.LocalAddr().(*net.UDPAddr).AddrPort())
	done := make(chan []byte)
	go func() {
		b, _ := dnsQuery("a.example.", dns.TypeA).Pack()
		done <- r.Exchange(context.Background(), b, dnsClient, false)
	}()
	srv.ReadFrom(make([]byte, 512))
	start := time.Now()
	r.Close()
	if out := <-done; out == nil || out[3]&15 != dns.RcodeServerFailure || time.Since(start) > 5*time.Second {
		t.Errorf("%x after %v", out, time.Since(start))
	}
	for range 100 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
}

// TestDNSFollowsHost: the servers of resolv.conf, on loopback addresses.
func TestDNSFollowsHost(t *testing.T) {
	one := dnsServer(t, dnsAnswering(0, []dns.RR{dnsRR(t, "a.example. 600 IN A 192.0.2.1")}, nil))
	two := dnsServer(t, dnsAnswering(0, []dns.RR{dnsRR(t, "a.example. 600 IN A 192.0.2.2")}, nil))
	path := filepath.Join(t.TempDir(), "resolv.conf")
	var mu sync.Mutex
	now := time.Unix(1000, 0)
	var tcpOnly atomic.Bool
	r := newResolver(t, ResolverConfig{
		ResolvConf: path,
		now:        func() time.Time { mu.Lock(); defer mu.Unlock(); now = now.Add(resolvCheck); return now },
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if tcpOnly.Load() && network != "tcp" {
				t.Errorf("asked by %s in spite of use-vc", network)
			}
			real := map[string]string{"127.0.0.53:53": one.String(), "[fe80::1%eth0]:53": two.String()}[address]
			return (&net.Dialer{}).DialContext(ctx, network, real)
		},
	})
	ask := func(what, want string) {
		t.Helper()
		a := dnsExchange(t, r, dnsQuery("a.example.", dns.TypeA), false)
		if want == "" {
			if a.Rcode != dns.RcodeServerFailure {
				t.Errorf("%s: %v", what, a)
			}
		} else if len(a.Answer) != 1 || a.Answer[0].(*dns.A).A.String() != want {
			t.Errorf("%s: %v, want %s", what, a, want)
		}
	}
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	ask("no file", "")
	write("nameserver 127.0.0.53\n")
	ask("the stub", "192.0.2.1")
	write("nameserver fe80::1%eth0\noptions use-vc\n")
	tcpOnly.Store(true)
	ask("another server, nothing from the cache of the first", "192.0.2.2")
	os.Remove(path)
	ask("file gone, and its answers with it", "")
}

func FuzzExchange(f *testing.F) {
	for _, m := range []*dns.Msg{dnsQuery("host.sbx.internal.", dns.TypeA), dnsQuery("a.example.", dns.TypeAAAA), dnsQuery("2.2.1.10.in-addr.arpa.", dns.TypePTR), dnsQuery(".", dns.TypeANY)} {
		b, _ := m.Pack()
		f.Add(b, true)
		m.SetEdns0(1232, true)
		b, _ = m.Pack()
		f.Add(b, false)
	}
	f.Add([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1}, false)
	// What comes back is as hostile: the query itself with QR set, which lets
	// the fuzzer write the answer's records, and a fixed answer.
	r := newResolver(f, ResolverConfig{Timeout: 20 * time.Millisecond, Dial: func(context.Context, string, string) (net.Conn, error) {
		a, b := net.Pipe()
		go func() {
			defer b.Close()
			buf := make([]byte, 65536)
			if n, err := b.Read(buf); err == nil && n >= 12 {
				buf[2] |= 0x80
				b.Write(buf[:n])
			}
		}()
		return a, nil
	}}, netip.MustParseAddrPort("127.0.0.1:53"))
	f.Fuzz(func(t *testing.T, b []byte, tcp bool) {
		out := r.Exchange(t.Context(), b, dnsClient, tcp)
		if out == nil {
			return
		}
		if len(b) < 12 || binary.BigEndian.Uint16(out) != binary.BigEndian.Uint16(b) || out[2]&0x80 == 0 || !tcp && len(out) > maxUDPAnswer {
			t.Fatalf("%x answered with %x", b, out)
		}
		if err := new(dns.Msg).Unpack(out); err != nil {
			t.Fatalf("%x answered with %x: %v", b, out, err)
		}
	})
}

// FuzzUpstream feeds an arbitrary answer to a question.
func FuzzUpstream(f *testing.F) {
	m := new(dns.Msg)
	m.SetReply(dnsQuery("a.example.", dns.TypeA))
	m.Answer = []dns.RR{dnsRR(f, "a.example. 60 IN A 192.0.2.1"), dnsRR(f, "a.example. 60 IN TXT x")}
	m.SetEdns0(1232, true)
	b, _ := m.Pack()
	f.Add(b)
	f.Add(b[:12])
	f.Fuzz(func(t *testing.T, answer []byte) {
		r, err := NewResolver(ResolverConfig{Timeout: 20 * time.Millisecond, Servers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")},
			Dial: func(_ context.Context, network, _ string) (net.Conn, error) {
				a, b := net.Pipe()
				go func() {
					defer b.Close()
					buf := make([]byte, 4096)
					if network == "tcp" {
						b.Read(buf[:2])
					}
					if n, err := b.Read(buf); err == nil && n >= 2 && len(answer) >= 2 {
						b.Write(append(buf[:2:2], answer[2:]...))
					}
				}()
				return a, nil
			}})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for range 2 { // the second perhaps from the cache
			a := dnsExchange(t, r, dnsQuery("a.example.", dns.TypeA), false)
			if len(a.Question) != 1 {
				t.Fatal(a)
			}
		}
	})
}

func BenchmarkExchangeCached(b *testing.B) {
	r := newResolver(b, ResolverConfig{}, dnsServer(b, dnsAnswering(0, []dns.RR{dnsRR(b, "a.example. 600 IN A 192.0.2.1")}, nil)))
	q, _ := dnsQuery("a.example.", dns.TypeA).Pack()
	r.Exchange(b.Context(), q, dnsClient, false)
	for b.Loop() {
		if r.Exchange(b.Context(), q, dnsClient, false) == nil {
			b.Fatal("no answer")
		}
	}
}

// TestDNSCachedRate: the bound is a fifth of what a slow machine does.
func TestDNSCachedRate(t *testing.T) {
	r := newResolver(t, ResolverConfig{}, dnsServer(t, dnsAnswering(0, []dns.RR{dnsRR(t, "a.example. 600 IN A 192.0.2.1")}, nil)))
	q, _ := dnsQuery("a.example.", dns.TypeA).Pack()
	r.Exchange(t.Context(), q, dnsClient, false)
	const n = 20_000
	start := time.Now()
	for range n {
		if r.Exchange(t.Context(), q, dnsClient, false) == nil {
			t.Fatal("no answer")
		}
	}
	if rate := n / time.Since(start).Seconds(); rate < 20_000 {
		t.Errorf("%.0f answers a second from the cache, want 20000", rate)
	}
	if s := r.Stats(); s.CacheHits != n || s.Upstream != 1 {
		t.Errorf("%+v", s)
	}
}
