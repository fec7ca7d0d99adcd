package netstack

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Frames of a fuzzed input: each has two bytes of length before its virtio header.
func packFrames(frames ...[]byte) []byte {
	var b []byte
	for _, f := range frames {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(f))), f...)
	}
	return b
}

// nextFrame takes the first frame off an input.
func nextFrame(b []byte) (f, rest []byte) {
	if len(b) < 2 {
		return nil, nil
	}
	n, b := int(binary.BigEndian.Uint16(b)), b[2:]
	n = min(n, len(b))
	return b[:n], b[n:]
}

// repair makes of a guest's frame one that gets further than the first checks: its
// addresses are the port's, its IP header is sound.
func repair(w *wireGuest, f []byte) {
	if len(f) < vnetHdrLen+ethLen {
		return
	}
	e := f[vnetHdrLen:]
	copy(e[6:], w.mac[:])
	if e[0]&1 == 0 {
		copy(e, w.port.net.gwMAC[:])
	}
	switch ip := e[ethLen:]; binary.BigEndian.Uint16(e[12:]) {
	case etherIPv4:
		if len(ip) < ip4Len {
			return
		}
		if n := int(ip[0]&15) * 4; n >= ip4Len && n <= len(ip) {
			copy(ip[12:], w.a4.AsSlice())
			binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
			ip[10], ip[11] = 0, 0
			binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip[:n]))
		}
	case etherIPv6:
		if len(ip) >= ip6Len {
			copy(ip[8:], w.a6.AsSlice())
			binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-ip6Len))
		}
	}
}

// fuzzFrames are guests' frames of every kind, each with its virtio header.
func fuzzFrames(n *Network, w *wireGuest) [][]byte {
	frame := func(vnet vnetHdr, dst macAddr, etherType uint16, payload []byte) []byte {
		b := make([]byte, vnetHdrLen)
		vnet.put(b)
		return append(b, ethernetFrame(dst, w.mac, etherType, payload)...)
	}
	ip4 := func(h vnetHdr, d []byte) []byte { return frame(h, n.gwMAC, etherIPv4, d) }
	ip6 := func(h vnetHdr, d []byte) []byte { return frame(h, n.gwMAC, etherIPv6, d) }
	from4, from6 := netip.AddrPortFrom(w.a4, 1), netip.AddrPortFrom(w.a6, 1)
	to4, to6 := netip.AddrPortFrom(outside4, 53), netip.AddrPortFrom(outside6, 53)

	syn := make([]byte, 40)
	binary.BigEndian.PutUint16(syn, 1234)
	binary.BigEndian.PutUint16(syn[2:], 80)
	syn[12], syn[13] = 0xa0, 2
	copy(syn[20:], []byte{2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7})
	partial := func(start int, offset uint16) vnetHdr {
		return vnetHdr{flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, csumStart: uint16(ethLen + start), csumOffset: offset}
	}
	many := partial(ip4Len, 6)
	many.gsoType, many.gsoSize = unix.VIRTIO_NET_HDR_GSO_UDP_L4, 10
	first := udpDatagram(from4, to4, make([]byte, 16))
	last := append([]byte{}, first[:ip4Len]...)
	first[6] = 0x20
	last = append(last, make([]byte, 9)...)
	last[7] = 3
	options := append([]byte{}, udpDatagram(from6, to6, []byte("q"))...)
	options[6] = ext6HopByHop
	options = append(options[:ip6Len:ip6Len], append([]byte{ext6DestOpts, 0, 1, 4, 0, 0, 0, 0, protoUDP, 0, 1, 4, 0, 0, 0, 0}, options[ip6Len:]...)...)
	part6 := append([]byte{}, udpDatagram(from6, to6, nil)[:ip6Len]...)
	part6[6] = ext6Fragment
	part6 = append(part6, protoUDP, 0, 0, 1, 0, 0, 0, 7, 0, 1, 0, 53, 0, 17, 0, 0)
	icmpError := append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, udpDatagram(to4, from4, []byte("q"))...)
	binary.BigEndian.PutUint16(icmpError[2:], ^sum(0, icmpError))
	echo := []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}

	return [][]byte{
		ip4(partial(ip4Len, 16), ipDatagram(w.a4, outside4, protoTCP, 64, syn)),
		ip6(partial(ip6Len, 16), ipDatagram(w.a6, outside6, protoTCP, 64, syn)),
		ip4(vnetHdr{}, udpDatagram(from4, netip.AddrPortFrom(n.cfg.Gateway4, 53), []byte("q"))),
		ip6(vnetHdr{}, udpDatagram(from6, to6, []byte("q"))),
		ip4(many, udpDatagram(from4, to4, make([]byte, 1000))),
		packFramesRaw(ip4(vnetHdr{}, first), ip4(vnetHdr{}, last)),
		ip6(vnetHdr{}, options),
		ip6(vnetHdr{}, part6),
		ip4(vnetHdr{}, ipDatagram(w.a4, outside4, protoICMP, 64, icmpError)),
		ip4(vnetHdr{}, ipDatagram(w.a4, n.cfg.Gateway4, protoICMP, 64, echo)),
		frame(vnetHdr{}, everyone, etherARP, arpRequest(w.mac, w.a4, n.cfg.Gateway4)),
		frame(vnetHdr{}, n.gwMAC, etherIPv6, neighborSolicit(w.a6, n.cfg.Gateway6, w.mac)),
		frame(vnetHdr{}, n.gwMAC, etherIPv6, neighborMessage(ndRedirect, w.a6, n.cfg.Gateway6, w.mac)),
	}
}

