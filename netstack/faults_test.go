package netstack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/internal/ethtool"
	"golang.org/x/sys/unix"
)

// await waits until something is so.
func await(t testing.TB, what string, so func() bool) {
	t.Helper()
	for start := time.Now(); !so(); time.Sleep(time.Millisecond) {
		if time.Since(start) > 20*time.Second {
			t.Fatalf("not so after 20 s: %s", what)
		}
	}
}

// guestJam writes until nobody takes more, and resets.
func guestJam(req request) error {
	conn, err := guestDial(req)
	if err != nil {
		return err
	}
	c := conn.(*net.TCPConn)
	buf := make([]byte, 64<<10)
	for {
		if err := c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			return errors.Join(err, c.Close())
		}
		if _, err := c.Write(buf); errors.Is(err, os.ErrDeadlineExceeded) {
			return errors.Join(c.SetLinger(0), c.Close())
		} else if err != nil {
			return errors.Join(err, c.Close())
		}
	}
}

// guestLate shuts down its side, and reads only after a while. The kernel keeps a
// small part of what comes.
func guestLate(req request) error {
	d := net.Dialer{Timeout: req.Timeout, Control: func(_, _ string, rc syscall.RawConn) error {
		var err error
		cerr := rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<10) })
		return errors.Join(cerr, err)
	}}
	conn, err := d.Dial(req.Network, req.Addr)
	if err != nil {
		return err
	}
	c := conn.(*net.TCPConn)
	if err := errors.Join(sendAll(c, req.Transfer.header()), c.CloseWrite()); err != nil {
		return errors.Join(err, c.Close())
	}
	time.Sleep(req.Timeout)
	got, err := io.ReadAll(c)
	want, werr := io.ReadAll(randomBytes(req.Transfer.Seed, req.Transfer.Size))
	if err = errors.Join(err, werr, c.Close()); err == nil && string(got) != string(want) {
		err = fmt.Errorf("read %d of %d bytes, or others", len(got), len(want))
	}
	return err
}

func sendAll(c net.Conn, b []byte) error {
	_, err := c.Write(b)
	return err
}

// guestMany makes Sizes[0] connections at once, each of which says something and
// hears it back.
func guestMany(req request) error {
	n := req.Sizes[0]
	errs := make(chan error, n)
	begin := make(chan struct{})
	for i := range n {
		go func() {
			<-begin
			errs <- guestHello(req, uint64(i))
		}()
	}
	close(begin)
	failed := 0
	var first error
	for range n {
		if err := <-errs; err != nil {
			failed++
			first = errors.Join(first, err)
			if failed > 3 {
				first = errors.New("many errors")
			}
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d connections failed: %w", failed, n, first)
	}
	return nil
}

func guestHello(req request, i uint64) error {
	c, err := guestDial(req)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(req.Timeout)); err != nil {
		return err
	}
	want := binary.BigEndian.AppendUint64(nil, i)
	if _, err := c.Write(append(transfer{Op: 'E'}.header(), want...)); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err == nil && string(got) != string(want) {
		err = fmt.Errorf("heard %x, want %x", got, want)
	}
	return err
}

// TestStalledPeer: the guest's reset reaches a host that reads nothing.
func TestStalledPeer(t *testing.T) {
	l := newLAN(t, nil)
	g, p := l.join(t, 0, DriverTap, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go g.try("jam", request{Network: "tcp", Addr: hostPortOf(outside4, ln.Addr().(*net.TCPAddr).AddrPort().Port())})
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	await(t, "the flow begins", func() bool { return p.Stats().TCPFlows == 1 })
	await(t, "the flow ends with the guest's reset", func() bool { return p.Stats().TCPFlows == 0 })
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("host reads %v, want ECONNRESET", err)
	}
}

