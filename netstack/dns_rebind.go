package netstack

import (
	"net/netip"

	"github.com/miekg/dns"
)

// insideAddr returns an address in an answer from the host's servers that is no
// address of the Internet: of a loopback, a private network, a link. Behind a name of
// the Internet it is an attempt to have a client take somebody else's machine for its
// own (DNS rebinding), or just a company's own name. It is counted, not refused: what
// a guest may reach is the policy's business, not the name's.
func insideAddr(m *dns.Msg) (a netip.Addr, ok bool) {
	for _, rr := range m.Answer {
		var b []byte
		switch rr := rr.(type) {
		case *dns.A:
			b = rr.A.To4()
		case *dns.AAAA:
			b = rr.AAAA
		}
		a, ok := netip.AddrFromSlice(b)
		a = a.Unmap()
		if ok && (a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified()) {
			return a, true
		}
	}
	return a, false
}
