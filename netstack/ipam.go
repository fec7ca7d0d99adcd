package netstack

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// maxLeaseID bounds a lease's id and name.
const maxLeaseID = 128

// IPAMConfig describes the addresses of a network.
type IPAMConfig struct {
	// Subnet4 is /8 to /30, Subnet6 /64 or longer up to /120; one of them may be
	// zero for a network without this family.
	Subnet4, Subnet6 netip.Prefix
	// Gateway4 and Gateway6. Zero: the subnet's first address.
	Gateway4, Gateway6 netip.Addr
	// Range4 and Range6 are the parts of the subnets that addresses are chosen from.
	// Zero: all of it. Who wants a certain address may have any of the subnet.
	Range4, Range6 netip.Prefix
	// Reserved addresses are never chosen.
	Reserved []netip.Addr
	// Next is what IPAM.Next returned last; zero: the search begins at the start.
	Next uint32
	// MaxLeases bounds the sandboxes of the network. Zero: 1000. The subnet's
	// size bounds them as well.
	MaxLeases int
}

// Lease is the set of addresses of one sandbox.
type Lease struct {
	ID    string           `json:"id"`
	Name  string           `json:"name,omitempty"`
	Addr4 netip.Addr       `json:"addr4,omitzero"`
	Addr6 netip.Addr       `json:"addr6,omitzero"`
	MAC   net.HardwareAddr `json:"mac"`
}

// LeaseWant are the addresses somebody asks for; zero fields are free choice.
type LeaseWant struct {
	Name         string
	Addr4, Addr6 netip.Addr
	MAC          net.HardwareAddr
}

// ErrNoAddress: every address of the network is taken.
type ErrNoAddress struct {
	Subnet netip.Prefix
	Leases int
}

func (e *ErrNoAddress) Error() string {
	return fmt.Sprintf("no free address in %s: %d sandboxes are on the network", e.Subnet, e.Leases)
}

// ErrLeaseConflict: another sandbox has the address that was asked for.
type ErrLeaseConflict struct{ Addr, Owner string }

func (e *ErrLeaseConflict) Error() string {
	return fmt.Sprintf("address %s is in use by sandbox %s", e.Addr, e.Owner)
}

// ErrBadAddress: the address that was asked for cannot be given to anybody.
type ErrBadAddress struct{ Addr, Reason string }

func (e *ErrBadAddress) Error() string { return fmt.Sprintf("address %s: %s", e.Addr, e.Reason) }

// IPAM hands out a network's addresses. The IPv6 address repeats the place of
// the IPv4 one in its subnet, and the MAC is 02:5b followed by the IPv4
// address, or without one the end of the IPv6 address, unless somebody wants others. An address that was released comes
// round again last, so that what others remember of it has time to expire. It is
// not for several goroutines at once.
type IPAM struct {
	cfg      IPAMConfig
	byID     map[string]Lease
	owner    map[string]string // every address and MAC, in text, to the lease's name, or its id
	reserved map[netip.Addr]bool
	next     uint32 // where the search for a free place begins
}

