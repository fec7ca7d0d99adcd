package netstack

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tagFrame puts 802.1Q tags into a frame, the outer one first.
func tagFrame(frame []byte, tags ...uint32) []byte {
	out := append([]byte{}, frame[:12]...)
	for _, t := range tags {
		out = binary.BigEndian.AppendUint32(out, t)
	}
	return append(out, frame[12:]...)
}

func dot1q(vlan uint16) uint32 { return etherVLAN<<16 | uint32(vlan) }

// only checks that exactly one of the guests gets the frame, or nobody.
func only(t *testing.T, all []*wireGuest, to *wireGuest, want []byte) {
	t.Helper()
	if to != nil {
		if got := to.receive(2 * time.Second); !bytes.Equal(got, want) {
			t.Errorf("received\n% x, want\n% x", got, want)
		}
	}
	for i, w := range all {
		if got := w.receive(5 * time.Millisecond); got != nil {
			t.Errorf("guest %d received % x", i, got)
		}
	}
}

// TestVLANs is who can send to whom, and in which form it arrives.
func TestVLANs(t *testing.T) {
	l := newLAN(t, nil)
	vlans := func(vlan uint16, trunk ...uint16) func(*PortConfig) {
		return func(c *PortConfig) { c.VLAN, c.Trunk = vlan, trunk }
	}
	plain, ten, ten2 := l.wire(t, 0), l.wireWith(t, 1, vlans(10)), l.wireWith(t, 2, vlans(10))
	trunk, trunk2 := l.wireWith(t, 3, vlans(0, 10, 20)), l.wireWith(t, 4, vlans(0, 20, 10, 20))
	all := []*wireGuest{plain, ten, ten2, trunk, trunk2}
	frame := func(from, to *wireGuest) []byte {
		return ethernetFrame(to.mac, from.mac, etherIPv4,
			udpDatagram(netip.AddrPortFrom(from.a4, 1), netip.AddrPortFrom(to.a4, 2), bytes.Repeat([]byte("x"), 600)))
	}
	for _, c := range []struct {
		name     string
		from, to *wireGuest
		out, in  []uint32 // tags
		drop     Drop
	}{
		{"access to access", ten, ten2, nil, nil, -1},
		{"access to trunk", ten, trunk, nil, []uint32{dot1q(10)}, -1},
		{"trunk to access", trunk, ten, []uint32{dot1q(10)}, nil, -1},
		{"trunk to trunk", trunk, trunk2, []uint32{dot1q(20)}, []uint32{dot1q(20)}, -1},
		{"a priority is carried", trunk, trunk2, []uint32{dot1q(20 | 5<<13)}, []uint32{dot1q(20 | 5<<13)}, -1},
		{"a priority alone is no VLAN", plain, trunk, []uint32{dot1q(3 << 13)}, nil, -1},
		{"untagged on a trunk", trunk, plain, nil, nil, -1},
		{"access to the network", ten, plain, nil, nil, DropNoMember},
		{"network to access", plain, ten, nil, nil, DropNoMember},
		{"tag on an access port", ten, ten2, []uint32{dot1q(20)}, nil, DropVLAN},
		{"tag on a plain port", plain, ten, []uint32{dot1q(10)}, nil, DropVLAN},
		{"own tag on an access port", ten, ten2, []uint32{dot1q(10)}, nil, -1},
		{"VLAN that the trunk has not", trunk, trunk2, []uint32{dot1q(30)}, nil, DropVLAN},
		{"reserved VLAN", trunk, trunk2, []uint32{dot1q(4095)}, nil, DropVLAN},
		{"two tags", trunk, trunk2, []uint32{dot1q(20), dot1q(10)}, nil, DropQinQ},
		{"two tags on a plain port", plain, trunk, []uint32{dot1q(0), dot1q(10)}, nil, DropQinQ},
		{"provider's tag", trunk, trunk2, []uint32{etherQinQ<<16 | 20}, nil, DropQinQ},
		{"provider's and customer's tag", trunk, trunk2, []uint32{etherQinQ<<16 | 20, dot1q(10)}, nil, DropQinQ},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := c.from.port.Stats().Drops
			f := frame(c.from, c.to)
			c.from.send(vnetHdr{}, tagFrame(f, c.out...))
			if c.drop < 0 {
				only(t, all, c.to, tagFrame(f, c.in...))
				return
			}
			only(t, all, nil, nil)
			if n := c.from.port.Stats().Drops[c.drop.String()] - before[c.drop.String()]; n != 1 {
				t.Errorf("counted as %v before, then %v; want one %s", before, c.from.port.Stats().Drops, c.drop)
			}
		})
	}

	t.Run("offsets follow the tag", func(t *testing.T) {
		// A super-segment: its header says where the checksum is, and the receiver
		// must find it there.
		seg := make([]byte, 5000)
		seg[12] = 0x50
		f := ethernetFrame(ten.mac, trunk.mac, etherIPv4, ipDatagram(trunk.a4, ten.a4, protoTCP, 64, seg))
		h := vnetHdr{flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, gsoType: unix.VIRTIO_NET_HDR_GSO_TCPV4, gsoSize: 1448,
			hdrLen: ethLen + vlanTagLen + 40, csumStart: ethLen + vlanTagLen + ip4Len, csumOffset: 16}
		trunk.send(h, tagFrame(f, dot1q(10)))
		plainHdr := h
		plainHdr.csumStart, plainHdr.hdrLen = ethLen+ip4Len, ethLen+40
		if got, frame := ten.receiveRaw(2 * time.Second); got != plainHdr || !bytes.Equal(frame, f) {
			t.Errorf("header %+v, want %+v", got, plainHdr)
		}
		back := ethernetFrame(trunk.mac, ten.mac, etherIPv4, ipDatagram(ten.a4, trunk.a4, protoTCP, 64, seg))
		ten.send(plainHdr, back)
		if got, frame := trunk.receiveRaw(2 * time.Second); got != h || !bytes.Equal(frame, tagFrame(back, dot1q(10))) {
			t.Errorf("header %+v, want %+v", got, h)
		}
	})
	t.Run("broadcast stays in its VLAN", func(t *testing.T) {
		f := ethernetFrame(everyone, ten.mac, etherIPv4, udpDatagram(netip.AddrPortFrom(ten.a4, 1), netip.AddrPortFrom(bcast4, 2), []byte("all")))
		ten.send(vnetHdr{}, f)
		for _, c := range []struct {
			w    *wireGuest
			want []byte
		}{{ten2, f}, {trunk, tagFrame(f, dot1q(10))}, {trunk2, tagFrame(f, dot1q(10))}} {
			if got := c.w.receive(2 * time.Second); !bytes.Equal(got, c.want) {
				t.Errorf("received % x, want % x", got, c.want)
			}
		}
		only(t, all, nil, nil)
	})
	t.Run("the gateway is in its own VLAN", func(t *testing.T) {
		ten.send(vnetHdr{}, ethernetFrame(everyone, ten.mac, etherARP, arpRequest(ten.mac, ten.a4, l.cfg.Gateway4)))
		// It goes to the trunks: their addresses are unknown.
		for _, w := range []*wireGuest{trunk, trunk2} {
			if got := w.receive(2 * time.Second); len(got) < ethLen+vlanTagLen || got[ethLen+vlanTagLen+7] != arpQuery {
				t.Errorf("received % x", got)
			}
		}
		ten.send(vnetHdr{}, ethernetFrame(l.gwMAC, ten.mac, etherIPv4, udpDatagram(netip.AddrPortFrom(ten.a4, 1), netip.AddrPortFrom(outside4, 2), nil)))
		only(t, all, nil, nil)
		if n := ten.port.nat.find(protoUDP, netip.AddrPortFrom(ten.a4, 1)); n != nil {
			t.Error("the gateway served another VLAN")
		}
		if _, err := l.OpenUDP(netip.AddrPortFrom(outside4, 9), netip.AddrPortFrom(ten.a4, 9), nil); err == nil {
			t.Error("the gateway forwarded into another VLAN")
		}
	})
}

