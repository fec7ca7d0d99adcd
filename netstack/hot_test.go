package netstack

import (
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// hotPath is a step that every frame or datagram takes. It must not allocate once
// its flow exists: what it would leave to the garbage collector, a guest decides.
type hotPath struct {
	name  string
	bytes int64
	step  func()
}

// hotPaths makes a network of two guests that are cables, and the steps on it.
func hotPaths(t testing.TB) []hotPath {
	l := newLAN(t, nil)
	a, b := l.wire(t, 0), l.wire(t, 1)
	drain := func(w *wireGuest) func() {
		buf := make([]byte, 1<<17)
		rc, err := w.far.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var n int
		var errno error
		read := func(fd uintptr) { n, errno = unix.Read(int(fd), buf) }
		return func() {
			if err := rc.Control(read); err != nil || errno != nil || n <= vnetHdrLen {
				t.Fatalf("nothing arrived: %d bytes, %v, %v", n, err, errno)
			}
		}
	}
	fromA, fromB := drain(a), drain(b)

	// A frame of a guest, in the form in which the reader gives it to the switch.
	asRead := func(dst macAddr, datagram []byte) *frame {
		raw := ethernetFrame(dst, a.mac, etherIPv4, datagram)
		f := &frame{raw: make([]byte, vnetHdrLen), head: raw[:min(headLen, len(raw))]}
		if len(raw) > headLen {
			f.tail = raw[headLen:]
		}
		return f
	}
	const small, large = 1400, 60000
	to := netip.AddrPortFrom(outside4, listenUDP(t, "127.0.0.1"))
	src := netip.AddrPortFrom(a.a4, 4000)
	across := func(n int) *frame {
		return asRead(b.mac, udpDatagram(src, netip.AddrPortFrom(b.a4, 4000), make([]byte, n)))
	}
	smallFrame, largeFrame := across(small), across(large)

	// A reader on a cable of its own: those of the guests are at work.
	near, far := cable(t)
	lk, err := newLink(near, vnetHdrLen)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lk.close() })
	reader := linkReader{link: lk}
	t.Cleanup(func() { reader.view.Release() })
	wire := append(append(append([]byte{}, largeFrame.raw...), largeFrame.head...), largeFrame.tail...)
	arp := ethernetFrame(everyone, a.mac, etherARP, arpRequest(a.mac, a.a4, b.a4))
	c, d := l.wireWith(t, 2, func(c *PortConfig) { c.VLAN = 10 }), l.wireWith(t, 3, func(c *PortConfig) { c.Trunk = []uint16{10} })
	fromD := drain(d)
	tagged := asRead(d.mac, udpDatagram(netip.AddrPortFrom(c.a4, 4000), netip.AddrPortFrom(d.a4, 4000), make([]byte, large)))
	copy(tagged.head[6:], c.mac[:])
	request := &frame{raw: make([]byte, vnetHdrLen), head: arp}

	// The flow's first datagram makes its mapping; its echo is left to the cable.
	a.port.input(asRead(a.port.net.gwMAC, udpDatagram(src, to, make([]byte, 1))))
	if a.port.nat.find(protoUDP, src) == nil {
		t.Fatal("no mapping after the first datagram")
	}
	// One that nobody answers, and nobody reads.
	sink, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sink.Close() })
	sinkAddr := netip.AddrPortFrom(outside4, uint16(sink.LocalAddr().(*net.UDPAddr).Port))
	out := asRead(a.port.net.gwMAC, udpDatagram(netip.AddrPortFrom(a.a4, 4001), sinkAddr, make([]byte, small)))
	answer := [][]byte{make([]byte, small)}
	segment := superSegment(outside4, b.a4, large)
	t.Cleanup(segment.DecRef)

	return []hotPath{
		{"link-read", large, func() {
			if _, err := unix.Write(far, wire); err != nil {
				t.Fatal(err)
			}
			f, errno := reader.read(lk.fd)
			if errno != 0 || f == nil || f.size() != len(wire)-vnetHdrLen {
				t.Fatalf("read: %v, %v", f, errno)
			}
		}},
		{"parse", small, func() {
			if _, ok := parseIP(etherIPv4, smallFrame.head[ethLen:], smallFrame.tail); !ok {
				t.Fatal("not parsed")
			}
		}},
		{"switch-1400", small, func() { a.port.input(smallFrame); fromB() }},
		{"switch-60000", large, func() { a.port.input(largeFrame); fromB() }},
		{"switch-to-trunk", large, func() { c.port.input(tagged); fromD() }},
		{"nat-lookup", 0, func() {
			if a.port.nat.get(a.port, protoUDP, src).lookup(to) == nil {
				t.Fatal("no peer")
			}
		}},
		{"udp-forward", small, func() {
			a.port.input(out)
			a.port.flushTrains()
		}},
		{"udp-to-guest", small, func() {
			a.port.sendUDP(sinkAddr, src, 0, answer)
			fromA()
		}},
		{"tcp-to-guest", large, func() {
			if err := l.nic.writePacket(segment); err != nil {
				t.Fatal(err)
			}
			fromB()
		}},
		{"arp-answer", 0, func() {
			a.port.input(request)
			fromA()
		}},
	}
}

// superSegment is TCP data as gVisor hands it to its NIC.
func superSegment(src, dst netip.Addr, n int) *stack.PacketBuffer {
	const mss = 1448
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: ip4Len + header.TCPMinimumSize,
		Payload:            buffer.MakeWithData(make([]byte, n)),
	})
	pkt.GSOOptions = stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, CsumOffset: header.TCPChecksumOffset, MSS: mss, L3HdrLen: ip4Len}
	header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize)).Encode(&header.TCPFields{DataOffset: header.TCPMinimumSize})
	putIPv4(pkt.NetworkHeader().Push(ip4Len), src, dst, protoTCP, guestTTL, header.TCPMinimumSize+n, 0, 0)
	pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	return pkt
}

// cable is a link whose far end is a descriptor to write to.
func cable(t testing.TB) (near *os.File, far int) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	near = os.NewFile(uintptr(fds[0]), "near")
	t.Cleanup(func() { near.Close(); unix.Close(fds[1]) })
	return near, fds[1]
}

// TestHotPathAllocations is the budget of what happens for each frame: nothing.
func TestHotPathAllocations(t *testing.T) {
	for _, h := range hotPaths(t) {
		if n := testing.AllocsPerRun(200, h.step); n != 0 {
			t.Errorf("%s: %v allocations for each frame", h.name, n)
		}
	}
}

func BenchmarkHotPath(b *testing.B) {
	for _, h := range hotPaths(b) {
		b.Run(h.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(h.bytes)
			for b.Loop() {
				h.step()
			}
		})
	}
}
