package netstack

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// TestSum compares with gVisor's checksum, at every alignment and split.
func TestSum(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		b := make([]byte, r.IntN(200))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		cut := r.IntN(len(b) + 1)
		want := checksum.Checksum(b, 0)
		if got := sum(0, b); got != want {
			t.Fatalf("sum(% x) = %#x, want %#x", b, got, want)
		}
		if got := sum2(0, b[:cut], b[cut:]); got != want {
			t.Fatalf("sum2(% x, % x) = %#x, want %#x", b[:cut], b[cut:], got, want)
		}
	}
	for _, pair := range [][2]string{{"10.0.0.1", "192.0.2.255"}, {"fd00::1", "2001:db8::ffff"}} {
		a, b := netip.MustParseAddr(pair[0]), netip.MustParseAddr(pair[1])
		want := header.PseudoHeaderChecksum(header.UDPProtocolNumber, tcpip.AddrFromSlice(a.AsSlice()), tcpip.AddrFromSlice(b.AsSlice()), 1234)
		if got := sum(pseudoSum(a, b, protoUDP, 1234), nil); got != want {
			t.Errorf("pseudoSum(%s, %s) = %#x, want %#x", a, b, got, want)
		}
	}
}

func TestVnetHdrSane(t *testing.T) {
	const csum = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
	for _, c := range []struct {
		name string
		h    vnetHdr
		want bool
	}{
		{"nothing", vnetHdr{}, true},
		{"data valid", vnetHdr{flags: unix.VIRTIO_NET_HDR_F_DATA_VALID}, true},
		{"checksum inside", vnetHdr{flags: csum, csumStart: 34, csumOffset: 16}, true},
		{"checksum at the end", vnetHdr{flags: csum, csumStart: 90, csumOffset: 8}, true},
		{"checksum over the end", vnetHdr{flags: csum, csumStart: 90, csumOffset: 9}, false},
		{"checksum far away", vnetHdr{flags: csum, csumStart: 0xffff, csumOffset: 0xffff}, false},
		{"segments", vnetHdr{flags: csum, csumStart: 34, csumOffset: 16, gsoType: 1, gsoSize: 1448}, true},
		{"segments with ECN", vnetHdr{flags: csum, csumStart: 34, csumOffset: 16, gsoType: 0x81, gsoSize: 1448}, true},
		{"segments of nothing", vnetHdr{flags: csum, csumStart: 34, csumOffset: 16, gsoType: 1}, false},
		{"segments without checksum", vnetHdr{gsoType: 4, gsoSize: 1448}, false},
		{"UFO", vnetHdr{flags: csum, gsoType: 3, gsoSize: 1448}, false},
	} {
		if got := c.h.sane(100); got != c.want {
			t.Errorf("%s: sane = %v, want %v", c.name, got, c.want)
		}
	}
}

// fragments cuts a datagram's transport part into pieces of size bytes.
func fragments(ip []byte, size int) []packet {
	whole, _ := parseIP(etherIPv4, ip, nil)
	l4 := whole.l4()
	var out []packet
	for off := 0; off < len(l4); off += size {
		end := min(off+size, len(l4))
		p := whole
		p.head = append(append([]byte{}, ip[:ip4Len]...), l4[off:end]...)
		p.offset, p.more, p.frag = off, end < len(l4), true
		out = append(out, p)
	}
	return out
}

