package netstack

import (
	"errors"
	"net/netip"
	"slices"
	"syscall"
)

// verdict is what policy says about a destination.
type verdict int

const (
	allow     verdict = iota // a host on the outside
	service                  // the gateway itself, a port of it that is open
	hostPort                 // a port of the gateway that leads to the host's loopback
	ownPort                  // a port of the gateway that leads to the host's own address
	closed                   // the gateway, nothing there: refused
	nobody                   // the network's own subnet, no member: host unreachable
	deny                     // out of reach for guests: prohibited
	secret                   // where a cloud tells its machine's secrets: prohibited
	elsewhere                // another network of the user: prohibited, too
	noRoute                  // outside an internal network: network unreachable
	ignore                   // no host at all: no answer
)

var (
	// mapped4 and compat4 are IPv4 addresses in IPv6 clothes, which some
	// kernels take at their word; this4 is "this network".
	mapped4 = netip.MustParsePrefix("::ffff:0:0/96")
	compat4 = netip.MustParsePrefix("::/96")
	this4   = netip.MustParsePrefix("0.0.0.0/8")
	// bcast4 is the limited broadcast address, which net/netip has no word for.
	bcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	// metadata is where clouds tell a machine its secrets, besides all of
	// 169.254.0.0/16: Amazon (its machines, and EKS), Google, Alibaba, Oracle, Azure.
	metadata = []netip.Addr{
		netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("fd00:ec2::23"), netip.MustParseAddr("fd20:ce::254"),
		netip.MustParseAddr("100.100.100.200"), netip.MustParseAddr("192.0.0.192"), netip.MustParseAddr("168.63.129.16"),
	}
	// nat64 leads to IPv4 addresses where the host's network translates: the
	// embedded address must pass, too.
	nat64 = netip.MustParsePrefix("64:ff9b::/96")
)

// translated is the address that the host's network makes of one.
func translated(a netip.Addr) netip.Addr {
	if a.Is6() && nat64.Contains(a) {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	return a
}

// outside tells whether guests may reach an address that is not the network's
// own.
func outside(a netip.Addr) verdict {
	a = translated(a)
	switch {
	case a.IsMulticast(), a == bcast4, a.IsUnspecified():
		return ignore
	case a.Is4() && a.IsLinkLocalUnicast(), slices.Contains(metadata, a):
		return secret
	case a.IsLoopback(), a.IsLinkLocalUnicast(), this4.Contains(a), mapped4.Contains(a), compat4.Contains(a):
		return deny
	}
	return allow
}

// check decides about a guest's datagram to an address behind the gateway.
func (p *Port) check(dst netip.AddrPort) verdict {
	n := p.net
	a := dst.Addr()
	switch {
	case n.isGateway(a):
		switch {
		case dst.Port() == 53 && n.cfg.DNS != nil:
			return service
		case p.hostPort(dst.Port()):
			return hostPort
		case n.cfg.Hairpin && !n.cfg.Internal && !n.cfg.Isolate && dst.Port() != 0:
			return ownPort
		}
		return closed
	case n.inSubnet(a):
		if n.cfg.Private && n.member(a) != nil {
			return deny
		}
		return nobody
	}
	v := outside(a)
	if v == secret && p.cfg.Metadata {
		v = allow
	}
	switch {
	case v != allow:
	case n.cfg.Internal:
		return noRoute
	case n.cfg.Isolate && isHostAddr(a):
		return deny
	case n.cfg.Elsewhere != nil && n.cfg.Elsewhere(translated(a)):
		return elsewhere
	}
	return v
}

// refuse tells the guest why a datagram of it goes nowhere, and returns false if
// it may go on. A closed port is not its affair: each protocol has its own answer.
func (p *Port) refuse(v verdict, src, dst netip.Addr, cause []byte) bool {
	v6 := dst.Is6()
	var u unreachable
	switch v {
	case nobody:
		u = errHost(v6)
	case deny:
		p.count.drop(DropPolicy)
		u = errAdmin(v6)
	case secret:
		p.count.drop(DropMetadata)
		u = errAdmin(v6)
	case elsewhere:
		p.count.drop(DropElsewhere)
		u = errAdmin(v6)
	case noRoute:
		p.count.drop(DropPolicy)
		u = errNet(v6)
	case ignore:
		p.count.drop(DropPolicy)
		return true
	default:
		return false
	}
	p.sendError(p.net.gateway(v6), src, u, cause)
	return true
}

// redirect asks the embedder for the real destination of a flow.
func (n *Network) redirect(proto string, src, dst netip.AddrPort) (netip.AddrPort, error) {
	if n.cfg.Redirect == nil {
		return dst, nil
	}
	real, err := n.cfg.Redirect(proto, src, dst)
	if err != nil {
		return dst, err
	}
	return netip.AddrPortFrom(real.Addr().Unmap(), real.Port()), nil
}

// explain turns the failure of a host socket into what a router would have
// told the guest. ok is false where a router would be silent, e.g. after a
// timeout. A refusal is not an ICMP error for TCP: see refused.
func explain(err error, v6 bool) (u unreachable, ok bool) {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return u, false
	}
	switch errno {
	case syscall.EHOSTUNREACH, syscall.EHOSTDOWN, syscall.EADDRNOTAVAIL:
		return errHost(v6), true
	case syscall.ENETUNREACH, syscall.ENETDOWN, syscall.EAFNOSUPPORT:
		return errNet(v6), true
	case syscall.EACCES, syscall.EPERM:
		return errAdmin(v6), true
	case syscall.ECONNREFUSED:
		return errPort(v6), true
	}
	return u, false
}

func refused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)
}
