package netstack

import (
	"github.com/miekg/dns"
)

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
