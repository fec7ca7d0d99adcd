package netstack

import (
	"context"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

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
	m, other, unsure := r.find(ctx, q, func() (*dns.Msg, bool) { return r.askPeers(ctx, q, from) })
	if unsure { // who asks is to ask again
		r.count.refused.Add(1)
		return finish(req, &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeServerFailure}}, tcp)
	}
	if other != nil {
		r.count.peers.Add(1)
		return finish(req, other, tcp)
	}
	if m != nil {
		r.count.local.Add(1)
		return finish(req, m, tcp)
	}
	if r.cfg.Internal {
		r.count.refused.Add(1)
		return finish(req, &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeServerFailure}}, tcp)
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
