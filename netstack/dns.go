package netstack

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// The way of a query, which is also the order of the functions:
//
//	Exchange   header checks, refusals              dns.go
//	  zone     names and addresses of the network   dns_zone.go
//	  cache    answers still valid                  dns_cache.go
//	  resolve  one upstream query per question      dns.go
//	  ask      the host's servers, as they are now  dns_forward.go
//	finish     truncation, EDNS, the client's id    dns.go
//
// Limits: a query of 4096 bytes, an answer by UDP of 4096; 256 unanswered queries
// of one client, 512 questions upstream; a cache of 4096 answers and 4 MiB, each
// answer of at most 16 KiB, for a day at most, an hour if negative, a second if a
// failure; 4096 owners of records with 64 names and 16 addresses each. The host's
// file is looked at once a second at most; three servers of it are asked. What is
// over a bound is counted in ResolverStats.

const (
	// maxQuery bounds a query; real ones are below 600 bytes even with cookies.
	maxQuery = 4096
	// ednsSize is what we offer upstream: the size that avoids fragments.
	ednsSize = 1232
	// maxUDPAnswer bounds an answer by UDP, whatever the client offers.
	maxUDPAnswer = 4096
	// localTTL is short: sandboxes come and go.
	localTTL = 5
)

// ResolverConfig describes a network's name server.
type ResolverConfig struct {
	// Gateway4 and Gateway6 are what host.sbx.internal stands for. Zero: the
	// name exists without an address of that family.
	Gateway4, Gateway6 netip.Addr
	// Subnets are the network's own. Reverse names within them never leave it.
	Subnets []netip.Prefix
	// ResolvConf is the file to follow. Empty: /etc/resolv.conf.
	ResolvConf string
	// Servers are asked in place of those in ResolvConf, if not empty.
	Servers []netip.AddrPort
	// Port is the port of the servers in ResolvConf. Zero: 53.
	Port uint16
	// Timeout for one server's answer. Zero: 2 s, so that a guest whose libc
	// gives up after 5 s still hears from the second server. The timeout option
	// in ResolvConf goes before it.
	Timeout time.Duration
	// Dial opens a connection to a server. Nil: a net.Dialer in this process's
	// network namespace.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// CacheEntries and CacheBytes bound the cache. Zero: 4096 and 4 MiB.
	// Negative entries: no cache.
	CacheEntries, CacheBytes int
	// MaxPerClient bounds one client's unanswered queries, MaxUpstream the
	// questions asked upstream at a time. Zero: 256 and 512. What exceeds them
	// is dropped (UDP) or answered with SERVFAIL (TCP), and counted.
	MaxPerClient, MaxUpstream int
	// Logger; nil discards.
	Logger *slog.Logger

	now func() time.Time // tests
}

// ResolverStats counts what a Resolver did.
type ResolverStats struct {
	Queries, Local, CacheHits, Shared, Upstream, UpstreamFailed uint64
	// Malformed counts what was no query; Refused what we do not do; Dropped
	// what exceeded a bound; Spoofed upstream packets that answered no question.
	Malformed, Refused, Dropped, Spoofed uint64
	CacheEntries, CacheBytes             int
}

// Resolver is a network's name server: its own names first, then the host's
// resolvers. It implements DNSHandler.
type Resolver struct {
	cfg   ResolverConfig
	log   *slog.Logger
	zone  zone
	cache dnsCache
	host  *hostResolv
	bad   badServers

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	flying sync.WaitGroup

	mu      sync.Mutex // guards what follows
	closed  bool
	flights map[cacheKey]*flight
	alone   int // flights that are nobody else's, not in the map
	clients map[netip.Addr]int

	count struct {
		queries, local, shared, upstream, failed    atomic.Uint64
		malformed, refused, dropped, spoofed, cache atomic.Uint64
	}
}

// ErrResolverClosed is returned by what is called after Close.
var ErrResolverClosed = errors.New("the resolver is closed")