// packFramesRaw is two frames as one element: the first, and behind it the second
// with its length.
func packFramesRaw(a, b []byte) []byte { return append(append([]byte{}, a...), packFrames(b)...) }

// FuzzInput is what a hostile guest writes to its link, several frames one after
// the other. The host is never reached: Redirect refuses. Whatever happens, every
// frame is counted, tables keep their bounds, and an honest frame gets through.
func FuzzInput(f *testing.F) {
	n, err := New(Config{Subnet4: testSubnet4, Subnet6: testSubnet6, DNS: dnsStub{},
		Redirect: func(string, netip.AddrPort, netip.AddrPort) (netip.AddrPort, error) {
			return netip.AddrPort{}, unix.EHOSTUNREACH
		}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { n.Close() })
	l := &lan{Network: n}
	bad, honest := l.wire(f, 0), l.wire(f, 1)
	all := fuzzFrames(n, bad)
	for _, frame := range all {
		f.Add(packFrames(frame), true)
		f.Add(packFrames(frame), false)
	}
	f.Add(packFrames(all...), true)
	good := ethernetFrame(bad.mac, honest.mac, etherIPv4, udpDatagram(netip.AddrPortFrom(honest.a4, 1), netip.AddrPortFrom(bad.a4, 2), []byte("still here")))
	f.Fuzz(func(t *testing.T, b []byte, mend bool) {
		bad, honest := *bad, *honest
		bad.t, honest.t = t, t
		sent := bad.port.count.rxFrames.Load()
		for i := 0; i < 64 && len(b) > 0; i++ {
			var frame []byte
			frame, b = nextFrame(b)
			if len(frame) == 0 {
				continue // an empty write says nothing on such a link
			}
			if frame = bytes.Clone(frame); mend {
				repair(&bad, frame)
			}
			if _, err := bad.far.Write(frame); err != nil {
				t.Fatal(err)
			}
			if len(frame) >= vnetHdrLen+ethLen {
				sent++
			}
		}
		for start := time.Now(); bad.port.count.rxFrames.Load() < sent; time.Sleep(10 * time.Microsecond) {
			if time.Since(start) > 5*time.Second {
				t.Fatal("the link is not read")
			}
		}
		// What came back may fill the link: then a frame is dropped.
		arrived := false
		for try := 0; !arrived && try < 10; try++ {
			for bad.receive(time.Microsecond) != nil {
			}
			honest.send(vnetHdr{}, good)
			for got := bad.receive(time.Second); got != nil && !arrived; {
				if arrived = bytes.Equal(got, good); !arrived {
					got = bad.receive(100 * time.Millisecond)
				}
			}
		}
		if !arrived {
			t.Fatal("an honest guest's frame does not arrive")
		}
		for honest.receive(time.Microsecond) != nil {
		}
		s, lim := bad.port.Stats(), n.cfg.Limits
		if s.TCPDials > lim.TCPDials || s.TCPFlows > 0 || s.UDPFlows > lim.UDPFlows || s.Pings > lim.Pings {
			t.Fatalf("%+v", s)
		}
	})
}

// FuzzReassembly sends pieces of datagrams whose bytes tell their place: what is
// joined is whole, and in order.
func FuzzReassembly(f *testing.F) {
	f.Add([]byte{0, 0, 2, 1, 0, 2, 3, 0})
	f.Add([]byte{0, 2, 3, 0, 0, 0, 2, 1, 1, 0, 1, 0})
	f.Add([]byte{0, 0, 2, 1, 0, 1, 2, 1, 0, 0, 2, 1, 0, 2, 9, 0})
	byteAt := func(i int) byte { return byte(i*7 + i>>8) }
	f.Fuzz(func(t *testing.T, b []byte) {
		var r reassembler
		r.init()
		for _, v6 := range []bool{false, true} {
			for rest := b; len(rest) >= 4; rest = rest[4:] {
				// The datagram, the offset and size in units of eight bytes or a
				// little less, and whether more follow.
				id, offset, size, more := rest[0]%70, int(rest[1])*8, int(rest[2])*8, rest[3]&1 != 0
				if !more {
					size = max(0, size-int(rest[3]>>5))
				}
				data := make([]byte, size)
				for i := range data {
					data[i] = byteAt(offset + i)
				}
				p := packet{src: netip.MustParseAddr("10.99.0.10"), dst: outside4, proto: protoUDP, ttl: 64, hdrLen: ip4Len,
					frag: true, offset: offset, more: more, id: uint32(id)}
				if v6 {
					p.src, p.dst, p.hdrLen = netip.MustParseAddr("fd99::a"), outside6, ip6Len
				}
				cut := size * int(rest[0]) / 256
				p.head, p.tail = append(make([]byte, p.hdrLen), data[:cut]...), data[cut:]
				whole, ok := r.add(&p)
				if len(r.open) > maxDatagrams || r.bytes > maxFragBytes || r.bytes < 0 {
					t.Fatalf("%d datagrams, %d bytes", len(r.open), r.bytes)
				}
				if whole == nil {
					continue
				}
				if !ok || whole.frag || whole.proto != protoUDP || whole.src != p.src || whole.dst != p.dst {
					t.Fatalf("%+v", whole)
				}
				for i, c := range append(bytes.Clone(whole.l4()), whole.tail...) {
					if c != byteAt(i) {
						t.Fatalf("byte %d of %d is %#x", i, whole.l4Size(), c)
					}
				}
			}
		}
		r.expire(time.Now().Add(time.Hour))
		if len(r.open) != 0 || r.bytes != 0 {
			t.Fatalf("%d datagrams, %d bytes are left", len(r.open), r.bytes)
		}
	})
}

// FuzzSum compares the checksum with one made byte by byte.
func FuzzSum(f *testing.F) {
	f.Add([]byte{1}, 0)
	f.Add([]byte("an odd number of bytes here"), 5)
	f.Add(bytes.Repeat([]byte{0xff}, 70000), 3)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		slow := uint32(0)
		for i, c := range b {
			slow += uint32(c) << (8 * (1 - i&1))
			slow = slow>>16 + slow&0xffff
		}
		if got := sum(0, b); uint32(got) != slow {
			t.Fatalf("sum is %#x, want %#x", got, slow)
		}
		if cut < 0 || cut > len(b) {
			return
		}
		if got := sum2(0, b[:cut], b[cut:]); uint32(got) != slow {
			t.Fatalf("sum of two parts, cut at %d, is %#x, want %#x", cut, got, slow)
		}
	})
}
