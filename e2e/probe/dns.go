package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// dnsServer answers for the names that it is told, with NXDOMAIN for all others.
func dnsServer(args []string) error {
	names := map[string]netip.Addr{}
	for _, a := range args[1:] {
		name, ip, _ := strings.Cut(a, "=")
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			return err
		}
		names[dns.CanonicalName(name)] = addr
	}
	u, err := net.ListenPacket("udp", args[0])
	if err != nil {
		return err
	}
	srv := &dns.Server{PacketConn: u, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		question := q.Question[0]
		addr, known := names[dns.CanonicalName(question.Name)]
		switch hdr := (dns.RR_Header{Name: question.Name, Class: dns.ClassINET, Ttl: 600, Rrtype: question.Qtype}); {
		case !known:
			m.Rcode = dns.RcodeNameError
		case question.Qtype == dns.TypeA && addr.Is4():
			m.Answer = []dns.RR{&dns.A{Hdr: hdr, A: addr.AsSlice()}}
		case question.Qtype == dns.TypeAAAA && addr.Is6():
			m.Answer = []dns.RR{&dns.AAAA{Hdr: hdr, AAAA: addr.AsSlice()}}
		}
		_ = w.WriteMsg(m) // who asked asks again
	})}
	ready()
	return srv.ActivateAndServe()
}

// lookup prints the addresses of a name, or what the resolver says.
func lookup(args []string) error {
	addrs, err := net.LookupHost(args[0])
	var de *net.DNSError
	if errors.As(err, &de) {
		fmt.Println("error", de.Err)
		return nil
	}
	if err == nil {
		fmt.Println(strings.Join(addrs, " "))
	}
	return err
}