// NewResolver makes a resolver; it starts nothing and reads no file yet.
func NewResolver(cfg ResolverConfig) (*Resolver, error) {
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = "/etc/resolv.conf"
	}
	if cfg.Port == 0 {
		cfg.Port = 53
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 2 * time.Second
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	if cfg.CacheEntries == 0 {
		cfg.CacheEntries = 4096
	}
	if cfg.CacheBytes <= 0 {
		cfg.CacheBytes = 4 << 20
	}
	if cfg.MaxPerClient <= 0 {
		cfg.MaxPerClient = 256
	}
	if cfg.MaxUpstream <= 0 {
		cfg.MaxUpstream = 512
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.now == nil {
		cfg.now = bootTime
	}
	for _, p := range cfg.Subnets {
		if !p.IsValid() {
			return nil, errors.New("resolver: an invalid subnet")
		}
	}
	r := &Resolver{
		cfg:     cfg,
		log:     cfg.Logger,
		host:    &hostResolv{path: cfg.ResolvConf, log: cfg.Logger, now: cfg.now},
		flights: map[cacheKey]*flight{},
		clients: map[netip.Addr]int{},
	}
	r.zone.init(cfg)
	r.cache.init(cfg.CacheEntries, cfg.CacheBytes, cfg.now)
	r.bad.now = cfg.now
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r, nil
}

// bootTime goes on while the machine is suspended, as TTLs do, and does not
// jump when somebody sets the clock.
func bootTime() time.Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Now()
	}
	return time.Unix(ts.Unix())
}

// Close ends the queries under way and waits for them.
func (r *Resolver) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.flying.Wait()
	return nil
}

// Stats returns the counters.
func (r *Resolver) Stats() ResolverStats {
	c := &r.count
	s := ResolverStats{
		Queries: c.queries.Load(), Local: c.local.Load(), CacheHits: c.cache.Load(), Shared: c.shared.Load(),
		Upstream: c.upstream.Load(), UpstreamFailed: c.failed.Load(), Malformed: c.malformed.Load(),
		Refused: c.refused.Load(), Dropped: c.dropped.Load(), Spoofed: c.spoofed.Load(),
	}
	s.CacheEntries, s.CacheBytes = r.cache.size()
	return s
}

// Exchange answers one query. It may block for as long as the host's servers
// take, or until ctx ends.
func (r *Resolver) Exchange(ctx context.Context, query []byte, from netip.Addr, tcp bool) []byte {
	r.count.queries.Add(1)
	req, rcode, ok := parseQuery(query)
	if !ok {
		r.count.malformed.Add(1)
		return nil
	}
	if rcode != dns.RcodeSuccess {
		r.count.malformed.Add(1)
		return headerReply(query, rcode)
	}
	opt := req.IsEdns0()
	if opt != nil && opt.Version() != 0 {
		return finish(req, &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeBadVers}}, tcp)
	}
	q := req.Question[0]
	if rcode := refuse(q); rcode != dns.RcodeSuccess {
		r.count.refused.Add(1)
		return finish(req, &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: rcode}}, tcp)
	}
	if m := r.zone.answer(q); m != nil {
		r.count.local.Add(1)
		return finish(req, m, tcp)
	}
	if q.Qtype == dns.TypeANY {
		// RFC 8482: no server gives all types, and the answer is an amplifier.
		return finish(req, &dns.Msg{Answer: []dns.RR{&dns.HINFO{
			Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeHINFO, Class: q.Qclass, Ttl: 3600}, Cpu: "RFC8482"}}}, tcp)
	}
	return r.exchangeUpstream(ctx, req, from.Unmap().WithZone(""), tcp)
}

// parseQuery checks a query from a hostile sender. ok false: do not answer.
func parseQuery(b []byte) (*dns.Msg, int, bool) {
	if len(b) < 12 || b[2]&0x80 != 0 { // no header, or itself an answer
		return nil, 0, false
	}
	if opcode := b[2] >> 3 & 15; opcode != dns.OpcodeQuery {
		return nil, dns.RcodeNotImplemented, true
	}
	// One question, no answers, at most an OPT and a signature. The counts are
	// checked first, so that nothing is unpacked for a lie.
	count := func(i int) int { return int(b[i])<<8 | int(b[i+1]) }
	if len(b) > maxQuery || count(4) != 1 || count(6) != 0 || count(8) != 0 || count(10) > 2 {
		return nil, dns.RcodeFormatError, true
	}
	m := new(dns.Msg)
	// miekg/dns stops in silence where the message ends early.
	if m.Unpack(b) != nil || len(m.Question) != 1 || len(m.Extra) != count(10) {
		return nil, dns.RcodeFormatError, true
	}
	opts := 0
	for _, rr := range m.Extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			continue
		}
		if opts++; opts > 1 || rr.Header().Name != "." {
			return nil, dns.RcodeFormatError, true
		}
	}
	return m, dns.RcodeSuccess, true
}

