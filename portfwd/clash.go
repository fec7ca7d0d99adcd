package portfwd

import (
	"net/netip"
	"strings"
)

// families returns the addresses that a spec listens on: the given one, or the
// wildcard of each family that the protocol allows.
func families(proto string, ip netip.Addr) []netip.Addr {
	v4, v6 := !strings.HasSuffix(proto, "6"), !strings.HasSuffix(proto, "4")
	switch {
	case !ip.IsValid():
		var out []netip.Addr
		if v4 {
			out = append(out, netip.IPv4Unspecified())
		}
		if v6 {
			out = append(out, netip.IPv6Unspecified())
		}
		return out
	case ip.Is4() && v4, ip.Is6() && v6:
		return []netip.Addr{ip}
	}
	return nil
}

// clashes finds specs that would listen on the same address and port. The
// kernel would refuse the second as well; this names the first.
type clashes map[clashKey][]clashEntry

type clashKey struct {
	transport string
	port      int
	v6        bool
}

type clashEntry struct {
	ip    netip.Addr
	label string
}

func newClashes() clashes { return clashes{} }

// add records a spec under a label; if it clashes with an earlier one, it
// records nothing and returns that one's label.
func (c clashes) add(s Spec, label string) (other string, ok bool) {
	if s.ParentPort == 0 || s.ParentEnd != 0 { // whichever is free
		return "", true
	}
	var ip netip.Addr
	if s.ParentIP != "" {
		ip = netip.MustParseAddr(s.ParentIP).Unmap()
	}
	addrs := families(s.Proto, ip)
	key := func(a netip.Addr) clashKey { return clashKey{transport(s.Proto), s.ParentPort, a.Is6()} }
	for _, a := range addrs {
		for _, e := range c[key(a)] {
			if e.ip == a || e.ip.IsUnspecified() || a.IsUnspecified() {
				return e.label, false
			}
		}
	}
	for _, a := range addrs {
		c[key(a)] = append(c[key(a)], clashEntry{a, label})
	}
	return "", true
}