func TestReassembly(t *testing.T) {
	src, dst := netip.MustParseAddrPort("10.99.0.10:1"), netip.MustParseAddrPort("198.51.100.1:2")
	data := make([]byte, 5000)
	for i := range data {
		data[i] = byte(i * 7)
	}
	datagram := udpDatagram(src, dst, data)
	pieces := fragments(datagram, 1480)
	run := func(in []packet) (got *packet, dropped int) {
		var r reassembler
		r.init()
		for i := range in {
			p, ok := r.add(&in[i])
			if !ok {
				dropped++
			}
			if p != nil {
				got = p
			}
		}
		return got, dropped
	}
	for name, order := range map[string][]int{"in order": {0, 1, 2, 3}, "backwards": {3, 2, 1, 0}, "mixed, with a duplicate": {2, 0, 2, 3, 1}} {
		t.Run(name, func(t *testing.T) {
			var in []packet
			for _, i := range order {
				in = append(in, pieces[i])
			}
			got, dropped := run(in)
			if got == nil || dropped != 0 {
				t.Fatalf("no datagram; %d dropped", dropped)
			}
			if !got.checksumOK() || !bytes.Equal(got.l4()[udpLen:], data) {
				t.Error("the datagram differs")
			}
			if p, ok := parseIP(etherIPv4, got.head, nil); !ok || p.frag {
				t.Error("its header is not that of a whole datagram")
			}
		})
	}
	t.Run("overlap", func(t *testing.T) {
		evil := pieces[1]
		evil.offset -= 8
		if got, dropped := run([]packet{pieces[0], evil, pieces[1], pieces[2], pieces[3]}); got != nil || dropped == 0 {
			t.Errorf("overlap: datagram %v, %d dropped", got != nil, dropped)
		}
	})
	t.Run("two ends", func(t *testing.T) {
		evil := pieces[1]
		evil.more = false
		if got, dropped := run([]packet{pieces[3], evil, pieces[0], pieces[1], pieces[2]}); got != nil || dropped == 0 {
			t.Errorf("two ends: datagram %v, %d dropped", got != nil, dropped)
		}
	})
	t.Run("over 64 KiB", func(t *testing.T) {
		evil := pieces[3]
		evil.offset = 65528
		if _, dropped := run([]packet{evil}); dropped != 1 {
			t.Error("a fragment beyond 64 KiB was taken")
		}
	})
	t.Run("bounds", func(t *testing.T) {
		var r reassembler
		r.init()
		for i := range 10 * maxDatagrams {
			p := pieces[i%3]
			p.id = uint32(i)
			r.add(&p)
		}
		if len(r.open) > maxDatagrams || r.bytes > maxFragBytes {
			t.Errorf("%d datagrams, %d bytes", len(r.open), r.bytes)
		}
		r.expire(time.Now().Add(fragTimeout + time.Second))
		if len(r.open) != 0 || r.bytes != 0 {
			t.Errorf("after the timeout: %d datagrams, %d bytes", len(r.open), r.bytes)
		}
	})
}

func FuzzParseIP(f *testing.F) {
	src, dst := netip.MustParseAddrPort("10.99.0.10:1"), netip.MustParseAddrPort("198.51.100.1:2")
	f.Add(true, udpDatagram(src, dst, []byte("hello")), 10)
	src, dst = netip.MustParseAddrPort("[fd99::a]:1"), netip.MustParseAddrPort("[2001:db8::1]:2")
	f.Add(false, udpDatagram(src, dst, []byte("hello")), 0)
	f.Fuzz(func(t *testing.T, v4 bool, b []byte, tail int) {
		etherType := uint16(etherIPv6)
		if v4 {
			etherType = etherIPv4
		}
		cut := len(b)
		if tail > 0 && tail < len(b) {
			cut -= tail
		}
		p, ok := parseIP(etherType, b[:cut], b[cut:])
		if !ok {
			return
		}
		if p.hdrLen > len(p.head) || p.l4Size() < 0 || len(p.head)+len(p.tail) > len(b) || p.v6() == v4 {
			t.Fatalf("%+v of % x", p, b)
		}
		p.checksumOK()
	})
}

func FuzzParseCause(f *testing.F) {
	f.Add(true, udpDatagram(netip.MustParseAddrPort("10.99.0.10:1"), netip.MustParseAddrPort("198.51.100.1:2"), nil))
	f.Fuzz(func(t *testing.T, v4 bool, b []byte) {
		etherType := uint16(etherIPv6)
		if v4 {
			etherType = etherIPv4
		}
		if p, ok := parseCause(etherType, b); ok && len(p.l4()) < 8 {
			t.Fatalf("%d bytes of transport header", len(p.l4()))
		}
	})
}
