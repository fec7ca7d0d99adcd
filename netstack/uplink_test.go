package netstack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// newSegment is a network outside: a bridge with a TAP in a namespace of its own, in
// which its guest is the host 192.168.77.1, fd77::1, and 192.168.78.1 on a VLAN.
func newSegment(t *testing.T, vlan uint16) (*guest, *Uplink) {
	t.Helper()
	g := newGuest(t)
	for _, args := range []string{
		"link add br0 type bridge", "tuntap add dev tap0 mode tap", "link set tap0 master br0", "link set tap0 up",
		"link set br0 up", "addr add 192.168.77.1/24 dev br0", "addr add fd77::1/64 dev br0 nodad",
	} {
		g.do("ip", request{Args: strings.Fields(args)})
	}
	if vlan != 0 {
		if _, err := g.try("ip", request{Args: strings.Fields(fmt.Sprint("link add link br0 name vlan type vlan id ", vlan))}); err != nil {
			t.Skipf("this kernel has no VLAN devices: %v", err)
		}
		g.do("ip", request{Args: strings.Fields("link set vlan up")})
		g.do("ip", request{Args: strings.Fields("addr add 192.168.78.1/24 dev vlan")})
	}
	g.do("set-sysctl", request{Addr: "net/ipv4/ping_group_range", Text: "0 0"})
	resp := g.do("uplink", request{Addr: "tap0"})
	u, err := UplinkFrom(g.link)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Text != "tap0" || resp.Link.MTU != 1500 || u.Name != "tap0" || u.MTU != 1500 {
		t.Errorf("uplink %q with MTU %d, then %+v", resp.Text, resp.Link.MTU, u)
	}
	return g, u
}

// onSegment makes a guest with addresses of the segment. pinned: the switch
// knows them.
func (l *lan) onSegment(t *testing.T, i int, prefix4 string, pinned bool) *guest {
	t.Helper()
	g := newGuest(t)
	a4 := netip.MustParseAddr(fmt.Sprintf("%s.%d", prefix4, 10+i))
	a6 := netip.MustParseAddr(fmt.Sprintf("fd77::%d", 10+i))
	cfg := GuestConfig{MAC: net.HardwareAddr{2, 0, 0, 0, 7, byte(10 + i)}, MTU: l.cfg.MTU,
		Addrs: []netip.Prefix{netip.PrefixFrom(a4, 24), netip.PrefixFrom(a6, 64)}}
	g.setup(cfg)
	pc := PortConfig{ID: fmt.Sprint("guest", i), MAC: cfg.MAC, Link: g.link, Driver: g.info.Driver, HdrLen: g.info.HdrLen}
	if pinned {
		pc.Addr4, pc.Addr6 = a4, a6
	}
	if _, err := l.Attach(pc); err != nil {
		t.Fatal(err)
	}
	return g
}

// TestUplink is members and a host outside, on one segment, as if there were no
// switch between them.
func TestUplink(t *testing.T) {
	for _, vlan := range []uint16{0, 10} {
		t.Run(fmt.Sprint("vlan", vlan), func(t *testing.T) {
			host, u := newSegment(t, vlan)
			l := newLAN(t, func(c *Config) {
				c.Subnet4, c.Subnet6, c.Uplink, c.VLAN = netip.Prefix{}, netip.Prefix{}, u, vlan
			})
			prefix4 := map[uint16]string{0: "192.168.77", 10: "192.168.78"}[vlan]
			fixed, free := l.onSegment(t, 0, prefix4, true), l.onSegment(t, 1, prefix4, false)
			stations := map[string]*guest{prefix4 + ".1": host, prefix4 + ".10": fixed, prefix4 + ".11": free}
			if vlan == 0 {
				stations["fd77::1"], stations["fd77::10"], stations["fd77::11"] = host, fixed, free
			}
			for addr, g := range stations {
				g.do("listen", request{Network: "tcp", Addr: net.JoinHostPort(addr, "5000")})
				g.do("listen-udp", request{Network: "udp", Addr: net.JoinHostPort(addr, "5000")})
			}
			for from, g := range stations {
				for to, h := range stations {
					if g == h || strings.Contains(from, ":") != strings.Contains(to, ":") {
						continue
					}
					t.Run(from+" to "+to, func(t *testing.T) {
						g := g.in(t)
						at := net.JoinHostPort(to, "5000")
						g.do("ping", request{Addr: to, Sizes: []int{56}})
						for _, op := range "UD" {
							g.do("tcp", request{Network: "tcp", Addr: at, Transfer: transfer{Op: byte(op), Size: 2 << 20, Seed: 7}})
						}
						g.do("udp", request{Network: "udp", Addr: at, Sizes: []int{1, 1400, 4000}})
					})
				}
			}
			s := l.Stats()
			if s.Uplink == nil || s.Uplink.FromGuest.Frames == 0 || s.Uplink.ToGuest.Frames == 0 {
				t.Errorf("%+v", s)
			}
			for id, p := range s.Ports {
				if p.Drops[DropSpoofed.String()]+p.Drops[DropMalformed.String()] > 0 {
					t.Errorf("%s: %v", id, p.Drops)
				}
			}
		})
	}
}