// TestTrunkAddresses is a guest that has addresses of its own in a VLAN.
func TestTrunkAddresses(t *testing.T) {
	l := newLAN(t, nil)
	access := l.wireWith(t, 0, func(c *PortConfig) { c.VLAN = 10 })
	router := l.wireWith(t, 1, func(c *PortConfig) { c.Trunk = []uint16{10} })
	all := []*wireGuest{access, router}
	own := netip.MustParseAddr("192.168.7.1")
	ask := func(from *wireGuest, spa, tpa netip.Addr) []byte {
		return ethernetFrame(everyone, from.mac, etherARP, arpRequest(from.mac, spa, tpa))
	}
	// The question goes to the trunk, whose answer comes back.
	access.send(vnetHdr{}, ask(access, access.a4, own))
	only(t, all, router, tagFrame(ask(access, access.a4, own), dot1q(10)))
	reply := ethernetFrame(access.mac, router.mac, etherARP, arpRequest(router.mac, own, access.a4))
	reply[ethLen+7] = arpReply
	router.send(vnetHdr{}, tagFrame(reply, dot1q(10)))
	only(t, all, access, reply)
	// The switch answers for members, in the VLAN that was asked.
	router.send(vnetHdr{}, tagFrame(ask(router, own, access.a4), dot1q(10)))
	got := router.receive(2 * time.Second)
	if want := ethernetFrame(router.mac, access.mac, etherVLAN, nil); len(got) < ethLen || !bytes.Equal(got[:ethLen], want) {
		t.Errorf("answer % x", got)
	}
	// What it routes is not from itself.
	routed := ethernetFrame(access.mac, router.mac, etherIPv4, udpDatagram(netip.AddrPortFrom(outside4, 1), netip.AddrPortFrom(access.a4, 2), nil))
	router.send(vnetHdr{}, tagFrame(routed, dot1q(10)))
	only(t, all, access, routed)

	for name, f := range map[string][]byte{
		"a member's address":       ethernetFrame(everyone, router.mac, etherIPv4, udpDatagram(netip.AddrPortFrom(access.a4, 1), netip.AddrPortFrom(bcast4, 2), nil)),
		"a member's address (ARP)": ask(router, access.a4, own),
		"another MAC":              ethernetFrame(everyone, access.mac, etherIPv4, udpDatagram(netip.AddrPortFrom(own, 1), netip.AddrPortFrom(bcast4, 2), nil)),
		"another MAC (ARP)":        ethernetFrame(everyone, router.mac, etherARP, arpRequest(access.mac, own, access.a4)),
	} {
		before := router.port.Stats().Drops["spoofed"]
		router.send(vnetHdr{}, tagFrame(f, dot1q(10)))
		only(t, all, nil, nil)
		if n := router.port.Stats().Drops["spoofed"] - before; n != 1 {
			t.Errorf("%s: counted as %v", name, router.port.Stats().Drops)
		}
	}
	// And in its own VLAN its address is pinned.
	before := router.port.Stats().Drops["spoofed"]
	router.send(vnetHdr{}, ask(router, own, access.a4))
	if n := router.port.Stats().Drops["spoofed"] - before; n != 1 {
		t.Errorf("an address of its own without a tag: counted as %v", router.port.Stats().Drops)
	}
}