// NewIPAM checks cfg.
func NewIPAM(cfg IPAMConfig) (*IPAM, error) {
	if !cfg.Subnet4.IsValid() && !cfg.Subnet6.IsValid() {
		return nil, errors.New("address pool: no subnet")
	}
	if p := cfg.Subnet4; p.IsValid() && (!p.Addr().Is4() || p.Bits() < 8 || p.Bits() > 30) {
		return nil, fmt.Errorf("address pool: IPv4 subnet %s: want /8 to /30", p)
	}
	if p := cfg.Subnet6; p.IsValid() && (!p.Addr().Is6() || p.Addr().Is4In6() || p.Bits() < 64 || p.Bits() > 120) {
		return nil, fmt.Errorf("address pool: IPv6 subnet %s: want /64 to /120", p)
	}
	cfg.Subnet4, cfg.Subnet6 = cfg.Subnet4.Masked(), cfg.Subnet6.Masked()
	if !cfg.Gateway4.IsValid() && cfg.Subnet4.IsValid() {
		cfg.Gateway4 = cfg.Subnet4.Addr().Next()
	}
	if !cfg.Gateway6.IsValid() && cfg.Subnet6.IsValid() {
		cfg.Gateway6 = cfg.Subnet6.Addr().Next()
	}
	if cfg.Gateway4.IsValid() && !cfg.Subnet4.Contains(cfg.Gateway4) || cfg.Gateway6.IsValid() && !cfg.Subnet6.Contains(cfg.Gateway6) {
		return nil, fmt.Errorf("address pool: gateway %s or %s is outside of its subnet", cfg.Gateway4, cfg.Gateway6)
	}
	if cfg.MaxLeases <= 0 {
		cfg.MaxLeases = 1000
	}
	p := &IPAM{cfg: cfg, byID: map[string]Lease{}, owner: map[string]string{}, reserved: map[netip.Addr]bool{}, next: cfg.Next}
	for _, r := range []struct{ rng, subnet *netip.Prefix }{{&p.cfg.Range4, &p.cfg.Subnet4}, {&p.cfg.Range6, &p.cfg.Subnet6}} {
		if !r.rng.IsValid() {
			*r.rng = *r.subnet
		}
		*r.rng = r.rng.Masked()
		if r.rng.Bits() < r.subnet.Bits() || r.rng.IsValid() && !r.subnet.Contains(r.rng.Addr()) {
			return nil, fmt.Errorf("address pool: range %s is not a part of %s", r.rng, r.subnet)
		}
	}
	for _, a := range append(cfg.Reserved, p.cfg.Gateway4, p.cfg.Gateway6) {
		p.reserved[a] = true
	}
	return p, nil
}

// Next is where the next search for a free address begins, for the pool of a later
// process.
func (p *IPAM) Next() uint32 { return p.next }

// Gateways returns the gateway's addresses; one is zero without its family.
func (p *IPAM) Gateways() (v4, v6 netip.Addr) { return p.cfg.Gateway4, p.cfg.Gateway6 }

// Subnets returns the network's subnets; one is zero without its family.
func (p *IPAM) Subnets() (v4, v6 netip.Prefix) { return p.cfg.Subnet4, p.cfg.Subnet6 }

// Lease gives addresses to a sandbox. Asked again for the same id it returns
// the same ones, unless they are not what it wants any more.
func (p *IPAM) Lease(id string, want LeaseWant) (_ Lease, err error) {
	if id == "" || len(id) > maxLeaseID || len(want.Name) > maxLeaseID {
		return Lease{}, fmt.Errorf("lease: id and name have at most %d characters, and the id at least one", maxLeaseID)
	}
	if l, ok := p.byID[id]; ok {
		if l.meets(want) {
			if want.Name != "" {
				l.Name = want.Name
				p.byID[id] = l
			}
			return l.clone(), nil
		}
		p.Release(id) // its own old addresses do not stand in its way
		defer func() {
			if err != nil {
				p.take(l)
			}
		}()
	}
	if len(p.byID) >= p.cfg.MaxLeases {
		rng, _ := p.places()
		return Lease{}, &ErrNoAddress{rng, len(p.byID)}
	}
	l, err := p.choose(id, want)
	if err != nil {
		return Lease{}, err
	}
	p.take(l)
	return l.clone(), nil
}

// Add makes a lease of an earlier pool one of this. It says whether it fits.
func (p *IPAM) Add(l Lease) bool {
	if l.ID == "" || len(l.ID) > maxLeaseID || p.byID[l.ID].ID != "" || len(p.byID) >= p.cfg.MaxLeases ||
		l.Addr4.IsValid() != p.cfg.Subnet4.IsValid() || l.Addr6.IsValid() != p.cfg.Subnet6.IsValid() || l.MAC == nil {
		return false
	}
	got, err := p.choose(l.ID, LeaseWant{Name: l.Name, Addr4: l.Addr4, Addr6: l.Addr6, MAC: l.MAC})
	if err == nil {
		p.take(got)
	}
	return err == nil
}

// Release takes the addresses back; it says whether there was such a lease.
func (p *IPAM) Release(id string) bool {
	l, ok := p.byID[id]
	delete(p.byID, id)
	if ok {
		for _, k := range l.keys() {
			delete(p.owner, k)
		}
	}
	return ok
}