// TestUnread: what a guest has not read counts after the host has closed, until it
// is read.
func TestUnread(t *testing.T) {
	const flows = 3
	l := newLAN(t, func(c *Config) { c.Limits.TCPFlows = flows })
	g, p := l.join(t, 0, DriverTap, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	sent := make(chan error, flows)
	go func() {
		for range flows {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { sent <- serveTransfer(c.(*net.TCPConn)) }()
		}
	}()
	addr := hostPortOf(outside4, ln.Addr().(*net.TCPAddr).AddrPort().Port())
	read := make(chan error, flows)
	for i := range flows {
		go func() {
			_, err := g.try("late", request{Network: "tcp", Addr: addr, Transfer: transfer{'D', 700 << 10, uint64(i)}, Timeout: 2 * time.Second})
			read <- err
		}()
	}
	for range flows {
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}
	// All has left the host, and nothing was read.
	time.Sleep(500 * time.Millisecond)
	if n := p.Stats().TCPFlows; n != flows {
		t.Errorf("%d flows while the guest has read nothing, want %d", n, flows)
	}
	if _, err := g.try("dial", request{Network: "tcp", Addr: addr, Timeout: 200 * time.Millisecond}); !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("one flow more: %v, want a timeout", err)
	}
	for range flows {
		if err := <-read; err != nil {
			t.Error(err)
		}
	}
	await(t, "the flows end", func() bool { return p.Stats().TCPFlows == 0 })
}

// heap is the memory in use, without garbage.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// TestReceivedMemory is a guest that sends frames of an awkward size to hosts that
// read nothing.
func TestReceivedMemory(t *testing.T) {
	const flows, memory = 8, 32 << 20
	l := newLAN(t, func(c *Config) { c.Limits.TCPMemory, c.MTU = memory, 5000 })
	g, p := l.join(t, 0, DriverTap, nil)
	g.do("offload", request{Text: ethtool.NoSegments})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	before := heap()
	done := make(chan error, flows)
	for range flows {
		go func() {
			_, err := g.try("jam", request{Network: "tcp", Addr: hostPortOf(outside4, ln.Addr().(*net.TCPAddr).AddrPort().Port()), Timeout: 10 * time.Second})
			done <- err
		}()
	}
	var most uint64
	for ended := 0; ended < flows; {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			ended++
		case <-time.After(50 * time.Millisecond):
			most = max(most, heap())
		}
	}
	t.Logf("%d flows, %d MiB of heap at most, %d before", flows, most>>20, before>>20)
	if most > before+memory {
		t.Errorf("%d MiB of heap, %d before: want at most %d more", most>>20, before>>20, memory>>20)
	}
	await(t, "the flows end", func() bool { return p.Stats().TCPFlows == 0 })
}

// TestManyConnects is 10,000 connections at once, while another sandbox has its
// own.
func TestManyConnects(t *testing.T) {
	n := 10_000
	l := newLAN(t, func(c *Config) { c.Limits.TCPFlows = 10_240 }) // also on a small machine
	a, pa := l.join(t, 0, DriverTap, nil)
	b, _ := l.join(t, 1, DriverTap, nil)
	addr := hostPortOf(outside4, listenTCP(t, "127.0.0.1"))
	done := make(chan error, 1)
	go func() {
		_, err := a.try("many", request{Network: "tcp", Addr: addr, Sizes: []int{n}, Timeout: 55 * time.Second})
		done <- err
	}()
	for i := uint64(0); ; i++ {
		b.do("tcp", request{Network: "tcp", Addr: addr, Transfer: transfer{'B', 4 << 20, i}})
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			t.Logf("meanwhile %d transfers of another sandbox; %v", i, pa.Stats())
			await(t, "the flows end", func() bool { s := pa.Stats(); return s.TCPFlows == 0 && s.TCPDials == 0 })
			return
		default:
		}
	}
}

// attack is what a hostile guest sends as fast as it can: frames returns what makes
// the i-th.
type attack struct {
	name   string
	frames func(l *lan, server uint16) frameMaker
	// drop is the counter that must go up, if there is one for it.
	drop string
}

type frameMaker = func(a *wireGuest, i int) (vnetHdr, []byte)

// toGateway puts a datagram of a family in a frame.
func toGateway(l *lan, a *wireGuest, datagram []byte) (vnetHdr, []byte) {
	etherType := uint16(etherIPv4)
	if datagram[0]>>4 == 6 {
		etherType = etherIPv6
	}
	return vnetHdr{}, ethernetFrame(l.gwMAC, a.mac, etherType, datagram)
}

