package netstack

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// Service is a port on which a sandbox can be reached.
type Service struct {
	Proto string // tcp or udp
	Port  uint16
}

// SetServices says at which ports an owner of records serves, in place of what it
// had: those that it publishes. They can be looked up as SRV records (RFC 2782)
// of _PORT._PROTO.NAME, with the number of the port or the name that the host has
// for it (_8080._tcp.web, _http._tcp.web). A name with several owners has a record
// for each that serves there. The owner must have records.
func (r *Resolver) SetServices(owner string, services []Service) error {
	if len(services) > maxOwnerServices {
		return fmt.Errorf("DNS services of %s: %d, limit %d", owner, len(services), maxOwnerServices)
	}
	for _, s := range services {
		if s.Proto != "tcp" && s.Proto != "udp" || s.Port == 0 {
			return fmt.Errorf("DNS services of %s: %s port %d", owner, s.Proto, s.Port)
		}
	}
	z := &r.zone
	z.mu.Lock()
	defer z.mu.Unlock()
	rec, ok := z.owners[owner]
	if !ok {
		return fmt.Errorf("DNS services of %s: it has no names", owner)
	}
	rec.services = slices.Clone(services)
	z.owners[owner] = rec
	r.young.news()
	return nil
}

// serviceAnswer answers for _PORT._PROTO.NAME, nil if there is no such NAME here.
func (z *zone) serviceAnswer(q dns.Question, name string) *dns.Msg {
	labels := strings.SplitN(name, ".", 3)
	if len(labels) < 3 {
		return nil
	}
	service, proto, host := strings.TrimPrefix(labels[0], "_"), strings.TrimPrefix(labels[1], "_"), labels[2]
	z.mu.RLock()
	defer z.mu.RUnlock()
	owners := z.ownersOf(host)
	if len(owners) == 0 {
		return nil
	}
	want, ok := servicePort(service, proto)
	if !ok {
		return negative(false)
	}
	m := &dns.Msg{}
	m.Authoritative = true
	for _, o := range z.inTurn(owners) {
		rec := z.owners[o]
		if len(rec.names) == 0 || !slices.Contains(rec.services, want) {
			continue
		}
		target := rec.names[0]
		m.Answer = append(m.Answer, &dns.SRV{
			Hdr:      dns.RR_Header{Name: q.Name, Rrtype: dns.TypeSRV, Class: dns.ClassINET, Ttl: localTTL},
			Priority: 0, Weight: 1, Port: want.Port, Target: target,
		})
		for _, a := range rec.addrs {
			m.Extra = append(m.Extra, addressRecord(target, a))
		}
	}
	switch {
	case len(m.Answer) == 0:
		return negative(false)
	case q.Qtype != dns.TypeSRV && q.Qtype != dns.TypeANY:
		return negative(true)
	}
	return m
}

// servicePort reads the first two labels of a service's name.
func servicePort(service, proto string) (Service, bool) {
	if proto != "tcp" && proto != "udp" {
		return Service{}, false
	}
	if n, err := strconv.ParseUint(service, 10, 16); err == nil {
		return Service{proto, uint16(n)}, n != 0
	}
	n, err := net.LookupPort(proto, service)
	return Service{proto, uint16(n)}, err == nil && n != 0
}

func addressRecord(name string, a netip.Addr) dns.RR {
	hdr := dns.RR_Header{Name: name, Class: dns.ClassINET, Ttl: localTTL}
	if a.Is4() {
		hdr.Rrtype = dns.TypeA
		return &dns.A{Hdr: hdr, A: a.AsSlice()}
	}
	hdr.Rrtype = dns.TypeAAAA
	return &dns.AAAA{Hdr: hdr, AAAA: a.AsSlice()}
}