// headerReply answers what could not be parsed: the id and flags, no question.
func headerReply(query []byte, rcode int) []byte {
	out := make([]byte, 12)
	copy(out, query[:4])
	out[2] = out[2]&0x79 | 0x80 // keep opcode and RD, set QR
	out[3] = 0x80 | byte(rcode) // RA
	return out
}

// refuse says no to what a forwarder does not do.
func refuse(q dns.Question) int {
	switch q.Qtype {
	case dns.TypeAXFR, dns.TypeIXFR, dns.TypeMAILA, dns.TypeMAILB:
		return dns.RcodeRefused
	case dns.TypeNone, dns.TypeOPT, dns.TypeTSIG, dns.TypeTKEY:
		return dns.RcodeFormatError
	}
	if q.Qclass != dns.ClassINET {
		return dns.RcodeRefused
	}
	return dns.RcodeSuccess
}

// exchangeUpstream answers from the cache or from the host's servers.
func (r *Resolver) exchangeUpstream(ctx context.Context, req *dns.Msg, from netip.Addr, tcp bool) []byte {
	servfail := func() []byte {
		return finish(req, &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeServerFailure}}, tcp)
	}
	conf, err := r.servers()
	if err != nil {
		return servfail()
	}
	key, shared := keyOf(req)
	if shared {
		if m := r.cache.get(key); m != nil {
			r.count.cache.Add(1)
			return finish(req, m, tcp)
		}
	}
	f, joined := r.enter(from, key, shared, req, conf)
	if f == nil {
		r.count.dropped.Add(1)
		if tcp {
			return servfail()
		}
		return nil // the client asks again, when there is room
	}
	if joined {
		defer r.leave(from)
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		return nil
	}
	m := new(dns.Msg)
	if f.wire == nil || m.Unpack(f.wire) != nil {
		return servfail()
	}
	if m.Truncated && tcp {
		return servfail() // there is no larger answer to be had
	}
	return finish(req, m, tcp)
}

// servers are those to ask now, and how.
func (r *Resolver) servers() (upstreamConf, error) {
	if len(r.cfg.Servers) > 0 {
		return upstreamConf{servers: r.cfg.Servers, timeout: r.cfg.Timeout, attempts: 2}, nil
	}
	c, changed, err := r.host.get()
	if changed {
		// Another network gives other answers (a VPN, a captive portal).
		r.cache.clear()
		r.disown()
	}
	if err != nil {
		return upstreamConf{}, err
	}
	u := upstreamConf{timeout: c.timeout(r.cfg.Timeout), attempts: c.attempts()}
	if _, ok := c.Option("timeout"); !ok {
		u.timeout = r.cfg.Timeout
	}
	_, u.rotate = c.Option("rotate")
	_, u.tcp = c.Option("use-vc")
	for _, a := range c.Nameservers {
		u.servers = append(u.servers, netip.AddrPortFrom(a, r.cfg.Port))
	}
	return u, nil
}

// flight is one question under way; all who ask the same wait for it.
type flight struct {
	done chan struct{}
	wire []byte // set before done is closed; nil if no server answered
}

// enter joins or starts the flight for a question; nil if a bound is reached.
// Who joined leaves; who started is charged until the flight ends, or a client
// that hangs up at once could take every place.
func (r *Resolver) enter(from netip.Addr, key cacheKey, shared bool, req *dns.Msg, conf upstreamConf) (f *flight, joined bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.clients[from] >= r.cfg.MaxPerClient {
		return nil, false
	}
	if f := r.flights[key]; f != nil && shared {
		r.count.shared.Add(1)
		r.clients[from]++
		return f, true
	}
	if len(r.flights)+r.alone >= r.cfg.MaxUpstream {
		return nil, false
	}
	f = &flight{done: make(chan struct{})}
	if shared {
		r.flights[key] = f
	} else {
		r.alone++
	}
	r.clients[from]++
	r.flying.Add(1)
	r.count.upstream.Add(1)
	go r.resolve(f, from, key, req, conf)
	return f, false
}

// disown makes the flights under way nobody else's: they ask the servers of
// before.
func (r *Resolver) disown() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.alone += len(r.flights)
	clear(r.flights)
}

func (r *Resolver) leave(from netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.uncharge(from)
}

func (r *Resolver) uncharge(from netip.Addr) {
	if r.clients[from]--; r.clients[from] <= 0 {
		delete(r.clients, from)
	}
}