func synFrame(l *lan, a *wireGuest, i int, dst netip.AddrPort) (vnetHdr, []byte) {
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp, uint16(1024+i%60000))
	binary.BigEndian.PutUint16(tcp[2:], dst.Port())
	binary.BigEndian.PutUint32(tcp[4:], uint32(i))
	tcp[12], tcp[13], tcp[14] = 0x50, 2, 0xff
	_, f := toGateway(l, a, ipDatagram(a.a4, dst.Addr(), protoTCP, 64, tcp))
	return vnetHdr{flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, csumStart: ethLen + ip4Len, csumOffset: 16}, f
}

// udpFrame is a datagram to port 9 of a host, or 53 of the gateway.
func udpFrame(l *lan, a *wireGuest, port int, dst netip.Addr, size int) (vnetHdr, []byte) {
	src, to := a.a4, uint16(9)
	if dst.Is6() {
		src = a.a6
	}
	if l.isGateway(dst) {
		to = 53
	}
	return toGateway(l, a, udpDatagram(netip.AddrPortFrom(src, uint16(1+port%65535)), netip.AddrPortFrom(dst, to), make([]byte, size)))
}

var attacks = []attack{
	{"syn flood", func(l *lan, server uint16) frameMaker {
		return func(a *wireGuest, i int) (vnetHdr, []byte) {
			return synFrame(l, a, i, netip.AddrPortFrom(outside4, server))
		}
	}, DropTCPDials.String()},
	{"syn flood to many hosts", func(l *lan, server uint16) frameMaker {
		return func(a *wireGuest, i int) (vnetHdr, []byte) {
			return synFrame(l, a, i, netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), 80))
		}
	}, ""},
	{"udp flood from many ports", func(l *lan, _ uint16) frameMaker {
		return func(a *wireGuest, i int) (vnetHdr, []byte) { return udpFrame(l, a, i, outside4, 100) }
	}, DropUDPFlows.String()},
	{"udp flood of large datagrams", func(l *lan, _ uint16) frameMaker {
		return func(a *wireGuest, _ int) (vnetHdr, []byte) { return udpFrame(l, a, 7, outside6, 60000) }
	}, ""},
	{"fragments that never end", func(l *lan, _ uint16) frameMaker {
		return func(a *wireGuest, i int) (vnetHdr, []byte) {
			d := udpDatagram(netip.AddrPortFrom(a.a4, 7), netip.AddrPortFrom(outside4, 9), make([]byte, 1400))
			d = d[:ip4Len+1400] // a multiple of eight behind the header
			putIPv4(d, a.a4, outside4, protoUDP, 64, 1400, uint16(i), 0x2000)
			return toGateway(l, a, d)
		}
	}, DropFragments.String()},
	{"runts", func(l *lan, _ uint16) frameMaker {
		return func(a *wireGuest, i int) (vnetHdr, []byte) {
			h, f := udpFrame(l, a, i, outside4, 0)
			return h, f[:ethLen+i%(len(f)-ethLen)]
		}
	}, DropMalformed.String()},
	{"jumbo", func(l *lan, _ uint16) frameMaker {
		return func(a *wireGuest, i int) (vnetHdr, []byte) {
			h, f := toGateway(l, a, make([]byte, 69000))
			f[ethLen] = 0x45
			return h, f
		}
	}, DropMalformed.String()},
	{"virtio headers", func(l *lan, server uint16) frameMaker {
		return func(a *wireGuest, i int) (vnetHdr, []byte) {
			r := rand.New(rand.NewPCG(uint64(i), 3))
			_, f := synFrame(l, a, i, netip.AddrPortFrom(outside4, server))
			return vnetHdr{uint8(r.Uint32()), uint8(r.Uint32()), uint16(r.Uint32()), uint16(r.Uint32()), uint16(r.Uint32()), uint16(r.Uint32())}, f
		}
	}, DropMalformed.String()},
	{"broadcasts", func(*lan, uint16) frameMaker {
		return func(a *wireGuest, _ int) (vnetHdr, []byte) {
			d := udpDatagram(netip.AddrPortFrom(a.a4, 7), netip.AddrPortFrom(bcast4, 9), make([]byte, 1400))
			return vnetHdr{}, ethernetFrame(everyone, a.mac, etherIPv4, d)
		}
	}, ""},
	{"arp", func(*lan, uint16) frameMaker {
		return func(a *wireGuest, i int) (vnetHdr, []byte) {
			return vnetHdr{}, ethernetFrame(everyone, a.mac, etherARP, arpRequest(a.mac, a.a4, netip.AddrFrom4([4]byte{10, 99, 0, byte(i)})))
		}
	}, DropNeighbor.String()},
	{"pings", func(l *lan, _ uint16) frameMaker {
		return func(a *wireGuest, i int) (vnetHdr, []byte) {
			m := []byte{8, 0, 0, 0, byte(i >> 8), byte(i), 0, 0}
			binary.BigEndian.PutUint16(m[2:], ^sum(0, m))
			return toGateway(l, a, ipDatagram(a.a4, outside4, protoICMP, 64, m))
		}
	}, DropPing.String()},
	{"dns queries", func(l *lan, _ uint16) frameMaker {
		return func(a *wireGuest, i int) (vnetHdr, []byte) { return udpFrame(l, a, i, l.cfg.Gateway4, 5) }
	}, ""},
}

