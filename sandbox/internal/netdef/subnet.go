package netdef

import (
	"fmt"
	"net/netip"
	"os"

	"github.com/rootless-sbx/sbx/netstack"
)

// setSubnets takes the subnets that were asked for.
func (n *Network) setSubnets(cfg *Config) error {
	for i, s := range cfg.Subnets {
		masked := s.Masked()
		for _, o := range cfg.Subnets[:i] {
			switch {
			case o.Masked() == masked:
				return invalid("name it once", "subnet %s is there twice", masked)
			case o.Overlaps(s):
				return &Error{ErrOverlap, fmt.Sprintf("subnets %s and %s of the network overlap", o, s), "choose subnets that do not"}
			}
		}
		const one = "a network has one subnet of each family; make a second network"
		switch v4 := s.Addr().Is4(); {
		case !s.IsValid() || s.Addr().Is4In6():
			return invalid("write --subnet 10.1.2.0/24", "%q is not a subnet", s)
		case v4 && n.Subnet4.IsValid() || !v4 && n.Subnet6.IsValid():
			return invalid(one, "subnets %s and %s are of the same family", cfg.Subnets[0], s)
		case v4 && (s.Bits() < 8 || s.Bits() > 30):
			return invalid("", "subnet %s: an IPv4 subnet is /8 to /30, so that there is room for a gateway and a sandbox", s)
		case !v4 && (s.Bits() < 64 || s.Bits() > 120):
			return invalid("", "subnet %s: an IPv6 subnet is /64 to /120", s)
		case !usable(masked):
			return invalid("use a private one, such as 10.1.2.0/24 or fd00:1:2:3::/64", "subnet %s is of loopback, link-local, multicast or unspecified addresses", s)
		case v4 && cfg.NoIPv4:
			return invalid("leave out one of the two", "an IPv4 subnet, %s, for a network without IPv4", s)
		case v4:
			n.Subnet4 = masked
		case cfg.NoIPv6:
			return invalid("leave out one of the two", "an IPv6 subnet, %s, for a network without IPv6", s)
		default:
			n.Subnet6 = masked
		}
	}
	return nil
}

// usable refuses ranges whose addresses mean something else to every kernel.
func usable(s netip.Prefix) bool {
	for _, special := range []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/8", "fe80::/10", "ff00::/8"} {
		if netip.MustParsePrefix(special).Overlaps(s) {
			return false
		}
	}
	return true
}

// placeInSubnets finds the subnet that each of the gateways, ranges and auxiliary
// addresses belongs to.
func (n *Network) placeInSubnets(cfg *Config) error {
	subnetOf := func(a netip.Addr) netip.Prefix {
		for _, s := range []netip.Prefix{n.Subnet4, n.Subnet6} {
			if s.IsValid() && s.Contains(a) {
				return s
			}
		}
		return netip.Prefix{}
	}
	const fix = "give the subnet that it belongs to: --subnet"
	for _, g := range cfg.Gateways {
		s := subnetOf(g)
		gw := &n.Gateway4
		if g.Is6() {
			gw = &n.Gateway6
		}
		switch {
		case !s.IsValid():
			return invalid(fix, "gateway %s is in no subnet of the network", g)
		case gw.IsValid():
			return invalid("a subnet has one", "two gateways, %s and %s", gw, g)
		case !host(s, g):
			return invalid("choose another address of the subnet", "gateway %s is the network or broadcast address of %s", g, s)
		}
		*gw = g
	}
	for _, r := range cfg.IPRanges {
		s := subnetOf(r.Addr())
		rng := &n.Range4
		if r.Addr().Is6() {
			rng = &n.Range6
		}
		switch {
		case !r.IsValid():
			return invalid("write --ip-range 10.1.2.128/25", "%q is not a range of addresses", r)
		case !s.IsValid():
			return invalid(fix, "range %s is in no subnet of the network", r)
		case r.Bits() < s.Bits():
			return invalid("choose a part of the subnet", "range %s is larger than the subnet %s", r, s)
		case rng.IsValid():
			return invalid("a subnet has one", "two ranges, %s and %s", rng, r)
		}
		*rng = r.Masked()
	}
	for name, a := range n.Aux {
		s := subnetOf(a)
		switch {
		case name == "":
			return invalid("write --aux-address NAME=IP", "auxiliary address %s has no name", a)
		case !s.IsValid():
			return invalid(fix, "auxiliary address %s=%s is in no subnet of the network", name, a)
		case a == n.Gateway4 || a == n.Gateway6:
			return invalid("choose another gateway, or leave the auxiliary address out", "auxiliary address %s=%s is the gateway", name, a)
		}
	}
	if n.Subnet4.IsValid() && !n.Gateway4.IsValid() {
		n.Gateway4 = n.freeGateway(n.Subnet4)
	}
	if n.Subnet6.IsValid() && !n.Gateway6.IsValid() {
		n.Gateway6 = n.freeGateway(n.Subnet6)
	}
	return nil
}

