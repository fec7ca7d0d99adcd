package netstack

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// wireGuest is a guest that is only the far end of a cable: it sends and
// receives frames as they are.
type wireGuest struct {
	t    testing.TB
	port *Port
	far  *os.File
	mac  macAddr
	a4   netip.Addr
	a6   netip.Addr
}

// cableFiles are the ends of a cable. The near one is somebody else's to close.
func cableFiles(t testing.TB) (near, far *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, far = os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
	t.Cleanup(func() { far.Close() })
	return near, far
}

func (l *lan) wire(t testing.TB, i int) *wireGuest {
	t.Helper()
	return l.wireWith(t, i, func(*PortConfig) {})
}

func (l *lan) wireWith(t testing.TB, i int, edit func(*PortConfig)) *wireGuest {
	t.Helper()
	near, far := cableFiles(t)
	pc := portConfig(i, &guest{link: near})
	edit(&pc)
	p, err := l.Attach(pc)
	if err != nil {
		t.Fatal(err)
	}
	return &wireGuest{t: t, port: p, far: far, mac: macAddr(pc.MAC), a4: pc.Addr4, a6: pc.Addr6}
}

// send puts a virtio header before a frame and sends it.
func (w *wireGuest) send(vnet vnetHdr, frame []byte) {
	w.t.Helper()
	b := make([]byte, vnetHdrLen, vnetHdrLen+len(frame))
	vnet.put(b)
	before := w.port.count.rxFrames.Load()
	if _, err := w.far.Write(append(b, frame...)); err != nil {
		w.t.Fatal(err)
	}
	for start := time.Now(); w.port.count.rxFrames.Load() == before && len(frame) >= ethLen; time.Sleep(100 * time.Microsecond) {
		if time.Since(start) > 2*time.Second {
			w.t.Fatal("the switch does not read")
		}
	}
}

// receive returns the next frame, nil if there is none within the time.
func (w *wireGuest) receive(d time.Duration) []byte {
	w.t.Helper()
	_, frame := w.receiveRaw(d)
	return frame
}

// receiveRaw also returns the virtio header.
func (w *wireGuest) receiveRaw(d time.Duration) (vnetHdr, []byte) {
	w.t.Helper()
	if err := w.far.SetReadDeadline(time.Now().Add(d)); err != nil {
		w.t.Fatal(err)
	}
	b := make([]byte, 70000)
	n, err := w.far.Read(b)
	if err != nil {
		return vnetHdr{}, nil
	}
	return parseVnetHdr(b), b[vnetHdrLen:n]
}

func ethernetFrame(dst, src macAddr, etherType uint16, payload []byte) []byte {
	b := append(append([]byte{}, dst[:]...), src[:]...)
	return append(binary.BigEndian.AppendUint16(b, etherType), payload...)
}

func arpRequest(sha macAddr, spa, tpa netip.Addr) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, sha[:]...)
	b = append(b, spa.AsSlice()...)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, tpa.AsSlice()...)
}

// udpDatagram is a whole IP datagram with a good checksum.
func udpDatagram(src, dst netip.AddrPort, payload []byte) []byte {
	l4 := binary.BigEndian.AppendUint16(nil, src.Port())
	l4 = binary.BigEndian.AppendUint16(l4, dst.Port())
	l4 = binary.BigEndian.AppendUint16(l4, uint16(udpLen+len(payload)))
	l4 = append(append(l4, 0, 0), payload...)
	binary.BigEndian.PutUint16(l4[6:], ^sum(pseudoSum(src.Addr(), dst.Addr(), protoUDP, len(l4)), l4))
	return ipDatagram(src.Addr(), dst.Addr(), protoUDP, 64, l4)
}

func ipDatagram(src, dst netip.Addr, proto, ttl uint8, l4 []byte) []byte {
	if dst.Is6() {
		b := make([]byte, ip6Len)
		putIPv6(b, src, dst, proto, ttl, len(l4))
		return append(b, l4...)
	}
	b := make([]byte, ip4Len)
	putIPv4(b, src, dst, proto, ttl, len(l4), 7, 0)
	return append(b, l4...)
}

