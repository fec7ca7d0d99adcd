package netstack

import (
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// targets are the addresses that a flow of a guest's really leads to, in the
// order in which they are tried; there is at least one.
func (n *Network) targets(proto string, v verdict, src, dst netip.AddrPort) ([]netip.AddrPort, error) {
	port := dst.Port()
	switch v {
	case hostPort:
		return hostLoopback(port), nil
	case ownPort:
		v6 := dst.Addr().Is6()
		var to []netip.AddrPort
		for _, family := range [...]bool{v6, !v6} {
			a, ok := hostAddr(family)
			if !ok {
				continue
			}
			real, err := n.redirect(proto, src, netip.AddrPortFrom(a, port))
			if err != nil {
				return nil, err
			}
			to = append(to, real)
		}
		if len(to) == 0 {
			return nil, syscall.ECONNREFUSED
		}
		return to, nil
	}
	real, err := n.redirect(proto, src, dst)
	return []netip.AddrPort{real}, err
}

// hostLoopback are the host's own addresses for a port, in order.
func hostLoopback(port uint16) []netip.AddrPort {
	return []netip.AddrPort{
		netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port),
		netip.AddrPortFrom(netip.IPv6Loopback(), port),
	}
}

// hostAddr is the address that the host has on the way to the world, or the first
// of its own that is good for others. It is asked for each flow: it changes with
// the networks that a laptop visits.
func hostAddr(v6 bool) (netip.Addr, bool) {
	domain, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 1}, Port: 9})
	if v6 {
		domain, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: [16]byte{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 15: 1}, Port: 9}
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return netip.Addr{}, false
	}
	defer unix.Close(fd)
	if unix.Connect(fd, to) == nil { // nothing is sent
		if sa, err := unix.Getsockname(fd); err == nil {
			if a := sockaddrIP(sa); a.IsGlobalUnicast() {
				return a, true
			}
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, false
	}
	for _, x := range addrs {
		if p, err := netip.ParsePrefix(x.String()); err == nil && p.Addr().Is6() == v6 && p.Addr().IsGlobalUnicast() {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}

func sockaddrIP(sa unix.Sockaddr) netip.Addr {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(sa.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(sa.Addr)
	}
	return netip.Addr{}
}

// isHostAddr tells whether the host itself has an address. What cannot be asked
// is answered with yes.
func isHostAddr(a netip.Addr) bool {
	routes, err := netlink.RouteGet(a.Unmap().AsSlice())
	if err != nil {
		return err != unix.ENETUNREACH && err != unix.EHOSTUNREACH
	}
	for _, r := range routes {
		if r.Type == unix.RTN_LOCAL || r.Type == unix.RTN_BROADCAST {
			return true
		}
	}
	return false
}
