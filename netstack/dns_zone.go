package netstack

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/miekg/dns"
)

// Zone is the domain of a network's own names; what it does not know below it
// does not exist.
const Zone = "sbx.internal."

// hostNames all stand for the gateway, which is where a sandbox reaches its
// host: ours, and those that programs made for Docker or Podman ask for.
var hostNames = []string{
	"host." + Zone, "gateway." + Zone,
	"host.docker.internal.", "gateway.docker.internal.", "host.containers.internal.",
}

// Bounds of the records.
const (
	maxRecordOwners  = 4096
	maxOwnerNames    = 64
	maxOwnerAddrs    = 16
	maxOwnerServices = 256
)

// ErrRecord says why a name cannot be served.
type ErrRecord struct{ Name, Reason string }

func (e *ErrRecord) Error() string { return fmt.Sprintf("DNS name %q: %s", e.Name, e.Reason) }

type ownerRecords struct {
	names    []string
	addrs    []netip.Addr
	services []Service
}

// zone holds the names of the network and its reverse names.
type zone struct {
	subnets []netip.Prefix
	fixed   map[string][]netip.Addr // the host's names, localhost
	// suffixes may follow a name, the longest first.
	suffixes []string
	turn     atomic.Uint32 // of a name's owners

	mu     sync.RWMutex // guards what follows
	owners map[string]ownerRecords
	names  map[string][]string     // name to its owners, in order of arrival
	ptr    map[netip.Addr][]string // address to owners
}

func (z *zone) init(cfg ResolverConfig) {
	z.subnets = cfg.Subnets
	z.owners, z.names, z.ptr = map[string]ownerRecords{}, map[string][]string{}, map[netip.Addr][]string{}
	z.suffixes = []string{"." + Zone}
	if n := strings.ToLower(cfg.Network); n != "" {
		z.suffixes = []string{"." + n + "." + Zone, "." + Zone, "." + n + "."}
	}
	var gw []netip.Addr
	for _, a := range []netip.Addr{cfg.Gateway4, cfg.Gateway6} {
		if a.IsValid() {
			gw = append(gw, a.Unmap())
		}
	}
	z.fixed = map[string][]netip.Addr{
		"localhost.": {netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()},
	}
	for _, n := range hostNames {
		z.fixed[n] = gw
	}
}

// SetRecords publishes names for the addresses of one owner, a sandbox's id,
// in place of what it had. A name may have several owners; it then has the
// addresses of them all. The first name is the one of reverse look-ups.
func (r *Resolver) SetRecords(owner string, names []string, addrs []netip.Addr) error {
	if owner == "" {
		return errors.New("DNS records: no owner")
	}
	if len(names) > maxOwnerNames || len(addrs) > maxOwnerAddrs {
		return fmt.Errorf("DNS records of %s: %d names and %d addresses, limits %d and %d", owner, len(names), len(addrs), maxOwnerNames, maxOwnerAddrs)
	}
	rec := ownerRecords{}
	for _, n := range names {
		n = strings.ToLower(strings.TrimSuffix(n, "."))
		if err := checkDomain(n); err != nil {
			return &ErrRecord{n, err.Error()}
		}
		n += "."
		if _, ok := r.zone.fixed[n]; ok {
			return &ErrRecord{n, "the name is taken by the network itself"}
		}
		if !slices.Contains(rec.names, n) {
			rec.names = append(rec.names, n)
		}
	}
	for _, a := range addrs {
		if !a.IsValid() || a.Zone() != "" {
			return fmt.Errorf("DNS records of %s: invalid address %s", owner, a)
		}
		rec.addrs = append(rec.addrs, a.Unmap())
	}
	z := &r.zone
	z.mu.Lock()
	defer z.mu.Unlock()
	if _, ok := z.owners[owner]; !ok && len(z.owners) >= maxRecordOwners {
		return fmt.Errorf("DNS records of %s: %d owners have records, the limit", owner, maxRecordOwners)
	}
	rec.services = z.owners[owner].services
	z.drop(owner)
	z.owners[owner] = rec
	for _, n := range rec.names {
		z.names[n] = append(z.names[n], owner)
	}
	for _, a := range rec.addrs {
		z.ptr[a] = append(z.ptr[a], owner)
	}
	r.young.news()
	return nil
}

// CheckName says whether a name can be one of a network's.
func CheckName(name string) error {
	if err := checkDomain(strings.TrimSuffix(name, ".")); err != nil {
		return &ErrRecord{name, err.Error()}
	}
	return nil
}

// Remove takes back what owner has published.
func (r *Resolver) Remove(owner string) {
	r.zone.mu.Lock()
	defer r.zone.mu.Unlock()
	r.zone.drop(owner)
}

func (z *zone) drop(owner string) {
	rec, ok := z.owners[owner]
	if !ok {
		return
	}
	delete(z.owners, owner)
	without := func(s []string) []string {
		return slices.DeleteFunc(s, func(o string) bool { return o == owner })
	}
	for _, n := range rec.names {
		if z.names[n] = without(z.names[n]); len(z.names[n]) == 0 {
			delete(z.names, n)
		}
	}
	for _, a := range rec.addrs {
		if z.ptr[a] = without(z.ptr[a]); len(z.ptr[a]) == 0 {
			delete(z.ptr, a)
		}
	}
}