func neighborSolicit(src, target netip.Addr, mac macAddr) []byte {
	return neighborMessage(ndNeighborSolicit, src, target, mac)
}

func neighborMessage(typ uint8, src, target netip.Addr, mac macAddr) []byte {
	m := make([]byte, 32)
	m[0] = typ
	copy(m[8:], target.AsSlice())
	m[24], m[25] = 1, 1
	copy(m[26:], mac[:])
	binary.BigEndian.PutUint16(m[2:], ^sum(pseudoSum(src, target, protoICMPv6, len(m)), m))
	return ipDatagram(src, target, protoICMPv6, 255, m)
}

var everyone = macAddr{255, 255, 255, 255, 255, 255}

// TestSpoofing is every way to send under another name.
func TestSpoofing(t *testing.T) {
	l := newLAN(t, nil)
	a, b := l.wire(t, 0), l.wire(t, 1)
	port := func(ip netip.Addr) netip.AddrPort { return netip.AddrPortFrom(ip, 1000) }
	good := udpDatagram(port(a.a4), port(b.a4), []byte("hello"))
	advert := neighborMessage(ndNeighborAdvert, a.a6, b.a6, a.mac)
	// The same behind an extension header that does nothing.
	hidden := append([]byte{}, advert[:ip6Len]...)
	hidden[6] = ext6DestOpts
	binary.BigEndian.PutUint16(hidden[4:], uint16(8+len(advert)-ip6Len))
	hidden = append(append(hidden, protoICMPv6, 0, 1, 4, 0, 0, 0, 0), advert[ip6Len:]...)

	for _, c := range []struct {
		name  string
		frame []byte
		drop  Drop
	}{
		{"source MAC", ethernetFrame(b.mac, b.mac, etherIPv4, good), DropSpoofed},
		{"IPv4 source", ethernetFrame(b.mac, a.mac, etherIPv4, udpDatagram(port(b.a4), port(b.a4), nil)), DropSpoofed},
		{"gateway's IPv4", ethernetFrame(b.mac, a.mac, etherIPv4, udpDatagram(port(l.cfg.Gateway4), port(b.a4), nil)), DropSpoofed},
		{"no IPv4 source", ethernetFrame(everyone, a.mac, etherIPv4, udpDatagram(port(netip.IPv4Unspecified()), port(b.a4), nil)), DropSpoofed},
		{"IPv6 source", ethernetFrame(b.mac, a.mac, etherIPv6, udpDatagram(port(b.a6), port(b.a6), nil)), DropSpoofed},
		{"IPv6 link-local of another", ethernetFrame(b.mac, a.mac, etherIPv6, udpDatagram(port(b.port.ll6), port(b.a6), nil)), DropSpoofed},
		{"ARP sender's MAC", ethernetFrame(everyone, a.mac, etherARP, arpRequest(b.mac, a.a4, b.a4)), DropSpoofed},
		{"ARP sender's IP", ethernetFrame(everyone, a.mac, etherARP, arpRequest(a.mac, l.cfg.Gateway4, b.a4)), DropSpoofed},
		{"neighbour advertisement", ethernetFrame(b.mac, a.mac, etherIPv6, advert), DropNeighbor},
		{"hidden advertisement", ethernetFrame(b.mac, a.mac, etherIPv6, hidden), DropNeighbor},
		{"neighbour solicitation for another", ethernetFrame(b.mac, a.mac, etherIPv6, neighborSolicit(a.a6, b.a6, b.mac)), DropSpoofed},
		{"solicitation from another", ethernetFrame(b.mac, a.mac, etherIPv6, neighborSolicit(b.a6, l.cfg.Gateway6, a.mac)), DropSpoofed},
		{"unknown MAC", ethernetFrame(macAddr{2, 9}, a.mac, etherIPv4, good), DropNoMember},
		{"truncated", ethernetFrame(b.mac, a.mac, etherIPv4, good[:ip4Len-1]), DropMalformed},
		{"own MAC", ethernetFrame(a.mac, a.mac, etherIPv4, good), DropNoMember},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := a.port.count.drops[c.drop].Load()
			a.send(vnetHdr{}, c.frame)
			// One port is read in order: what this frame caused comes before
			// what the next one causes.
			a.send(vnetHdr{}, ethernetFrame(b.mac, a.mac, etherIPv4, good))
			if got := b.receive(2 * time.Second); !bytes.Equal(got, ethernetFrame(b.mac, a.mac, etherIPv4, good)) {
				t.Errorf("another guest received % x", got)
			}
			if n := a.port.count.drops[c.drop].Load() - before; n != 1 {
				t.Errorf("%d frames counted as %s, want 1; all: %v", n, c.drop, a.port.Stats().Drops)
			}
		})
	}
}

