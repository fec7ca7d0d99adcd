package netstack

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The way of a query, which is also the order of the functions:
//
//	Exchange   header checks, refusals              dns_query.go
//	  zone     names and addresses of the network   dns_zone.go
//	  settle   names that are about to come         dns_settle.go
//	  peers    those of the client's other networks dns_peers.go
//	  cache    answers still valid                  dns_cache.go
//	  resolve  one upstream query per question      dns_flight.go
//	  ask      the host's servers, as they are now  dns_forward.go
//	  inside addresses that are not the Internet's dns_rebind.go
//	finish     truncation, EDNS, the client's id    dns_finish.go
//
// Limits: a query of 4096 bytes, an answer by UDP of 4096; 256 unanswered queries
// of one client, 1000 of them a second upstream, 512 questions upstream at a time,
// 256 that wait for a name to come; a cache of 4096 answers and 4 MiB, each
// answer of at most 16 KiB, for a day at most, an hour if negative, a second if a
// failure; 4096 owners of records with 64 names, 16 addresses and 256 services each.
// The host's file is looked at ten times a second at most; three servers of it are
// asked. What is over a bound is counted in ResolverStats.

const (
	// maxQuery bounds a query; real ones are below 600 bytes even with cookies.
	maxQuery = 4096
	// ednsSize is what we offer upstream: the size that avoids fragments.
	ednsSize = 1232
	// maxUDPAnswer bounds an answer by UDP, whatever the client offers.
	maxUDPAnswer = 4096
	// localTTL: sandboxes come and go, so nobody is to keep what we say of them,
	// not even that there is nothing.
	localTTL = 0
)

// ResolverConfig describes a network's name server.
type ResolverConfig struct {
	// Gateway4 and Gateway6 are what host.sbx.internal stands for. Zero: the
	// name exists without an address of that family.
	Gateway4, Gateway6 netip.Addr
	// Subnets are the network's own. Reverse names within them never leave it.
	Subnets []netip.Prefix
	// Network is the network's name: NAME.NETWORK is the same as NAME. Empty: only
	// NAME and NAME.sbx.internal are.
	Network string
	// Internal asks nobody outside: other names than those of the zone and of Peers
	// fail (SERVFAIL).
	Internal bool
	// Peers, if not nil, gives what is asked for what this zone does not have, before
	// the host's servers are: with a query of one question, for what Local says on the
	// client's other networks, or nil; unsure if one of them does not know yet. For a
	// client without others it gives nil. Both are called on many goroutines at once;
	// what it gives must return when ctx ends, a second later at most.
	Peers func(client netip.Addr) func(ctx context.Context, query []byte) (answer []byte, unsure bool)
	// Settle is how long after the start the zone may lack names that it is about to
	// have, those of sandboxes that a killed process has served: who asks for one waits,
	// and is told to ask again (SERVFAIL) if it has not come after 4 s.
	Settle time.Duration
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
	// MaxRate bounds how many of one client's questions leave the host in a second:
	// those that are not in the cache. Zero: 1000, a fifth of them at once. What exceeds
	// it is dropped likewise, and counted.
	MaxRate int
	// RefuseInside gives no address for a name from outside that has one of a private
	// network, a link or a loopback.
	RefuseInside bool
	// Logger; nil discards.
	Logger *slog.Logger

	now func() time.Time // tests
}

// ResolverStats counts what a Resolver did.
type ResolverStats struct {
	Queries, Local, Peers, CacheHits, Shared, Upstream, UpstreamFailed uint64
	// Malformed counts what was no query; Refused what we do not do; Dropped
	// what exceeded a bound, Limited what exceeded MaxRate; Spoofed upstream packets
	// that answered no question.
	Malformed, Refused, Dropped, Limited, Spoofed uint64
	// Inside counts answers from outside with an address of a private network, a
	// link or a loopback: names of a company, or DNS rebinding.
	Inside                   uint64
	CacheEntries, CacheBytes int
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
	young settling

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	flying sync.WaitGroup

	mu      sync.Mutex // guards what follows
	closed  bool
	flights map[cacheKey]*flight
	alone   int // flights that are nobody else's, not in the map
	clients map[netip.Addr]int
	rates   map[netip.Addr]*budget

	insideLogged atomic.Pointer[time.Time]

	count struct {
		queries, local, peers, shared, upstream, failed     atomic.Uint64
		malformed, refused, dropped, spoofed, inside, cache atomic.Uint64
		limited                                             atomic.Uint64
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
	if cfg.MaxRate <= 0 {
		cfg.MaxRate = 1000
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
		rates:   map[netip.Addr]*budget{},
	}
	r.zone.init(cfg)
	r.cache.init(cfg.CacheEntries, cfg.CacheBytes, cfg.now)
	r.bad.now = cfg.now
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.young.begin(cfg.Settle)
	return r, nil
}

// bootTime goes on while the machine is suspended, as TTLs do, and does not
// jump when somebody sets the clock.
func bootTime() time.Time {
	var ts unix.Timespec
	// It does not block, and the scheduler need not know.
	if _, _, errno := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_BOOTTIME, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
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
		Queries: c.queries.Load(), Local: c.local.Load(), Peers: c.peers.Load(), CacheHits: c.cache.Load(), Shared: c.shared.Load(),
		Upstream: c.upstream.Load(), UpstreamFailed: c.failed.Load(), Malformed: c.malformed.Load(),
		Refused: c.refused.Load(), Dropped: c.dropped.Load(), Limited: c.limited.Load(), Spoofed: c.spoofed.Load(), Inside: c.inside.Load(),
	}
	s.CacheEntries, s.CacheBytes = r.cache.size()
	return s
}