// resolve asks upstream. It outlives the client that started it: others may
// have joined, and the answer goes into the cache anyway.
func (r *Resolver) resolve(f *flight, from netip.Addr, key cacheKey, req *dns.Msg, conf upstreamConf) {
	defer r.flying.Done()
	epoch := r.cache.epochNow()
	m, err := r.ask(r.ctx, upstreamQuery(req), conf)
	if err != nil {
		r.count.failed.Add(1)
		r.log.Debug("no name server answered", "name", req.Question[0].Name, "err", err)
	} else if wire, err := compressed(m).Pack(); err != nil {
		r.count.failed.Add(1)
		r.log.Debug("unusable answer", "name", req.Question[0].Name, "err", err)
	} else {
		f.wire = wire
		if _, shared := keyOf(req); shared && !m.Truncated {
			r.cache.put(key, m, wire, epoch)
		}
	}
	r.mu.Lock()
	r.uncharge(from)
	if r.flights[key] == f {
		delete(r.flights, key)
	} else {
		r.alone--
	}
	r.mu.Unlock()
	close(f.done)
}

func compressed(m *dns.Msg) *dns.Msg {
	m.Compress = true
	return m
}

// keyOf is what makes two queries the same. shared is false for a query with
// options whose answer may depend on them (client subnet and the like).
func keyOf(req *dns.Msg) (key cacheKey, shared bool) {
	q := req.Question[0]
	key = cacheKey{name: strings.ToLower(q.Name), typ: q.Qtype, rd: req.RecursionDesired, cd: req.CheckingDisabled, ad: req.AuthenticatedData}
	if opt := req.IsEdns0(); opt != nil {
		key.do = opt.Do()
		return key, len(endToEnd(opt.Option)) == 0
	}
	return key, true
}

// finish makes m the answer to req: its id, question and flags, EDNS only if
// the client used it, and no longer than it can take.
func finish(req, m *dns.Msg, tcp bool) []byte {
	m.Id, m.Response, m.Opcode = req.Id, true, dns.OpcodeQuery
	m.RecursionDesired, m.CheckingDisabled = req.RecursionDesired, req.CheckingDisabled
	m.RecursionAvailable = true
	m.Question = req.Question // with the letters as the client wrote them
	m.Compress = true
	size := dns.MinMsgSize
	opt, have := req.IsEdns0(), m.IsEdns0()
	m.Extra = withoutOPT(m.Extra)
	if opt != nil {
		size = min(max(size, int(opt.UDPSize())), maxUDPAnswer)
		out := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		out.SetUDPSize(ednsSize)
		out.SetDo(opt.Do())
		if have != nil {
			out.Option = endToEnd(have.Option)
		}
		m.Extra = append(m.Extra, out)
		if !opt.Do() && !req.AuthenticatedData {
			m.AuthenticatedData = false // RFC 6840, 5.8
		}
	} else {
		if m.Rcode > 15 {
			m.Rcode = dns.RcodeServerFailure // an extended code needs EDNS
		}
		if !req.AuthenticatedData {
			m.AuthenticatedData = false
		}
	}
	if tcp {
		size = dns.MaxMsgSize
	}
	wasTruncated := m.Truncated
	if m.Len() > size {
		m.Truncate(size)
	}
	m.Truncated = m.Truncated || wasTruncated
	out, err := m.Pack()
	if err != nil || len(out) > size {
		// An answer that cannot be written down again, such as a record type
		// whose data the library reads but does not print.
		e := &dns.Msg{MsgHdr: dns.MsgHdr{Id: req.Id, Response: true, RecursionDesired: req.RecursionDesired,
			RecursionAvailable: true, Rcode: dns.RcodeServerFailure}, Question: req.Question}
		if out, err = e.Pack(); err != nil {
			return nil
		}
	}
	return out
}

func withoutOPT(extra []dns.RR) []dns.RR {
	var out []dns.RR
	for _, rr := range extra {
		switch rr.Header().Rrtype {
		case dns.TypeOPT, dns.TypeTSIG, dns.TypeSIG:
		default:
			out = append(out, rr)
		}
	}
	return out
}

// endToEnd leaves out the EDNS options that are between two neighbours only.
func endToEnd(opts []dns.EDNS0) []dns.EDNS0 {
	var out []dns.EDNS0
	for _, o := range opts {
		switch o.Option() {
		case dns.EDNS0COOKIE, dns.EDNS0TCPKEEPALIVE, dns.EDNS0PADDING:
		default:
			out = append(out, o)
		}
	}
	return out
}
