package netstack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// handle is a route netlink socket in the calling thread's namespace.
type handle struct{ *netlink.Handle }

func newHandle() (handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return handle{}, fmt.Errorf("open a netlink socket: %w", err)
	}
	return handle{h}, nil
}

func (h handle) up(name string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// configureLink gives the guest's interface its MAC, MTU, addresses and
// routes. It returns notes about settings that the kernel refused.
func configureLink(cfg GuestConfig, link *GuestLink) ([]string, error) {
	h, err := newHandle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	l, err := h.LinkByName(cfg.Name)
	if err != nil {
		return nil, fmt.Errorf("find the interface: %w", err)
	}
	if l.Attrs().HardwareAddr.String() != cfg.MAC.String() {
		if err := h.LinkSetHardwareAddr(l, cfg.MAC); err != nil {
			return nil, fmt.Errorf("set the MAC address %s: %w", cfg.MAC, err)
		}
	}
	if l.Attrs().MTU != cfg.MTU {
		if err := h.LinkSetMTU(l, cfg.MTU); err != nil {
			return nil, fmt.Errorf("set MTU %d: %w", cfg.MTU, err)
		}
	}

	if link.Driver == DriverTap {
		if err := h.LinkSetTxQLen(l, tapQueue); err != nil {
			return nil, fmt.Errorf("set the length of its queue: %w", err)
		}
	}

	ip6 := cfg.MTU >= minMTU6
	var notes []string
	switch {
	case !ip6:
		notes = []string{fmt.Sprintf("no IPv6, as MTU %d is below %d", cfg.MTU, minMTU6)}
	case !cfg.Autoconf && !slices.ContainsFunc(cfg.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() }):
		// Else the kernel would speak of itself there, from an address that is not its.
		notes = setSysctls("net/ipv6/conf/"+cfg.Name+"/disable_ipv6", "1")
	default:
		// Everything is configured here, and addresses are unique because the
		// network gave them out: neither router nor duplicate discovery.
		own := "0"
		if cfg.Autoconf {
			own = "1"
		}
		notes = setSysctls(
			"net/ipv6/conf/"+cfg.Name+"/accept_ra", own,
			"net/ipv6/conf/"+cfg.Name+"/accept_dad", own,
		)
	}
	if err := h.LinkSetUp(l); err != nil {
		return nil, fmt.Errorf("bring it up: %w", err)
	}
	if link.Driver == DriverTap {
		if err := setCarrier(link.File, true); err != nil {
			return nil, fmt.Errorf("give it its carrier: %w", err)
		}
	}

	return notes, h.place(l, cfg)
}

// place adds the addresses and the default routes.
func (h handle) place(l netlink.Link, cfg GuestConfig) error {
	ip6 := cfg.MTU >= minMTU6
	for _, p := range cfg.Addrs {
		if p.Addr().Is6() && !ip6 {
			continue
		}
		if err := h.AddrReplace(l, linkAddr(p)); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	for _, gw := range cfg.Gateways {
		if gw.Is6() && !ip6 {
			continue
		}
		r := defaultRoute(l, gw, cfg.Metric)
		if !contains(cfg.Addrs, gw) {
			r.Flags = int(netlink.FLAG_ONLINK)
		}
		if err := h.RouteReplace(r); err != nil {
			return fmt.Errorf("add default route via %s: %w", gw, err)
		}
	}
	return nil
}

// move takes what gone has and cfg has not, and adds the rest. What somebody inside has
// removed is no error.
func (h handle) move(gone, cfg GuestConfig) error {
	l, err := h.LinkByName(cfg.Name)
	if err != nil {
		return fmt.Errorf("find the interface: %w", err)
	}
	for _, gw := range gone.Gateways {
		if slices.Contains(cfg.Gateways, gw) {
			continue
		}
		if err := h.RouteDel(defaultRoute(l, gw, gone.Metric)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove default route via %s: %w", gw, err)
		}
	}
	for _, p := range gone.Addrs {
		if slices.Contains(cfg.Addrs, p) {
			continue
		}
		if err := h.AddrDel(l, linkAddr(p)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s: %w", p, err)
		}
	}
	return h.place(l, cfg)
}

func linkAddr(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func defaultRoute(l netlink.Link, gw netip.Addr, metric int) *netlink.Route {
	return &netlink.Route{LinkIndex: l.Attrs().Index, Gw: gw.AsSlice(), Priority: metric, Dst: ipNet(netip.PrefixFrom(unspecified(gw), 0))}
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Masked().Contains(a) {
			return true
		}
	}
	return false
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
