package netstack

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// subnetBits is the size of an IPv4 subnet of ours: 1021 sandboxes.
const subnetBits = 22

// candidates4 are where we look for an IPv4 subnet, in this order: the parts of
// 10/8 that home routers, Docker, Podman and cloud networks rarely use, then
// the other private ranges, the carriers' and the one for benchmarks.
func candidates4(start uint32) []netip.Prefix {
	var out []netip.Prefix
	add := func(base [4]byte, bits int) {
		n := uint32(1) << (subnetBits - bits)
		first := binary.BigEndian.Uint32(base[:])
		// 256 of each range, spread by start: enough to find a hole.
		for i := range min(n, 256) {
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], first+((start+i*0x9e3779b1)%n)<<(32-subnetBits))
			out = append(out, netip.PrefixFrom(netip.AddrFrom4(b), subnetBits))
		}
	}
	add([4]byte{10, 192, 0, 0}, 11)   // 10.192 to 10.223
	add([4]byte{172, 24, 0, 0}, 13)   // 172.24 to 172.31
	add([4]byte{10, 128, 0, 0}, 10)   // 10.128 to 10.191
	add([4]byte{192, 168, 64, 0}, 18) // 192.168.64 to 192.168.127
	add([4]byte{100, 96, 0, 0}, 11)
	add([4]byte{198, 18, 0, 0}, 15)
	return out
}

// HostPrefix is a destination that the host reaches by itself.
type HostPrefix struct {
	Prefix netip.Prefix
	// Far is set for a route through a gateway: a guess of its administrator at
	// what may be there, often as wide as 10.0.0.0/8.
	Far bool
}

// HostPrefixes reads the addresses and routes, of every table, of the network
// namespace this process is in. Default routes are left out, and so are the two
// halves by which VPNs replace them.
func HostPrefixes() ([]HostPrefix, error) {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("read the host's addresses: %w", err)
	}
	var out []HostPrefix
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			bits, _ := a.Mask.Size()
			out = append(out, HostPrefix{Prefix: netip.PrefixFrom(ip.Unmap(), bits).Masked()})
		}
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("read the host's routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Dst.IP)
		bits, _ := r.Dst.Mask.Size()
		if !ok || bits <= 1 {
			continue
		}
		out = append(out, HostPrefix{netip.PrefixFrom(ip.Unmap(), bits).Masked(), r.Gw != nil || len(r.MultiPath) > 0})
	}
	return out, nil
}

// ErrNoSubnet: every candidate clashes with something the host reaches.
type ErrNoSubnet struct {
	Tried int
	Clash netip.Prefix // with the last one tried
}

func (e *ErrNoSubnet) Error() string {
	return fmt.Sprintf("no free subnet: each of %d candidates overlaps a route of the host, the last one %s; choose one by hand", e.Tried, e.Clash)
}

// SubnetChoice is a network's subnets and why these.
type SubnetChoice struct {
	Subnet4, Subnet6 netip.Prefix
	// Overlap is the far route of the host that Subnet4 lies in, if there was no
	// subnet without one. Sandboxes cannot reach that part of it.
	Overlap netip.Prefix
}

// ChooseSubnets picks a network's subnets. The choice depends on the user and
// the network's name alone as long as the host has no routes in its way, so
// that a network keeps its addresses; candidates nil means ours.
func ChooseSubnets(uid uint32, name string, candidates []netip.Prefix, host []HostPrefix) (SubnetChoice, error) {
	h := networkHash(uid, name)
	if candidates == nil {
		candidates = candidates4(binary.BigEndian.Uint32(h[8:]))
	}
	c := SubnetChoice{Subnet6: ulaOf(h)}
	for i := 0; i < 16 && clash(c.Subnet6, host, true).IsValid(); i++ {
		h = sha256.Sum256(h[:])
		c.Subnet6 = ulaOf(h)
	}
	var last netip.Prefix
	// Where a company routes all private addresses into its VPN, nothing is
	// free; then a part of a far route does, but never one with a more
	// specific route or an address of the host inside.
	for _, far := range []bool{true, false} {
		for _, s := range candidates {
			p := clash(s, host, far)
			if !p.IsValid() {
				c.Subnet4 = s.Masked()
				c.Overlap = clash(s, host, true)
				return c, nil
			}
			last = p
		}
	}
	return SubnetChoice{}, &ErrNoSubnet{len(candidates), last}
}

// clash returns what of the host's overlaps s; with far unset, far routes that
// are wider than s do not count.
func clash(s netip.Prefix, host []HostPrefix, far bool) netip.Prefix {
	for _, p := range host {
		if p.Prefix.Overlaps(s) && (far || !p.Far || p.Prefix.Bits() > s.Bits()) {
			return p.Prefix
		}
	}
	return netip.Prefix{}
}

// ULA is the IPv6 subnet of a network: a unique local /64 (RFC 4193) that
// follows from the user and the name.
func ULA(uid uint32, name string) netip.Prefix { return ulaOf(networkHash(uid, name)) }

func networkHash(uid uint32, name string) [32]byte {
	return sha256.Sum256(fmt.Appendf(nil, "sbx network\x00%d\x00%s", uid, name))
}

func ulaOf(h [32]byte) netip.Prefix {
	var b [16]byte
	b[0] = 0xfd
	copy(b[1:8], h[:7]) // 40 bits of global id and 16 of subnet id
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}
