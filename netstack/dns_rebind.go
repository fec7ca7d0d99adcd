package netstack

import (
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// Behind a name of the Internet, an address that is not the Internet's is an attempt to
// have a client take somebody else's machine for its own (DNS rebinding), or just a
// company's own name. So it is always counted and told in the log, and refused only if
// ResolverConfig.RefuseInside says so: what a guest may reach is the policy's business,
// not the name's.

// sharedSpace is what providers give to their customers (RFC 6598).
var sharedSpace = netip.MustParsePrefix("100.64.0.0/10")

// insideAddr returns an address in an answer from the host's servers that is no address
// of the Internet: of a loopback, a private network, a link, a provider's inside.
func insideAddr(m *dns.Msg) (netip.Addr, bool) {
	for _, rr := range m.Answer {
		for _, ip := range addressesIn(rr) {
			a, ok := netip.AddrFromSlice(ip)
			a = translated(a.Unmap())
			if ok && (a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || this4.Contains(a) || a.IsUnspecified() || sharedSpace.Contains(a)) {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

// addressesIn are those that a client may connect to.
func addressesIn(rr dns.RR) []net.IP {
	var hints []dns.SVCBKeyValue
	switch rr := rr.(type) {
	case *dns.A:
		return []net.IP{rr.A.To4()}
	case *dns.AAAA:
		return []net.IP{rr.AAAA}
	case *dns.SVCB:
		hints = rr.Value
	case *dns.HTTPS:
		hints = rr.Value
	}
	var list []net.IP
	for _, h := range hints {
		switch h := h.(type) {
		case *dns.SVCBIPv4Hint:
			list = append(list, h.Hint...)
		case *dns.SVCBIPv6Hint:
			list = append(list, h.Hint...)
		}
	}
	return list
}

// insideLogInterval is how often such an answer is told; the counter has them all.
const insideLogInterval = 10 * time.Second

// checkInside returns the answer that the client gets.
func (r *Resolver) checkInside(m *dns.Msg, client netip.Addr) *dns.Msg {
	a, ok := insideAddr(m)
	if !ok {
		return m
	}
	r.count.inside.Add(1)
	now := r.cfg.now()
	if last := r.insideLogged.Load(); last == nil || now.Sub(*last) >= insideLogInterval {
		r.insideLogged.Store(&now)
		r.log.Warn("a name from outside has an address inside (DNS rebinding, or a company's name)",
			"name", m.Question[0].Name, "address", a, "client", client, "refused", r.cfg.RefuseInside)
	}
	if !r.cfg.RefuseInside {
		return m
	}
	none := &dns.Msg{MsgHdr: m.MsgHdr, Question: m.Question}
	none.AuthenticatedData = false
	return none
}