func TestNeighbors(t *testing.T) {
	l := newLAN(t, nil)
	a, b := l.wire(t, 0), l.wire(t, 1)
	for _, c := range []struct {
		name   string
		target netip.Addr
		want   macAddr
		ok     bool
	}{
		{"gateway", l.cfg.Gateway4, l.gwMAC, true},
		{"member", b.a4, b.mac, true},
		{"nobody", netip.MustParseAddr("10.99.0.99"), macAddr{}, false},
		{"itself", a.a4, macAddr{}, false},
		{"outside", outside4, macAddr{}, false},
		{"gateway6", l.cfg.Gateway6, l.gwMAC, true},
		{"member6", b.a6, b.mac, true},
		{"member's link-local", b.port.ll6, b.mac, true},
		{"nobody6", netip.MustParseAddr("fd99::99"), macAddr{}, false},
		{"itself6", a.a6, macAddr{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.target.Is4() {
				a.send(vnetHdr{}, ethernetFrame(everyone, a.mac, etherARP, arpRequest(a.mac, a.a4, c.target)))
			} else {
				a.send(vnetHdr{}, ethernetFrame(macAddr{0x33, 0x33}, a.mac, etherIPv6, neighborSolicit(a.a6, c.target, a.mac)))
			}
			wait := 2 * time.Second
			if !c.ok {
				wait = 20 * time.Millisecond
			}
			r := a.receive(wait)
			if !c.ok {
				if r != nil {
					t.Fatalf("answer % x", r)
				}
				return
			}
			if r == nil {
				t.Fatal("no answer")
			}
			if macAddr(r[:6]) != a.mac || macAddr(r[6:12]) != c.want {
				t.Errorf("frame is from %x to %x", r[6:12], r[:6])
			}
			if c.target.Is4() {
				if op := r[ethLen+7]; op != 2 || macAddr(r[ethLen+8:ethLen+14]) != c.want || !bytes.Equal(r[ethLen+14:ethLen+18], c.target.AsSlice()) {
					t.Errorf("ARP answer % x", r[ethLen:])
				}
				return
			}
			ip, ok := parseIP(etherIPv6, r[ethLen:], nil)
			if !ok || !ip.checksumOK() || ip.ttl != 255 || ip.src != c.target || ip.dst != a.a6 {
				t.Fatalf("answer % x", r)
			}
			if m := ip.l4(); m[0] != ndNeighborAdvert || macAddr(m[26:32]) != c.want {
				t.Errorf("advertisement % x", m)
			}
		})
	}
	if b.receive(10*time.Millisecond) != nil {
		t.Error("neighbour discovery crossed the switch")
	}
}

func TestBroadcast(t *testing.T) {
	l := newLAN(t, nil)
	a, b, c := l.wire(t, 0), l.wire(t, 1), l.wire(t, 2)
	frame := ethernetFrame(everyone, a.mac, etherIPv4, udpDatagram(netip.AddrPortFrom(a.a4, 1), netip.AddrPortFrom(bcast4, 2), []byte("all")))
	a.send(vnetHdr{}, frame)
	for _, w := range []*wireGuest{b, c} {
		if got := w.receive(2 * time.Second); !bytes.Equal(got, frame) {
			t.Errorf("received % x", got)
		}
	}
	if a.receive(10*time.Millisecond) != nil {
		t.Error("the sender received its own broadcast")
	}
}