// TestHostileGuest floods the network from one sandbox. Another one goes on, and
// all it transfers is right.
func TestHostileGuest(t *testing.T) {
	for i, at := range attacks {
		t.Run(at.name, func(t *testing.T) {
			server := listenTCP(t, "127.0.0.1")
			l := newLAN(t, func(c *Config) { c.DNS = dnsStub{}; c.MTU = 1500 })
			frames := at.frames(l, server)
			victim, pv := l.join(t, 0, drivers[i%2], nil)
			bad := l.wire(t, 1)
			tcp := hostPortOf(outside4, server)
			x := transfer{'B', 4 << 20, uint64(i)}
			alone := victim.do("tcp", request{Network: "tcp", Addr: tcp, Transfer: x}).Elapsed
			before := heap()

			var stop atomic.Bool
			var sent int
			var wg sync.WaitGroup
			wg.Go(func() { sent = bad.flood(frames, &stop) })
			wg.Go(func() { // it reads what comes, or its link would fill up
				b := make([]byte, 70000)
				for {
					if _, err := bad.far.Read(b); err != nil {
						return
					}
				}
			})
			var attacked time.Duration
			for range 3 {
				attacked += victim.do("tcp", request{Network: "tcp", Addr: tcp, Transfer: x}).Elapsed
			}
			victim.do("ping", request{Addr: l.cfg.Gateway4.String(), Sizes: []int{56, 1400}})
			if at.drop != "" {
				await(t, "a drop is counted: "+at.drop, func() bool { return bad.port.Stats().Drops[at.drop] > 0 })
			}
			after := heap()
			stop.Store(true)
			if err := bad.far.SetReadDeadline(time.Now()); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			s := bad.port.Stats()
			t.Logf("%d frames sent; a transfer took %v, alone %v; heap %d MiB, before %d; %+v", sent, attacked/3, alone, after>>20, before>>20, s)
			if after > before+hostileHeap {
				t.Errorf("%d MiB of heap, %d before", after>>20, before>>20)
			}
			if s.TCPDials > l.cfg.Limits.TCPDials || s.TCPFlows > l.cfg.Limits.TCPFlows || s.UDPFlows > l.cfg.Limits.UDPFlows || s.Pings > l.cfg.Limits.Pings {
				t.Errorf("over its limits: %+v", s)
			}
			for name, n := range pv.Stats().Drops {
				if name != DropNeighbor.String() && name != DropGroup.String() && name != DropPolicy.String() && name != DropLinkWrite.String() {
					t.Errorf("%d frames of the other sandbox dropped: %s", n, name)
				}
			}
		})
	}
}

// hostileHeap is what one flooding guest may take: 1024 sources, 512 handshakes,
// 64 datagrams in pieces, and the goroutines' stacks, which are none of the heap.
const hostileHeap = 64 << 20

// flood sends an attack until it is told to stop, and returns the number of frames.
func (w *wireGuest) flood(frames frameMaker, stop *atomic.Bool) int {
	sent := 0
	for i := 0; !stop.Load(); i++ {
		vnet, frame := frames(w, i)
		b := make([]byte, vnetHdrLen, vnetHdrLen+len(frame))
		vnet.put(b)
		if _, err := w.far.Write(append(b, frame...)); err != nil {
			return sent
		}
		sent++
	}
	return sent
}