// freeGateway is the first address of a subnet that is nobody's.
func (n *Network) freeGateway(s netip.Prefix) netip.Addr {
	a := s.Addr().Next()
	for range n.Aux {
		for _, aux := range n.Aux {
			if a == aux {
				a = a.Next()
			}
		}
	}
	return a
}

// host says whether an address of s is one that a host may have.
func host(s netip.Prefix, a netip.Addr) bool {
	return a != s.Addr() && (a.Is6() || s.Contains(a.Next()))
}

// clash refuses subnets, asked for by hand, that somebody else has. A route of the
// host through a gateway is its administrator's guess at what may be there, and no
// reason.
func (n *Network) clash(others []Network, hosts []netstack.HostPrefix) error {
	const fix = "choose another subnet, or none, and one is chosen that is free"
	for _, s := range []netip.Prefix{n.Subnet4, n.Subnet6} {
		if !s.IsValid() {
			continue
		}
		for _, o := range others {
			for _, have := range []netip.Prefix{o.Subnet4, o.Subnet6} {
				if have.IsValid() && have.Overlaps(s) {
					return &Error{ErrOverlap, fmt.Sprintf("subnet %s overlaps %s of network %s", s, have, o.PublicName()), fix}
				}
			}
		}
		for _, h := range hosts {
			if !h.Far && h.Prefix.Overlaps(s) {
				return &Error{ErrOverlap, fmt.Sprintf("subnet %s overlaps %s, where this machine itself is: its hosts would be out of reach", s, h.Prefix), fix}
			}
		}
	}
	return nil
}

// choose picks the subnets that nobody asked for.
func (n *Network) choose(cfg *Config, others []Network, hosts []netstack.HostPrefix) error {
	choose4, choose6 := !n.Subnet4.IsValid() && !cfg.NoIPv4, !n.Subnet6.IsValid() && !cfg.NoIPv6
	if !choose4 && !choose6 {
		return nil
	}
	c, err := netstack.ChooseSubnets(uint32(os.Geteuid()), n.Name, nil, append(taken(others), hosts...))
	if err != nil {
		if !choose4 {
			c.Subnet6, err = netstack.ULA(uint32(os.Geteuid()), n.Name), nil
		} else {
			return &Error{ErrOverlap, err.Error(), "remove networks that are not used (sbx network prune), or choose one with --subnet"}
		}
	}
	if choose4 {
		n.Subnet4, n.Gateway4 = c.Subnet4, c.Subnet4.Addr().Next()
	}
	if choose6 {
		n.Subnet6, n.Gateway6 = c.Subnet6, c.Subnet6.Addr().Next()
	}
	return nil
}

// taken are the subnets of networks.
func taken(list []Network) (out []netstack.HostPrefix) {
	for _, o := range list {
		for _, s := range []netip.Prefix{o.Subnet4, o.Subnet6} {
			if s.IsValid() {
				out = append(out, netstack.HostPrefix{Prefix: s})
			}
		}
	}
	return out
}