// TestPrivate is a network whose members may not talk to each other.
func TestPrivate(t *testing.T) {
	l := newLAN(t, func(c *Config) { c.Private = true })
	a, b := l.wire(t, 0), l.wire(t, 1)
	all := []*wireGuest{a, b}
	datagram := udpDatagram(netip.AddrPortFrom(a.a4, 1), netip.AddrPortFrom(b.a4, 2), nil)
	for name, f := range map[string][]byte{
		"unicast":   ethernetFrame(b.mac, a.mac, etherIPv4, datagram),
		"broadcast": ethernetFrame(everyone, a.mac, etherIPv4, datagram),
	} {
		before := a.port.Stats().Drops["private"]
		a.send(vnetHdr{}, f)
		only(t, all, nil, nil)
		if n := a.port.Stats().Drops["private"] - before; n != 1 {
			t.Errorf("%s: counted as %v", name, a.port.Stats().Drops)
		}
	}
	// The gateway stands for the other one, and says no.
	a.send(vnetHdr{}, ethernetFrame(everyone, a.mac, etherARP, arpRequest(a.mac, a.a4, b.a4)))
	if got := a.receive(2 * time.Second); len(got) < ethLen || macAddr(got[6:12]) != l.gwMAC {
		t.Errorf("answer % x", got)
	}
	a.send(vnetHdr{}, ethernetFrame(l.gwMAC, a.mac, etherIPv4, datagram))
	got := a.receive(2 * time.Second)
	if ip, ok := parseIP(etherIPv4, got[ethLen:], nil); !ok || ip.l4()[0] != 3 || ip.l4()[1] != 13 {
		t.Errorf("answer % x, want prohibited", got)
	}
	only(t, all, nil, nil)
}

// groupReport is IGMPv3, of a kind.
func groupReportOf(src netip.Addr, kind byte) []byte {
	if src.Is4() {
		m := []byte{kind, 0, 0, 0, 0, 0, 0, 0}
		binary.BigEndian.PutUint16(m[2:], ^sum(0, m))
		return ipDatagram(src, netip.AddrFrom4([4]byte{224, 0, 0, 22}), protoIGMP, 1, m)
	}
	m := make([]byte, 24)
	m[0] = kind
	dst := netip.MustParseAddr("ff02::16")
	binary.BigEndian.PutUint16(m[2:], ^sum(pseudoSum(src, dst, protoICMPv6, len(m)), m))
	return ipDatagram(src, dst, protoICMPv6, 1, m)
}

