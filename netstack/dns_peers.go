package netstack

import (
	"context"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// peersTimeout is how long the other networks of a client are waited for: they
// are processes of the same machine.
const peersTimeout = time.Second

// has tells whether the zone has a name, be it without the record asked for.
func has(m *dns.Msg) bool { return m != nil && m.Rcode == dns.RcodeSuccess }

// Local answers a query from the network's own names alone, for a sandbox of this
// network that asks on another one. It returns nil for a name that it does not have.
func (r *Resolver) Local(query []byte) []byte {
	req, rcode, ok := parseQuery(query)
	if !ok || rcode != dns.RcodeSuccess || refuse(req.Question[0]) != dns.RcodeSuccess {
		r.count.malformed.Add(1)
		return nil
	}
	m := r.zone.answer(req.Question[0])
	if !has(m) {
		return nil
	}
	r.count.local.Add(1)
	return finish(req, m, true)
}

// askPeers asks the client's other networks, and returns nil if none of them has
// the name; unsure if one of them does not know yet.
func (r *Resolver) askPeers(ctx context.Context, q dns.Question, client netip.Addr) (answer *dns.Msg, unsure bool) {
	if r.cfg.Peers == nil {
		return nil, false
	}
	ask := r.cfg.Peers(client.Unmap().WithZone(""))
	if ask == nil {
		return nil, false
	}
	ctx, cancel := context.WithTimeout(ctx, peersTimeout)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()
	req := &dns.Msg{Question: []dns.Question{q}}
	query, err := req.Pack()
	if err != nil {
		return nil, false // a name that cannot be written down again is nobody's
	}
	b, unsure := ask(ctx, query)
	m := new(dns.Msg)
	if b == nil || m.Unpack(b) != nil || !has(m) || len(m.Question) != 1 || m.Question[0] != q {
		return nil, unsure
	}
	return m, false
}
