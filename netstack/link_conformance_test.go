package netstack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var drivers = []string{DriverTap, DriverPacket}

func hostPortOf(a netip.Addr, port uint16) string {
	return net.JoinHostPort(a.String(), strconv.Itoa(int(port)))
}

// TestConformance is what every link driver must do, at every MTU.
func TestConformance(t *testing.T) {
	for _, driver := range drivers {
		for _, mtu := range []int{576, 1280, 1500, DefaultMTU} {
			t.Run(fmt.Sprintf("%s/%d", driver, mtu), func(t *testing.T) {
				l := newLAN(t, func(c *Config) { c.MTU = mtu })
				g, p := l.join(t, 0, driver, nil)
				size := int64(8 << 20)
				if mtu == DefaultMTU {
					size = 64 << 20
				}
				for _, family := range []struct {
					name, listen string
					outside, gw  netip.Addr
				}{
					{"v4", "127.0.0.1", outside4, l.cfg.Gateway4},
					{"v6", "::1", outside6, l.cfg.Gateway6},
				} {
					if family.name == "v6" && mtu < minMTU6 {
						continue
					}
					t.Run(family.name, func(t *testing.T) {
						g := g.in(t)
						tcp := hostPortOf(family.outside, listenTCP(t, family.listen))
						g.do("tcp", request{Network: "tcp", Addr: tcp, Transfer: transfer{'U', size, 1}})
						g.do("tcp", request{Network: "tcp", Addr: tcp, Transfer: transfer{'D', size, 2}})
						g.do("udp", request{Network: "udp", Addr: hostPortOf(family.outside, listenUDP(t, family.listen)),
							Sizes: []int{1, 2, 100, 547, 548, 1231, 1232, 1233, 1472, 1473, 9000, 60000, 65000}})
						g.do("ping", request{Addr: family.gw.String(), Sizes: []int{0, 1, 56, 1400, 5000}})
						g.do("ping", request{Addr: family.outside.String(), Sizes: []int{0, 1, 56, 1400, 5000}})
					})
				}
				for name, n := range p.Stats().Drops {
					if name != DropNeighbor.String() && name != DropGroup.String() && name != DropPolicy.String() {
						t.Errorf("%d frames dropped: %s", n, name)
					}
				}
			})
		}
	}
}

// TestOldHeader is a packet link as Linux before 6.4 has it: without num_buffers
// in the virtio header.
func TestOldHeader(t *testing.T) {
	l := newLAN(t, nil)
	var guests [2]*guest
	for i := range guests {
		g := newGuest(t)
		g.setup(guestConfig(i, DriverPacket, l.cfg.MTU))
		// Of two: they also exchange frames with each other.
		if i == 0 {
			if err := unix.SetsockoptInt(int(g.link.Fd()), unix.SOL_PACKET, unix.PACKET_VNET_HDR_SZ, vnetHdrLenOld); err != nil {
				t.Fatal(err)
			}
			g.info.HdrLen = vnetHdrLenOld
		}
		if _, err := l.Attach(portConfig(i, g)); err != nil {
			t.Fatal(err)
		}
		guests[i] = g
	}
	old, other := guests[0], guests[1]
	tcp, udp := hostPortOf(outside4, listenTCP(t, "127.0.0.1")), hostPortOf(outside6, listenUDP(t, "::1"))
	other.do("listen", request{Network: "tcp", Addr: ":9000"})
	for _, to := range []string{tcp, hostPortOf(guestConfig(1, "", 0).Addrs[1].Addr(), 9000)} {
		old.do("tcp", request{Network: "tcp", Addr: to, Transfer: transfer{'U', 16 << 20, 1}})
		old.do("tcp", request{Network: "tcp", Addr: to, Transfer: transfer{'D', 16 << 20, 2}})
	}
	old.do("udp", request{Network: "udp", Addr: udp, Sizes: []int{1, 1473, 60000}})
	old.do("ping", request{Addr: l.cfg.Gateway6.String(), Sizes: []int{56, 5000}})
}