// TestMulticast is that groups work between members, and that nobody can use the
// protocols that manage them.
func TestMulticast(t *testing.T) {
	l := newLAN(t, nil)
	a, b, c := l.wire(t, 0), l.wire(t, 1), l.wire(t, 2)
	all := []*wireGuest{a, b, c}
	for name, m := range map[string]struct {
		mac       macAddr
		src, dst  netip.Addr
		etherType uint16
	}{
		"mDNS":  {macAddr{1, 0, 0x5e, 0, 0, 251}, a.a4, netip.MustParseAddr("224.0.0.251"), etherIPv4},
		"mDNS6": {macAddr{0x33, 0x33, 0, 0, 0, 0xfb}, a.port.ll6, netip.MustParseAddr("ff02::fb"), etherIPv6},
	} {
		f := ethernetFrame(m.mac, a.mac, m.etherType, udpDatagram(netip.AddrPortFrom(m.src, 5353), netip.AddrPortFrom(m.dst, 5353), []byte("q")))
		a.send(vnetHdr{}, f)
		for _, w := range []*wireGuest{b, c} {
			if got := w.receive(2 * time.Second); !bytes.Equal(got, f) {
				t.Errorf("%s: received % x", name, got)
			}
		}
	}
	to := macAddr{1, 0, 0x5e, 0, 0, 22}
	frames := 0
	for _, kind := range []byte{0x11, 0x12, 0x16, 0x17, 0x22, 0x99} {
		a.send(vnetHdr{}, ethernetFrame(to, a.mac, etherIPv4, groupReportOf(a.a4, kind)))
		frames++
	}
	for _, kind := range []byte{130, 131, 132, 143, 151} {
		a.send(vnetHdr{}, ethernetFrame(to, a.mac, etherIPv6, groupReportOf(a.port.ll6, kind)))
		// One that the kernel sends before it has an address.
		a.send(vnetHdr{}, ethernetFrame(to, a.mac, etherIPv6, groupReportOf(netip.IPv6Unspecified(), kind)))
		frames += 2
	}
	only(t, all, nil, nil)
	if n := a.port.Stats().Drops["group"]; int(n) != frames {
		t.Errorf("%d of %d counted: %v", n, frames, a.port.Stats().Drops)
	}
}

// TestFloodIsBounded sends more broadcasts than a port may, on a clock that
// stands nearly still.
func TestFloodIsBounded(t *testing.T) {
	const rate = 50
	l := newLAN(t, func(c *Config) { c.Limits.Flood = rate })
	a, b := l.wire(t, 0), l.wire(t, 1)
	f := ethernetFrame(everyone, a.mac, etherIPv4, udpDatagram(netip.AddrPortFrom(a.a4, 1), netip.AddrPortFrom(bcast4, 2), []byte("all")))
	start := time.Now()
	const sent = 200
	for range sent {
		a.send(vnetHdr{}, f)
	}
	await(t, "all are read", func() bool { return a.port.Stats().FromGuest.Frames >= sent })
	arrived := 0
	for b.receive(5*time.Millisecond) != nil {
		arrived++
	}
	// Two ports: the cost of a frame is two. A fifth of the rate at once.
	most := (rate/5+int(time.Since(start).Seconds()*rate))/2 + 2
	if dropped := int(a.port.Stats().Drops["flood"]); arrived == 0 || arrived > most || arrived+dropped != sent {
		t.Errorf("%d of %d arrived, at most %d should; %d were dropped", arrived, sent, most, dropped)
	}
	// Nobody else pays for it.
	back := ethernetFrame(everyone, b.mac, etherIPv4, udpDatagram(netip.AddrPortFrom(b.a4, 1), netip.AddrPortFrom(bcast4, 2), nil))
	b.send(vnetHdr{}, back)
	if got := a.receive(2 * time.Second); !bytes.Equal(got, back) {
		t.Errorf("received % x", got)
	}
}