// TestPolicy sends a datagram to each kind of forbidden destination. The host
// must never be asked.
func TestPolicy(t *testing.T) {
	asked := make(chan netip.AddrPort, 16)
	l := newLAN(t, func(c *Config) {
		c.Redirect = func(_ string, _, dst netip.AddrPort) (netip.AddrPort, error) {
			asked <- dst
			return dst, unix.ENETUNREACH
		}
	})
	a := l.wire(t, 0)
	for _, c := range []struct {
		dst  string
		want string // ICMP type and code, nothing, or the host
	}{
		{"127.0.0.1", "3/13"}, {"127.255.0.9", "3/13"}, {"0.1.2.3", "3/13"}, {"169.254.1.1", "3/13"},
		{"169.254.169.254", "3/13"}, {"fd00:ec2::254", "1/1"}, {"fd20:ce::254", "1/1"}, {"100.100.100.200", "3/13"}, {"192.0.0.192", "3/13"},
		{"168.63.129.16", "3/13"}, {"100.100.100.201", "host"}, {"fd00:ec2::253", "host"}, {"64:ff9b::100.100.100.200", "1/1"},
		{"0.0.0.0", ""}, {"224.0.0.1", ""}, {"239.1.2.3", ""}, {"255.255.255.255", ""},
		{"10.99.0.77", "3/1"}, {"10.99.0.255", "3/1"}, {"10.99.0.1", "3/3"},
		{"8.8.8.8", "host"}, {"192.168.1.1", "host"},
		{"::1", "1/1"}, {"::ffff:127.0.0.1", "1/1"}, {"::ffff:8.8.8.8", "1/1"}, {"::127.0.0.1", "1/1"}, {"fe80::1", "1/1"},
		{"::", ""}, {"ff02::1", ""}, {"ff05::2", ""},
		{"64:ff9b::127.0.0.1", "1/1"}, {"64:ff9b::169.254.1.1", "1/1"}, {"64:ff9b::8.8.8.8", "host"},
		{"fd99::77", "1/3"}, {"fd99::1", "1/4"}, {"2001:db8::9", "host"},
	} {
		t.Run(c.dst, func(t *testing.T) {
			if got := a.ask(asked, netip.AddrPortFrom(netip.MustParseAddr(c.dst), 9)); got != c.want {
				t.Errorf("answer %q, want %q", got, c.want)
			}
		})
	}
}