// TestFramesAddUp: each frame of a guest arrives at another one or is counted as
// dropped, by whichever of the two.
func TestFramesAddUp(t *testing.T) {
	l := newLAN(t, nil)
	a, b := l.wire(t, 0), l.wire(t, 1)
	rng := rand.New(rand.NewPCG(testSeed(t), 0))
	var wg sync.WaitGroup
	received := uint64(0)
	wg.Go(func() {
		buf := make([]byte, 70000)
		for {
			if _, err := b.far.Read(buf); err != nil {
				return
			}
			received++
		}
	})
	const frames = 20_000
	for i := range frames {
		d := udpDatagram(netip.AddrPortFrom(a.a4, 7), netip.AddrPortFrom(b.a4, 9), make([]byte, rng.IntN(2000)))
		f := ethernetFrame(b.mac, a.mac, etherIPv4, d)
		for range rng.IntN(3) { // break it or not
			f[rng.IntN(min(len(f), 60))] ^= 1 << rng.IntN(8)
		}
		if f[0]&1 != 0 || macAddr(f[:6]) == l.gwMAC {
			f[0] = 2
			f[5] ^= 0x80 // nobody
		}
		if binary.BigEndian.Uint16(f[12:]) == etherARP {
			f[12] = 0xff
		}
		h := vnetHdr{flags: uint8(rng.IntN(2)), gsoType: uint8(rng.IntN(20) / 16), gsoSize: 1000, csumStart: uint16(rng.IntN(3000))}
		hdr := make([]byte, vnetHdrLen)
		h.put(hdr)
		if _, err := a.far.Write(append(hdr, f...)); err != nil {
			t.Fatal(i, err)
		}
	}
	await(t, "all frames are read", func() bool { return a.port.Stats().FromGuest.Frames == frames })
	sa, sb := a.port.Stats(), b.port.Stats()
	out := sb.ToGuest.Frames
	for _, s := range []PortStats{sa, sb} {
		for _, n := range s.Drops {
			out += n
		}
	}
	if out != frames {
		t.Errorf("%d frames in, %d out and dropped: %+v, %+v", frames, out, sa, sb)
	}
	time.Sleep(10 * time.Millisecond)
	if err := b.far.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if received != sb.ToGuest.Frames {
		t.Errorf("%d frames arrived, %d counted", received, sb.ToGuest.Frames)
	}
	for _, name := range []string{"malformed", "spoofed", "ethertype", "no-member"} {
		if sa.Drops[name] == 0 {
			t.Errorf("nothing counted as %s: %v", name, sa.Drops)
		}
	}
}

// TestUDPPeersBound is a guest that writes to very many hosts from very many ports.
func TestUDPPeersBound(t *testing.T) {
	const peers = 16
	l := newLAN(t, func(c *Config) {
		c.Limits.UDPPeers = peers
		c.Redirect = func(_ string, _, dst netip.AddrPort) (netip.AddrPort, error) {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dst.Port()), nil
		}
	})
	a := l.wire(t, 0)
	send := func(port uint16, i int) {
		dst := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 9)
		a.send(vnetHdr{}, ethernetFrame(l.gwMAC, a.mac, etherIPv4, udpDatagram(netip.AddrPortFrom(a.a4, port), dst, []byte("x"))))
	}
	for i := range peers + 5 {
		send(1000, i)
	}
	if n := a.port.Stats().Drops[DropUDPFlows.String()]; n != 5 {
		t.Errorf("%d datagrams over the bound of one port dropped, want 5", n)
	}
	for port := uint16(1001); port < 1020; port++ {
		for i := range peers {
			send(port, i)
		}
	}
	if n := a.port.nat.peers.Load(); n != maxPeersFactor*peers {
		t.Errorf("%d peers, want %d", n, maxPeersFactor*peers)
	}
	a.port.expire(time.Now().Add(time.Hour))
	if n := a.port.nat.peers.Load(); n != 0 {
		t.Errorf("%d peers without a mapping", n)
	}
	send(1000, 0)
	if n := a.port.nat.peers.Load(); n != 1 {
		t.Errorf("%d peers, want one", n)
	}
}