// TestUDPSegments is one write of many datagrams (UDP_SEGMENT, as QUIC stacks use
// it). They come over the link in one frame, and leave as they were meant.
func TestUDPSegments(t *testing.T) {
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			l := newLAN(t, nil)
			g, p := l.join(t, 0, driver, nil)
			for _, addr := range []string{hostPortOf(outside4, listenUDP(t, "127.0.0.1")), hostPortOf(outside6, listenUDP(t, "::1"))} {
				g.do("udp", request{Network: "udp", Addr: addr, Sizes: []int{1}})
				before := p.Stats().FromGuest.Frames
				const want = "1200 1200 1200 1200 1200 1200 1200 1200 1200 500"
				if got := g.do("segments", request{Network: "udp", Addr: addr, Sizes: []int{9*1200 + 500}, Mode: 1200}).Text; got != want {
					t.Errorf("datagrams of %s bytes, want %s", got, want)
				}
				if n := p.Stats().FromGuest.Frames - before; n > 5 {
					t.Errorf("%d frames, want them in one", n)
				}
			}
			if n := p.Stats().Drops[DropMalformed.String()]; n != 0 {
				t.Errorf("%d frames make no sense", n)
			}
		})
	}
}

// TestSwitch is guest to guest, between all pairs of drivers.
func TestSwitch(t *testing.T) {
	for _, pair := range [][2]string{{DriverTap, DriverTap}, {DriverTap, DriverPacket}, {DriverPacket, DriverPacket}} {
		for _, mtu := range []int{1500, DefaultMTU} {
			t.Run(fmt.Sprintf("%s-%s/%d", pair[0], pair[1], mtu), func(t *testing.T) {
				l := newLAN(t, func(c *Config) { c.MTU = mtu })
				a, _ := l.join(t, 0, pair[0], nil)
				b, pb := l.join(t, 1, pair[1], nil)
				b.do("listen", request{Network: "tcp", Addr: ":9000"})
				b.do("listen-udp", request{Network: "udp", Addr: ":9000"})
				for _, addr := range []netip.Addr{pb.cfg.Addr4, pb.cfg.Addr6} {
					to := hostPortOf(addr, 9000)
					a.do("tcp", request{Network: "tcp", Addr: to, Transfer: transfer{'U', 32 << 20, 1}})
					a.do("tcp", request{Network: "tcp", Addr: to, Transfer: transfer{'D', 32 << 20, 2}})
					a.do("udp", request{Network: "udp", Addr: to, Sizes: []int{1, 1400, 9000, 60000}})
					a.do("ping", request{Addr: addr.String(), Sizes: []int{56, 2000}})
				}
			})
		}
	}
}

