package netstack

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// FuzzFrame is what a guest writes to its link: virtio header and frame. Nothing
// ends the port.
func FuzzFrame(f *testing.F) {
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { sink.Close() })
	to := sink.LocalAddr().(*net.UDPAddr).AddrPort()
	l := newLAN(f, func(c *Config) {
		c.DNS = dnsStub{}
		c.Redirect = func(string, netip.AddrPort, netip.AddrPort) (netip.AddrPort, error) { return to, nil }
	})
	w := l.wire(f, 0)
	seed := func(h vnetHdr, dst netip.AddrPort, n int) {
		b := make([]byte, vnetHdrLen)
		h.put(b)
		src := netip.AddrPortFrom(w.a4, 1234)
		f.Add(append(b, ethernetFrame(l.gwMAC, w.mac, etherIPv4, udpDatagram(src, dst, make([]byte, n)))...))
	}
	far := netip.AddrPortFrom(outside4, 9)
	seed(vnetHdr{}, far, 5)
	seed(vnetHdr{}, netip.AddrPortFrom(l.cfg.Gateway4, 53), 20)
	uso := vnetHdr{flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, gsoType: unix.VIRTIO_NET_HDR_GSO_UDP_L4, csumStart: 34, csumOffset: 6}
	for _, size := range []uint16{1, 100, 60000} {
		uso.gsoSize = size
		seed(uso, far, 1000)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < vnetHdrLen+ethLen || len(b) > 60000 {
			return
		}
		// From the guest's own MAC, or the switch looks no further.
		copy(b[vnetHdrLen+6:], w.mac[:])
		before := w.port.count.rxFrames.Load()
		if _, err := w.far.Write(b); err != nil {
			t.Fatal(err)
		}
		for start := time.Now(); w.port.count.rxFrames.Load() == before; time.Sleep(10 * time.Microsecond) {
			if time.Since(start) > 5*time.Second {
				t.Fatal("the switch does not read")
			}
		}
		if err := w.far.SetReadDeadline(time.Now().Add(-1)); err != nil {
			t.Fatal(err)
		}
		for drained := make([]byte, 70000); ; {
			if _, err := w.far.Read(drained); err != nil {
				break
			}
		}
		select {
		case <-w.port.Done():
			t.Fatal(w.port.Err())
		default:
		}
	})
}

// TestTrain is a burst of datagrams: all arrive, in their order and as they were
// sent, whatever was joined on the way.
func TestTrain(t *testing.T) {
	l := newLAN(t, nil)
	w := l.wire(t, 0)
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	port := c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	sizes := []int{100, 100, 100, 7, 100, 200, 200, 0, 200, 20000, 200, 200}
	for i, n := range sizes {
		payload := make([]byte, n)
		if n > 0 {
			payload[0] = byte(i)
		}
		src, dst := netip.AddrPortFrom(w.a4, 1234), netip.AddrPortFrom(outside4, port)
		b := make([]byte, vnetHdrLen)
		if _, err := w.far.Write(append(b, ethernetFrame(l.gwMAC, w.mac, etherIPv4, udpDatagram(src, dst, payload))...)); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 65536)
	for i, want := range sizes {
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if n != want || n > 0 && buf[0] != byte(i) {
			t.Errorf("datagram %d has %d bytes and number %d, want %d bytes", i, n, buf[0], want)
		}
	}
}