// uplinkLAN is a network whose uplink is a cable.
func uplinkLAN(t testing.TB) (*lan, *os.File) {
	near, far := cableFiles(t)
	return newLAN(t, func(c *Config) { c.Uplink = &Uplink{File: near, Name: "cable", MTU: 1500} }), far
}

// TestUplinkRules is what crosses an uplink, frame by frame.
func TestUplinkRules(t *testing.T) {
	l, far := uplinkLAN(t)
	outside := &wireGuest{t: t, port: l.members.Load().uplink, far: far, mac: macAddr{2, 0, 0, 0, 9, 9},
		a4: netip.MustParseAddr("10.99.0.200"), a6: linkLocal6(macAddr{2, 0, 0, 0, 9, 9})}
	fixed := l.wire(t, 0)
	free := l.wireWith(t, 1, func(c *PortConfig) { c.Addr4, c.Addr6 = netip.Addr{}, netip.Addr{} })
	free.a4, free.a6 = netip.MustParseAddr("10.99.0.201"), linkLocal6(free.mac)
	all := []*wireGuest{outside, fixed, free}

	dhcp := func(w *wireGuest, from, to uint16, src netip.Addr) []byte {
		return ethernetFrame(everyone, w.mac, etherIPv4, udpDatagram(netip.AddrPortFrom(src, from), netip.AddrPortFrom(bcast4, to), make([]byte, 300)))
	}
	unicast := func(from, to *wireGuest, src netip.Addr) []byte {
		return ethernetFrame(to.mac, from.mac, etherIPv4, udpDatagram(netip.AddrPortFrom(src, 1), netip.AddrPortFrom(to.a4, 2), nil))
	}
	arp := func(from *wireGuest, dst macAddr, op byte, spa, tpa netip.Addr) []byte {
		b := arpRequest(from.mac, spa, tpa)
		b[7] = op
		return ethernetFrame(dst, from.mac, etherARP, b)
	}
	router := func(from *wireGuest, typ byte, src netip.Addr) []byte {
		m := make([]byte, 24)
		m[0] = typ
		m[16], m[17] = 1, 1
		if typ == ndRouterSolicit {
			m = m[:16]
			m[8], m[9] = 1, 1
			copy(m[10:], from.mac[:])
		} else {
			copy(m[18:], from.mac[:])
		}
		dst := netip.MustParseAddr("ff02::1")
		binary.BigEndian.PutUint16(m[2:], ^sum(pseudoSum(src, dst, protoICMPv6, len(m)), m))
		return ethernetFrame(macAddr{0x33, 0x33, 0, 0, 0, 1}, from.mac, etherIPv6, ipDatagram(src, dst, protoICMPv6, 255, m))
	}
	advert := func(from *wireGuest, target netip.Addr) []byte {
		m := neighborMessage(ndNeighborAdvert, from.a6, target, from.mac)
		return ethernetFrame(macAddr{0x33, 0x33, 0, 0, 0, 1}, from.mac, etherIPv6, m)
	}
	group := macAddr{1, 0, 0x5e, 0, 0, 22}
	zero := netip.IPv4Unspecified()
	stranger := netip.MustParseAddr("192.0.2.77")

	for _, c := range []struct {
		name  string
		from  *wireGuest
		frame []byte
		to    []*wireGuest
		drop  Drop
	}{
		{"out", fixed, unicast(fixed, outside, fixed.a4), []*wireGuest{outside}, -1},
		{"in", outside, unicast(outside, fixed, stranger), []*wireGuest{fixed}, -1},
		{"between members", free, unicast(free, fixed, free.a4), []*wireGuest{fixed}, -1},
		{"in for nobody", outside, ethernetFrame(macAddr{2, 7}, outside.mac, etherIPv4, unicast(outside, fixed, stranger)[ethLen:]), nil, DropNoMember},
		{"a member's MAC from outside", outside, unicast(fixed, free, stranger), nil, DropSpoofed},
		{"a member's address from outside", outside, unicast(outside, free, fixed.a4), nil, DropSpoofed},
		{"another address of a fixed member", fixed, unicast(fixed, outside, stranger), nil, DropSpoofed},
		{"any address of a free member", free, unicast(free, outside, stranger), []*wireGuest{outside}, -1},
		{"a fixed member's address of a free one", free, unicast(free, outside, fixed.a4), nil, DropSpoofed},
		{"another MAC", free, unicast(fixed, outside, stranger), nil, DropSpoofed},
		{"DHCP request", free, dhcp(free, 68, 67, zero), []*wireGuest{outside, fixed}, -1},
		{"DHCP request of a fixed member", fixed, dhcp(fixed, 68, 67, zero), nil, DropSpoofed},
		{"DHCP answer", outside, dhcp(outside, 67, 68, outside.a4), []*wireGuest{fixed, free}, -1},
		{"DHCP answer of a member", free, dhcp(free, 67, 68, free.a4), nil, DropNeighbor},
		{"ARP request out", fixed, arp(fixed, everyone, arpQuery, fixed.a4, outside.a4), []*wireGuest{outside, free}, -1},
		{"ARP announcement", free, arp(free, everyone, arpQuery, free.a4, free.a4), []*wireGuest{outside}, -1},
		{"ARP probe", free, arp(free, everyone, arpQuery, zero, free.a4), []*wireGuest{outside}, -1},
		{"ARP request in for a free member", outside, arp(outside, everyone, arpQuery, outside.a4, free.a4), []*wireGuest{free}, -1},
		{"ARP answer in", outside, arp(outside, fixed.mac, arpReply, outside.a4, fixed.a4), []*wireGuest{fixed}, -1},
		{"ARP answer out", free, arp(free, outside.mac, arpReply, free.a4, outside.a4), []*wireGuest{outside}, -1},
		{"ARP answer for a fixed member", free, arp(free, outside.mac, arpReply, fixed.a4, outside.a4), nil, DropSpoofed},
		{"ARP answer of a fixed member", fixed, arp(fixed, outside.mac, arpReply, fixed.a4, outside.a4), nil, DropNeighbor},
		{"router solicitation", free, router(free, ndRouterSolicit, free.a6), []*wireGuest{outside}, -1},
		{"router advertisement", outside, router(outside, ndRouterAdvert, outside.a6), []*wireGuest{free}, -1},
		{"router advertisement of a member", free, router(free, ndRouterAdvert, free.a6), nil, DropNeighbor},
		{"redirect", outside, router(outside, ndRedirect, outside.a6), nil, DropNeighbor},
		{"advertisement", free, advert(free, free.a6), []*wireGuest{outside}, -1},
		{"advertisement for a fixed member", free, advert(free, fixed.a6), nil, DropSpoofed},
		{"IGMP report", fixed, ethernetFrame(group, fixed.mac, etherIPv4, groupReportOf(fixed.a4, 0x22)), []*wireGuest{outside}, -1},
		{"IGMP query", outside, ethernetFrame(group, outside.mac, etherIPv4, groupReportOf(outside.a4, 0x11)), []*wireGuest{fixed, free}, -1},
		{"IGMP query of a member", free, ethernetFrame(group, free.mac, etherIPv4, groupReportOf(free.a4, 0x11)), nil, DropGroup},
		{"IGMP report from outside", outside, ethernetFrame(group, outside.mac, etherIPv4, groupReportOf(outside.a4, 0x16)), nil, DropGroup},
		{"VLAN of nobody", outside, tagFrame(unicast(outside, fixed, stranger), dot1q(7)), nil, DropNoMember},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := c.from.port.Stats().Drops
			c.from.send(vnetHdr{}, c.frame)
			for _, w := range c.to {
				if got := w.receive(2 * time.Second); !bytes.Equal(got, c.frame) {
					t.Errorf("%s received % x", w.a4, got)
				}
			}
			only(t, all, nil, nil)
			if c.drop < 0 {
				return
			}
			if n := c.from.port.Stats().Drops[c.drop.String()] - before[c.drop.String()]; n != 1 {
				t.Errorf("%v, then %v; want one %s", before, c.from.port.Stats().Drops, c.drop)
			}
		})
	}
	t.Run("the switch answers for a fixed member", func(t *testing.T) {
		outside.send(vnetHdr{}, arp(outside, everyone, arpQuery, outside.a4, fixed.a4))
		if got := outside.receive(2 * time.Second); len(got) < ethLen || macAddr(got[6:12]) != fixed.mac || macAddr(got[:6]) != outside.mac {
			t.Errorf("answer % x", got)
		}
		only(t, all, nil, nil)
	})
	t.Run("there is no gateway", func(t *testing.T) {
		fixed.send(vnetHdr{}, arp(fixed, everyone, arpQuery, fixed.a4, netip.MustParseAddr("10.99.0.1")))
		for _, w := range []*wireGuest{outside, free} {
			if got := w.receive(2 * time.Second); len(got) < ethLen || got[ethLen+7] != arpQuery {
				t.Errorf("%s received % x", w.a4, got)
			}
		}
		only(t, all, nil, nil)
	})
}

// TestOpenUplinkRefuses is every device that is none, and what to do about it.
func TestOpenUplinkRefuses(t *testing.T) {
	g := newGuest(t)
	for _, args := range []string{"link add br0 type bridge", "tuntap add dev tap8 mode tap", "tuntap add dev tun9 mode tun", "link set tun9 up"} {
		g.do("ip", request{Args: strings.Fields(args)})
	}
	for device, want := range map[string]string{
		"br0": "bridge device, not a TAP", "tap8": "ip link set tap8 up", "nosuch": "nosuch: Link not found", "tun9": "attach to TAP tun9",
		"/dev/tapx": "not the node of a macvtap", "/dev/tap99999": "not found", "": "uplink",
	} {
		if _, err := g.try("uplink", request{Addr: device}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", device, err, want)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := UplinkFrom(r); err == nil || !strings.Contains(err.Error(), "not that of a TAP") {
		t.Errorf("a pipe: %v", err)
	}
}
