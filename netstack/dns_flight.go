package netstack

import (
	"context"
	"net/netip"

	"github.com/miekg/dns"
)

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
		r.count.dropped.Add(1)
		return nil, false
	}
	if f := r.flights[key]; f != nil && shared {
		r.count.shared.Add(1)
		r.clients[from]++
		return f, true
	}
	if len(r.flights)+r.alone >= r.cfg.MaxUpstream {
		r.count.dropped.Add(1)
		return nil, false
	}
	if !r.mayAsk(from) {
		r.count.limited.Add(1)
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

// maxRates bounds the clients whose rate is known.
const maxRates = 4096

// mayAsk tells whether a client may have another question asked now. r.mu is held.
func (r *Resolver) mayAsk(from netip.Addr) bool {
	b := r.rates[from]
	if b == nil {
		if len(r.rates) >= maxRates {
			clear(r.rates) // of those that have gone, mostly
		}
		b = new(budget)
		r.rates[from] = b
	}
	return b.take(1, r.cfg.MaxRate, r.cfg.now())
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
	if err == nil {
		m = r.checkInside(m, from)
	}
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