// Leases returns the leases, by address.
func (p *IPAM) Leases() []Lease {
	out := []Lease{}
	for _, l := range p.byID {
		out = append(out, l.clone())
	}
	slices.SortFunc(out, func(a, b Lease) int { return cmp.Or(a.Addr4.Compare(b.Addr4), a.Addr6.Compare(b.Addr6)) })
	return out
}

// choose finds addresses that nobody has.
func (p *IPAM) choose(id string, want LeaseWant) (Lease, error) {
	l := Lease{ID: id, Name: want.Name, Addr4: want.Addr4.Unmap(), Addr6: want.Addr6, MAC: slices.Clone(want.MAC)}
	if l.Addr4.IsValid() {
		if err := p.check4(l.Addr4); err != nil {
			return Lease{}, err
		}
	}
	if l.Addr6.IsValid() {
		if err := p.check6(l.Addr6); err != nil {
			return Lease{}, err
		}
	}
	if l.MAC != nil {
		if len(l.MAC) != 6 || l.MAC[0]&1 != 0 || l.MAC.String() == "00:00:00:00:00:00" {
			return Lease{}, &ErrBadAddress{l.MAC.String(), "not the address of a single Ethernet device"}
		}
		if o, ok := p.owner[l.MAC.String()]; ok {
			return Lease{}, &ErrLeaseConflict{l.MAC.String(), o}
		}
	}
	first := &l.Addr4
	if !p.cfg.Subnet4.IsValid() {
		first = &l.Addr6
	}
	if !first.IsValid() {
		a, err := p.chooseFirst(l.MAC == nil)
		if err != nil {
			return Lease{}, err
		}
		*first = a
	}
	if l.MAC == nil {
		l.MAC = macOf(*first)
		if o, ok := p.owner[l.MAC.String()]; ok {
			return Lease{}, &ErrLeaseConflict{l.MAC.String(), o}
		}
	}
	if !l.Addr6.IsValid() && p.cfg.Subnet6.IsValid() {
		a, err := p.choose6(placeOf(p.cfg.Subnet4, l.Addr4))
		if err != nil {
			return Lease{}, err
		}
		l.Addr6 = a
	}
	return l, nil
}

// places are where addresses are chosen from: a part of a subnet, that of IPv4 if there
// is one.
func (p *IPAM) places() (rng, subnet netip.Prefix) {
	if p.cfg.Subnet4.IsValid() {
		return p.cfg.Range4, p.cfg.Subnet4
	}
	return p.cfg.Range6, p.cfg.Subnet6
}

// chooseFirst takes the next free address of the range; with mac its own MAC must be
// free as well.
func (p *IPAM) chooseFirst(mac bool) (netip.Addr, error) {
	r, subnet := p.places()
	places := uint64(1) << min(r.Addr().BitLen()-r.Bits(), 32)
	for i := range min(places, uint64(2*p.cfg.MaxLeases+len(p.reserved)+2)) {
		n := (uint64(p.next) + i) % places
		a := addrAt(r, n)
		if _, used := p.owner[a.String()]; used || p.reserved[a] || a == subnet.Addr() || a.Is4() && !hostOf4(subnet, a) {
			continue
		}
		if _, used := p.owner[macOf(a).String()]; used && mac {
			continue // somebody wanted the MAC that belongs to it
		}
		p.next = uint32((n + 1) % places)
		return a, nil
	}
	return netip.Addr{}, &ErrNoAddress{r, len(p.byID)}
}

// hostOf4 leaves out the network and the broadcast address.
func hostOf4(s netip.Prefix, a netip.Addr) bool {
	place := placeOf(s, a)
	return place != 0 && place != 1<<(32-s.Bits())-1
}

// choose6 takes the same place as in the IPv4 subnet, or one further up if
// somebody wanted just that address.
func (p *IPAM) choose6(place uint64) (netip.Addr, error) {
	r := p.cfg.Range6
	size := uint64(1) << min(128-r.Bits(), 48)
	for i := range uint64(p.cfg.MaxLeases + len(p.reserved) + 3) {
		n := (place + i<<24) % size
		if size <= 1<<24 {
			n = (place + i) % size
		}
		a := addrAt(r, n)
		// The first one is the subnet-router anycast address.
		if _, used := p.owner[a.String()]; !used && !p.reserved[a] && a != p.cfg.Subnet6.Addr() {
			return a, nil
		}
	}
	return netip.Addr{}, &ErrNoAddress{r, len(p.byID)}
}