// answer returns nil for a name that is not the network's.
func (z *zone) answer(q dns.Question) *dns.Msg {
	name := strings.ToLower(q.Name)
	addrs, exists := z.lookup(name)
	if exists {
		return addressAnswer(q, addrs)
	}
	if name[0] == '_' {
		if m := z.serviceAnswer(q, name); m != nil {
			return m
		}
	}
	if name == Zone || strings.HasSuffix(name, "."+Zone) {
		return negative(name == Zone)
	}
	if p, ok := reversePrefix(name); ok {
		return z.reverse(q, p)
	}
	return nil
}

// lookup returns the addresses of a name, those of another owner first each time.
func (z *zone) lookup(name string) (addrs []netip.Addr, exists bool) {
	if a, ok := z.fixed[name]; ok {
		return a, true
	}
	if strings.HasSuffix(name, ".localhost.") {
		return z.fixed["localhost."], true // RFC 6761, 6.3
	}
	z.mu.RLock()
	defer z.mu.RUnlock()
	for _, o := range z.inTurn(z.ownersOf(name)) {
		addrs = append(addrs, z.owners[o].addrs...)
		exists = true
	}
	return addrs, exists
}

// ownersOf returns who has a name, which may have one of the suffixes. z.mu is
// held.
func (z *zone) ownersOf(name string) []string {
	if o, ok := z.names[name]; ok {
		return o
	}
	for _, s := range z.suffixes {
		if n := len(name) - len(s); n > 0 && name[n:] == s {
			if o, ok := z.names[name[:n+1]]; ok {
				return o
			}
		}
	}
	return nil
}

// maxSharers is how many owners of one name an answer has.
const maxSharers = 64

// inTurn puts another one first each time.
func (z *zone) inTurn(owners []string) []string {
	if len(owners) < 2 {
		return owners
	}
	first := int(z.turn.Add(1) % uint32(len(owners)))
	n := min(len(owners), maxSharers)
	turned := append(make([]string, 0, n), owners[first:min(len(owners), first+n)]...)
	return append(turned, owners[:n-len(turned)]...)
}

func addressAnswer(q dns.Question, addrs []netip.Addr) *dns.Msg {
	m := &dns.Msg{}
	for _, a := range addrs {
		if q.Qtype == dns.TypeANY || q.Qtype == pick(a.Is6(), dns.TypeA, dns.TypeAAAA) {
			m.Answer = append(m.Answer, addressRecord(q.Name, a))
		}
	}
	if len(m.Answer) == 0 {
		return negative(true)
	}
	m.Authoritative = true
	return m
}

// reverse answers for addresses of the network's subnets.
func (z *zone) reverse(q dns.Question, p netip.Prefix) *dns.Msg {
	if !z.own(p) {
		return nil
	}
	if !p.IsSingleIP() {
		return negative(true) // an empty non-terminal
	}
	names := z.namesOf(p.Addr())
	if len(names) == 0 {
		return negative(false)
	}
	if q.Qtype != dns.TypePTR && q.Qtype != dns.TypeANY {
		return negative(true)
	}
	m := &dns.Msg{}
	m.Authoritative = true
	for _, n := range names {
		m.Answer = append(m.Answer, &dns.PTR{
			Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: localTTL}, Ptr: n})
	}
	return m
}

// own says whether addresses are all of one of the network's subnets.
func (z *zone) own(p netip.Prefix) bool {
	return slices.ContainsFunc(z.subnets, func(s netip.Prefix) bool {
		return s.Bits() <= p.Bits() && s.Contains(p.Addr())
	})
}

func (z *zone) namesOf(a netip.Addr) (names []string) {
	if slices.Contains(z.fixed[hostNames[0]], a) {
		return hostNames[:1]
	}
	z.mu.RLock()
	defer z.mu.RUnlock()
	for _, o := range z.ptr[a] {
		if rec := z.owners[o]; len(rec.names) > 0 {
			names = append(names, rec.names[0])
		}
	}
	return names
}

// negative is "no such name", or for a name that exists "no such record", with
// the SOA that makes it cacheable (RFC 2308).
func negative(exists bool) *dns.Msg {
	m := &dns.Msg{}
	m.Authoritative = true
	if !exists {
		m.Rcode = dns.RcodeNameError
	}
	m.Ns = []dns.RR{&dns.SOA{
		Hdr: dns.RR_Header{Name: Zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: localTTL},
		Ns:  "gateway." + Zone, Mbox: "hostmaster." + Zone, Serial: 1,
		Refresh: 3600, Retry: 600, Expire: 86400, Minttl: localTTL,
	}}
	return m
}

// reversePrefix turns a name under in-addr.arpa or ip6.arpa into the addresses
// it covers: a whole one for four or 32 labels, a prefix for fewer.
func reversePrefix(name string) (netip.Prefix, bool) {
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		return reverseLabels(s, 10, 8, 4)
	}
	if s, ok := strings.CutSuffix(name, ".ip6.arpa."); ok {
		return reverseLabels(s, 16, 4, 32)
	}
	return netip.Prefix{}, false
}

func reverseLabels(s string, base, width, most int) (netip.Prefix, bool) {
	labels := strings.Split(s, ".")
	if len(labels) > most {
		// A name below that of an address: what belongs to the address still
		// does not leave the network.
		labels = labels[len(labels)-most:]
	}
	slices.Reverse(labels)
	b := make([]byte, most*width/8)
	for i, l := range labels {
		v, err := strconv.ParseUint(l, base, width)
		if err != nil {
			return netip.Prefix{}, false
		}
		b[i*width/8] |= byte(v) << (8 - width - i*width%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, len(labels)*width), true
}