// TestMetadata: where a cloud tells its machine's secrets is closed, and counted apart,
// until a port is allowed to ask; then nothing else is opened.
func TestMetadata(t *testing.T) {
	asked := make(chan netip.AddrPort, 16)
	l := newLAN(t, func(c *Config) {
		c.Redirect = func(_ string, _, dst netip.AddrPort) (netip.AddrPort, error) {
			asked <- dst
			return dst, unix.ENETUNREACH
		}
	})
	closed := l.wire(t, 0)
	open := l.wireWith(t, 1, func(c *PortConfig) { c.Metadata = true })
	secrets := []string{"169.254.169.254", "169.254.170.2", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"}
	for i, dst := range secrets {
		to := netip.AddrPortFrom(netip.MustParseAddr(dst), 80)
		if got := closed.ask(asked, to); got == "host" || got == "" {
			t.Errorf("%s closed: %q", dst, got)
		}
		if n := closed.port.Stats().Drops[DropMetadata.String()]; n != uint64(i+1) {
			t.Errorf("%s: counted %d times", dst, n)
		}
		if got := open.ask(asked, to); got != "host" {
			t.Errorf("%s open: %q", dst, got)
		}
	}
	for _, dst := range []string{"127.0.0.1", "fe80::1", "::ffff:169.254.169.254", "10.99.0.77"} {
		if got := open.ask(asked, netip.AddrPortFrom(netip.MustParseAddr(dst), 80)); got == "host" || got == "" {
			t.Errorf("%s is open as well: %q", dst, got)
		}
	}
}

// TestRates: what a port asks for too often is not answered, and is counted. Later it
// may ask again.
func TestRates(t *testing.T) {
	l := newLAN(t, func(c *Config) { c.Limits.PingRate, c.Limits.NeighborRate = 50, 50 })
	a := l.wire(t, 0)
	echo := []byte{8, 0, 0, 0, 0, 1, 0, 0}
	binary.BigEndian.PutUint16(echo[2:], ^sum(0, echo))
	frames := map[string][]byte{
		"arp":  ethernetFrame(everyone, a.mac, etherARP, arpRequest(a.mac, a.a4, l.cfg.Gateway4)),
		"ping": ethernetFrame(l.gwMAC, a.mac, etherIPv4, ipDatagram(a.a4, l.cfg.Gateway4, protoICMP, 64, echo)),
	}
	const sent = 1000
	for name, head := range frames {
		before := a.port.Stats()
		for range sent {
			a.port.input(&frame{raw: make([]byte, vnetHdrLen), head: head})
		}
		s := a.port.Stats()
		dropped, answered := s.Drops[DropRate.String()]-before.Drops[DropRate.String()], s.ToGuest.Frames-before.ToGuest.Frames
		if dropped == 0 || answered < 10 || dropped+answered != sent {
			t.Errorf("%s: of %d sent %d dropped, %d answered", name, sent, dropped, answered)
		}
		later := time.Now().Add(-time.Minute)
		a.port.asks.at, a.port.pings.at = later, later
		a.port.input(&frame{raw: make([]byte, vnetHdrLen), head: head})
		if n := a.port.Stats().ToGuest.Frames - s.ToGuest.Frames; n != 1 {
			t.Errorf("%s: not answered a minute later", name)
		}
	}
}

// ask sends a datagram to the gateway and says what becomes of it: the ICMP type
// and code that come back, that the host was asked, or nothing.
func (w *wireGuest) ask(asked chan netip.AddrPort, dst netip.AddrPort) string {
	w.t.Helper()
	src, etherType := w.a4, uint16(etherIPv4)
	if dst.Addr().Is6() {
		src, etherType = w.a6, etherIPv6
	}
	// The one behind it always has an answer, so that silence is not waited for.
	w.send(vnetHdr{}, ethernetFrame(w.port.net.gwMAC, w.mac, etherType, udpDatagram(netip.AddrPortFrom(src, 1234), dst, []byte("x"))))
	w.send(vnetHdr{}, ethernetFrame(everyone, w.mac, etherARP, arpRequest(w.mac, w.a4, w.port.net.cfg.Gateway4)))
	got := ""
	for {
		r := w.receive(2 * time.Second)
		if len(r) < ethLen {
			w.t.Fatal("the switch is silent")
		}
		if binary.BigEndian.Uint16(r[12:]) == etherARP {
			break
		}
		ip, ok := parseIP(etherType, r[ethLen:], nil)
		if !ok || !ip.checksumOK() {
			w.t.Fatalf("malformed answer % x", r)
		}
		got = string(rune('0'+ip.l4()[0])) + "/" + itoa(ip.l4()[1])
	}
	select {
	case <-asked:
		got = "host"
	default:
	}
	return got
}

// TestPolicyOptions is what the options of a network open and close.
func TestPolicyOptions(t *testing.T) {
	own, have := hostAddr(false)
	if !have {
		own = netip.MustParseAddr("198.51.100.7") // and the gateway's ports lead nowhere
	}
	const gw = "10.99.0.1"
	hairpin := "3/3"
	if have {
		hairpin = "host"
	}
	for _, c := range []struct {
		name string
		edit func(*Config)
		want map[string]string
	}{
		{"hairpin", func(c *Config) { c.Hairpin = true }, map[string]string{gw: hairpin, "8.8.8.8": "host", "10.99.0.77": "3/1"}},
		{"internal", func(c *Config) { c.Hairpin, c.Internal = true, true },
			map[string]string{gw: "3/3", "8.8.8.8": "3/0", own.String(): "3/0", "2001:db8::9": "1/0", "127.0.0.1": "3/13", "10.99.0.77": "3/1"}},
		{"isolate", func(c *Config) { c.Hairpin, c.Isolate = true, true },
			map[string]string{gw: "3/3", own.String(): map[bool]string{true: "3/13", false: "host"}[have], "8.8.8.8": "host"}},
		{"elsewhere", func(c *Config) {
			other4, other6 := netip.MustParsePrefix("10.98.0.0/24"), netip.MustParsePrefix("fd98::/64")
			c.Elsewhere = func(a netip.Addr) bool { return other4.Contains(a) || other6.Contains(a) }
		}, map[string]string{"10.98.0.7": "3/13", "fd98::7": "1/1", "64:ff9b::a62:7": "1/1", "8.8.8.8": "host"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked := make(chan netip.AddrPort, 16)
			l := newLAN(t, func(cfg *Config) {
				c.edit(cfg)
				cfg.Redirect = func(_ string, _, dst netip.AddrPort) (netip.AddrPort, error) {
					if dst.Addr().Is4() && (dst.Addr() != own) != (dst.Addr() == netip.MustParseAddr("8.8.8.8")) {
						t.Errorf("asked for %s", dst)
					}
					asked <- dst
					return dst, unix.ENETUNREACH
				}
			})
			a := l.wire(t, 0)
			for dst, want := range c.want {
				if got := a.ask(asked, netip.AddrPortFrom(netip.MustParseAddr(dst), 9)); got != want {
					t.Errorf("%s: answer %q, want %q", dst, got, want)
				}
			}
			if n := a.port.Stats().Drops[DropElsewhere.String()]; c.name == "elsewhere" && n != 3 {
				t.Errorf("%d counted", n)
			}
		})
	}
}

func itoa(b uint8) string {
	if b >= 10 {
		return string([]byte{'0' + b/10, '0' + b%10})
	}
	return string([]byte{'0' + b})
}

func TestAttachRefuses(t *testing.T) {
	l := newLAN(t, nil)
	l.wire(t, 0)
	for name, edit := range map[string]func(*PortConfig){
		"same id":           func(c *PortConfig) { c.ID = "guest0" },
		"same MAC":          func(c *PortConfig) { c.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 10} },
		"gateway's MAC":     func(c *PortConfig) { c.MAC = l.gwMAC[:] },
		"same IPv4":         func(c *PortConfig) { c.Addr4 = netip.MustParseAddr("10.99.0.10") },
		"gateway's IPv4":    func(c *PortConfig) { c.Addr4 = l.cfg.Gateway4 },
		"IPv4 elsewhere":    func(c *PortConfig) { c.Addr4 = outside4 },
		"same IPv6":         func(c *PortConfig) { c.Addr6 = netip.MustParseAddr("fd99::a") },
		"no address":        func(c *PortConfig) { c.Addr4, c.Addr6 = netip.Addr{}, netip.Addr{} },
		"group MAC":         func(c *PortConfig) { c.MAC = net.HardwareAddr{1, 0, 0, 0, 0, 10} },
		"no link":           func(c *PortConfig) { c.Link = nil },
		"odd header length": func(c *PortConfig) { c.HdrLen = 11 },
	} {
		t.Run(name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			defer r.Close()
			pc := portConfig(1, &guest{link: r})
			edit(&pc)
			if _, err := l.Attach(pc); err == nil {
				t.Error("no error")
			}
		})
	}
	if n := len(l.Stats().Ports); n != 1 {
		t.Errorf("%d ports, want 1", n)
	}
}