func (p *IPAM) check4(a netip.Addr) error {
	s := p.cfg.Subnet4
	switch {
	case !s.IsValid():
		return &ErrBadAddress{a.String(), "the network has no IPv4 subnet"}
	case !a.Is4() || !s.Contains(a):
		return &ErrBadAddress{a.String(), fmt.Sprintf("not in the network's subnet %s", s)}
	case !hostOf4(s, a):
		return &ErrBadAddress{a.String(), fmt.Sprintf("the network or broadcast address of %s", s)}
	case a == p.cfg.Gateway4:
		return &ErrBadAddress{a.String(), "the gateway's"}
	}
	if o, ok := p.owner[a.String()]; ok {
		return &ErrLeaseConflict{a.String(), o}
	}
	return nil
}

func (p *IPAM) check6(a netip.Addr) error {
	s := p.cfg.Subnet6
	switch {
	case !s.IsValid():
		return &ErrBadAddress{a.String(), "the network has no IPv6 subnet"}
	case a.Zone() != "" || !s.Contains(a):
		return &ErrBadAddress{a.String(), fmt.Sprintf("not in the network's subnet %s", s)}
	case a == s.Addr():
		return &ErrBadAddress{a.String(), "the anycast address of the subnet's routers"}
	case a == p.cfg.Gateway6:
		return &ErrBadAddress{a.String(), "the gateway's"}
	}
	if o, ok := p.owner[a.String()]; ok {
		return &ErrLeaseConflict{a.String(), o}
	}
	return nil
}

func (p *IPAM) take(l Lease) {
	p.byID[l.ID] = l
	for _, k := range l.keys() {
		p.owner[k] = cmp.Or(l.Name, l.ID)
	}
}

func (l Lease) keys() []string {
	k := []string{l.MAC.String()}
	for _, a := range []netip.Addr{l.Addr4, l.Addr6} {
		if a.IsValid() {
			k = append(k, a.String())
		}
	}
	return k
}

func (l Lease) clone() Lease {
	l.MAC = slices.Clone(l.MAC)
	return l
}

// meets says whether the lease is what somebody wants.
func (l Lease) meets(w LeaseWant) bool {
	return (!w.Addr4.IsValid() || w.Addr4.Unmap() == l.Addr4) && (!w.Addr6.IsValid() || w.Addr6 == l.Addr6) &&
		(w.MAC == nil || w.MAC.String() == l.MAC.String())
}

// macOf is the MAC of who has an address: 02:5b and the address, of IPv6 what makes it
// different from others of its subnet.
func macOf(a netip.Addr) net.HardwareAddr {
	b := a.AsSlice()
	if a.Is6() {
		if [4]byte(b[8:12]) != [4]byte{} {
			sum := sha256.Sum256(b)
			b = sum[:]
		}
		b = b[len(b)-4:]
	}
	return net.HardwareAddr{0x02, 0x5b, b[0], b[1], b[2], b[3]}
}

// gatewayMAC is what macOf would give the gateway, who is not in the pool.
func gatewayMAC(cfg Config) (mac macAddr) {
	if cfg.Gateway4.IsValid() {
		return macAddr(macOf(cfg.Gateway4))
	}
	return macAddr(macOf(cfg.Gateway6))
}

// addrAt is the n-th address of a subnet; n fits into its host part.
func addrAt(s netip.Prefix, n uint64) netip.Addr {
	b := s.Masked().Addr().AsSlice()
	if len(b) == 4 {
		binary.BigEndian.PutUint32(b, binary.BigEndian.Uint32(b)+uint32(n))
	} else {
		// The subnet is /64 or longer: the host part is in the lower half.
		binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+n)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// placeOf is the inverse of addrAt for IPv4.
func placeOf(s netip.Prefix, a netip.Addr) uint64 {
	if !a.Is4() {
		return 0
	}
	x, y := s.Masked().Addr().As4(), a.As4()
	return uint64(binary.BigEndian.Uint32(y[:]) - binary.BigEndian.Uint32(x[:]))
}