// TestAuto is the choice of the driver, and what the namespace looks like.
func TestAuto(t *testing.T) {
	l := newLAN(t, nil)
	g, _ := l.join(t, 0, DriverAuto, nil)
	if g.info.Driver != DriverTap || g.info.HdrLen != vnetHdrLen || g.info.MTU != DefaultMTU {
		t.Errorf("link is %+v, want a tap", g.info)
	}
	if g.info.Reason != "" {
		t.Errorf("Reason = %q, want nothing refused here", g.info.Reason)
	}
	for name, want := range map[string]string{
		"net/ipv4/ping_group_range":               "0\t0",
		"net/ipv4/ip_unprivileged_port_start":     "0",
		"net/ipv6/conf/eth0/accept_ra":            "0",
		"net/ipv4/conf/all/forwarding":            "0",
		"net/ipv4/tcp_allowed_congestion_control": "",
	} {
		got := g.do("sysctl", request{Addr: name}).Text
		if want != "" && got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if cc := g.do("sysctl", request{Addr: "net/ipv4/tcp_congestion_control"}).Text; cc == "bbr" {
		t.Error("congestion control of the guest is bbr")
	}
}

// TestReady is the first datagram of a new guest: it must not meet a link that
// is still being set up, as the next try of neighbour discovery is a second
// later.
func TestReady(t *testing.T) {
	l := newLAN(t, func(c *Config) { c.DNS = dnsStub{} })
	for i := range 20 {
		driver, gw := drivers[i%2], l.cfg.Gateway4
		if i%4 >= 2 {
			gw = l.cfg.Gateway6
		}
		g, _ := l.join(t, i, driver, nil)
		if r := g.do("exchange", request{Network: "udp", Addr: hostPortOf(gw, 53)}); r.Elapsed > 900*time.Millisecond {
			t.Errorf("%s: the first answer of %s took %v; link: %+v", driver, gw, r.Elapsed, g.info)
		}
	}
}

// TestFallback is auto without a TUN driver.
func TestFallback(t *testing.T) {
	l := newLAN(t, nil)
	g := newGuest(t)
	g.do("hide-tun", request{})
	if _, err := g.try("setup", request{Config: guestConfig(0, DriverTap, 0)}); !errors.Is(err, syscall.ENOTTY) {
		t.Errorf("tap on something else: %v, want ENOTTY", err)
	}
	g.setup(guestConfig(0, DriverAuto, 0))
	if g.info.Driver != DriverPacket || !strings.Contains(g.info.Reason, "tap does not work") {
		t.Errorf("link is %+v, want packet and the reason", g.info)
	}
	if _, err := l.Attach(portConfig(0, g)); err != nil {
		t.Fatal(err)
	}
	g.do("ping", request{Addr: l.cfg.Gateway4.String(), Sizes: []int{56}})
}

func TestSetupGuestRefuses(t *testing.T) {
	for name, edit := range map[string]func(*GuestConfig){
		"mtu too small":  func(c *GuestConfig) { c.MTU = 500 },
		"mtu too large":  func(c *GuestConfig) { c.MTU = 70000 },
		"no mac":         func(c *GuestConfig) { c.MAC = nil },
		"group mac":      func(c *GuestConfig) { c.MAC = net.HardwareAddr{1, 2, 3, 4, 5, 6} },
		"unknown driver": func(c *GuestConfig) { c.Driver = "carrier-pigeon" },
		"long name":      func(c *GuestConfig) { c.Name = "a-very-long-interface-name" },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := guestConfig(0, DriverTap, 1500)
			edit(&cfg)
			if _, err := newGuest(t).try("setup", request{Config: cfg}); err == nil {
				t.Error("no error")
			}
		})
	}
}

// TestGuestSees is how failures on the host's side look in the guest.
func TestGuestSees(t *testing.T) {
	tcp4, tcp6 := refusingPort(t, "tcp", "127.0.0.1").Port(), refusingPort(t, "tcp", "::1").Port()
	udp4, udp6 := refusingPort(t, "udp", "127.0.0.1").Port(), refusingPort(t, "udp", "::1").Port()
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			l := newLAN(t, func(c *Config) { c.Limits.DialTimeout = time.Second })
			g, _ := l.join(t, 0, driver, nil)
			for _, c := range []struct {
				network, addr string
				want          syscall.Errno
			}{
				{"tcp", hostPortOf(outside4, tcp4), syscall.ECONNREFUSED},
				{"tcp", hostPortOf(outside6, tcp6), syscall.ECONNREFUSED},
				{"udp", hostPortOf(outside4, udp4), syscall.ECONNREFUSED},
				{"udp", hostPortOf(outside6, udp6), syscall.ECONNREFUSED},
				{"tcp", hostPortOf(l.cfg.Gateway4, 80), syscall.ECONNREFUSED},
				{"tcp", hostPortOf(l.cfg.Gateway6, 80), syscall.ECONNREFUSED},
				{"udp", hostPortOf(l.cfg.Gateway4, 80), syscall.ECONNREFUSED},
				{"udp", hostPortOf(l.cfg.Gateway6, 80), syscall.ECONNREFUSED},
				{"tcp", "203.0.113.1:80", syscall.ENETUNREACH},
				{"tcp", "[2001:db8::dead]:80", syscall.ENETUNREACH},
				{"tcp", "10.99.0.200:80", syscall.EHOSTUNREACH},
				{"tcp", "169.254.169.254:80", syscall.EHOSTUNREACH},
			} {
				op := "dial"
				if c.network == "udp" {
					op = "udp"
				}
				_, err := g.try(op, request{Network: c.network, Addr: c.addr, Sizes: []int{10}, Timeout: 10 * time.Second})
				if !errors.Is(err, c.want) {
					t.Errorf("%s %s: %v, want %v", c.network, c.addr, err, c.want)
				}
			}
		})
	}
}