func TestBudget(t *testing.T) {
	var b budget
	now := time.Unix(1000, 0)
	take := func(n int) bool { return b.take(n, 100, now) }
	if !take(20) || take(1) {
		t.Error("the first fifth is not what may be spent at once")
	}
	for range 9 { // 1/1000 of a second each: less than one
		now = now.Add(time.Millisecond)
		if take(1) {
			t.Fatal("spent more than was earned")
		}
	}
	if now = now.Add(2 * time.Millisecond); !take(1) {
		t.Error("parts of one are lost")
	}
	now = now.Add(time.Hour)
	if !take(1000) {
		t.Error("what is more than the whole budget never passes")
	}
	if now = now.Add(time.Second); take(1) {
		t.Error("it was not paid back")
	}
	if now = now.Add(10 * time.Second); !take(1) {
		t.Error("it is paid back for ever")
	}
}

// TestBudgetRate: so many a second, whatever the rate and however they are spread.
func TestBudgetRate(t *testing.T) {
	for _, rate := range []int{1, 2, 4, 5, 7, 1000, 100_000} {
		for _, pause := range []time.Duration{time.Second / time.Duration(2*rate), 3 * time.Second / time.Duration(5*rate), 700 * time.Millisecond / time.Duration(rate)} {
			var b budget
			now := time.Unix(1000, 0)
			taken := 0
			for ; now.Before(time.Unix(1010, 0)); now = now.Add(pause) {
				if b.take(1, rate, now) {
					taken++
				}
			}
			if most := 10*rate + max(1, rate/5); taken > most || taken < 10*rate-1-rate/100 {
				t.Errorf("%d a second, one each %v: %d in 10 s", rate, pause, taken)
			}
		}
	}
}

// FuzzUntag checks that a tag that is taken out and put back leaves the frame as
// it was, and that nothing else is touched.
func FuzzUntag(f *testing.F) {
	plain := ethernetFrame(macAddr{2}, macAddr{4}, etherIPv4, make([]byte, 50))
	f.Add(plain, uint8(0), uint16(0), uint16(0))
	f.Add(tagFrame(plain, dot1q(10)), uint8(1), uint16(38), uint16(70))
	f.Add(tagFrame(plain, dot1q(0xffff)), uint8(1), uint16(0xffff), uint16(2))
	f.Add(tagFrame(plain, etherQinQ<<16|7, dot1q(1)), uint8(0), uint16(1), uint16(1))
	f.Add(tagFrame(plain[:12], dot1q(7)), uint8(1), uint16(34), uint16(34))
	f.Fuzz(func(t *testing.T, data []byte, flags uint8, start, hdrLen uint16) {
		if len(data) < ethLen {
			return
		}
		vnet := vnetHdr{flags: flags, csumStart: start, hdrLen: hdrLen, csumOffset: 16}
		raw := make([]byte, vnetHdrLen)
		vnet.put(raw)
		fr := frame{vnet: vnet, raw: raw, head: bytes.Clone(data)}
		fr.untag()
		if parseVnetHdr(raw) != fr.vnet {
			t.Fatal("the header and its bytes differ")
		}
		if !fr.tagged {
			if !bytes.Equal(fr.head, data) || fr.vnet != vnet {
				t.Fatal("a frame without a tag was changed")
			}
			return
		}
		if !bytes.Equal(tagFrame(fr.head, etherVLAN<<16|uint32(fr.tci)), data) {
			t.Fatalf("% x and a tag of %x are not % x", fr.head, fr.tci, data)
		}
		back := fr.vnet
		back.move(vlanTagLen)
		// What points into the addresses or the tag is nonsense, and refused.
		if back != vnet && fr.vnet.sane(len(fr.head)) && start >= ethLen+vlanTagLen && hdrLen > vlanTagLen {
			t.Fatalf("header %+v became %+v", vnet, back)
		}
	})
}

// FuzzGroup reads what claims to be IGMP or MLD.
func FuzzGroup(f *testing.F) {
	a4, a6 := netip.MustParseAddr("10.99.0.10"), netip.MustParseAddr("fe80::1")
	for _, kind := range []byte{0x11, 0x12, 0x16, 0x17, 0x22, 130, 131, 132, 143, 151} {
		f.Add(groupReportOf(a4, kind))
		f.Add(groupReportOf(a6, kind))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, etherType := range []uint16{etherIPv4, etherIPv6} {
			ip, ok := parseIP(etherType, data, nil)
			if !ok {
				continue
			}
			kind := parseGroup(&ip)
			isServerAnswer(&ip)
			if ip.proto == protoIGMP && !ip.v6() && kind == noGroupMessage {
				t.Fatal("IGMP is taken for something else")
			}
			if (kind == groupQuery || kind == groupReport) && (ip.frag || ip.l4Size() < 8) {
				t.Fatalf("kind %d of a part of a message", kind)
			}
		}
	})
}
