package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// storm sends frames of some kinds in turn, on each processor as fast as they go, until
// it is killed: storm KIND,KIND... TARGET, where TARGET is an IPv4 address behind the
// gateway. Two kinds come alone and need no privilege: "sockets" are datagrams and
// connections of ordinary sockets, "streams" a hundred full connections to an echo
// server, the TARGET.
func storm(args []string) error {
	if args[0] == "streams" {
		fmt.Println("storm")
		return stormStreams(args[1])
	}
	target, err := netip.ParseAddr(args[1])
	if err != nil {
		return err
	}
	if args[0] == "sockets" {
		fmt.Println("storm")
		return stormSockets(target)
	}
	self, err := device()
	if err != nil {
		return err
	}
	gateway, err := gatewayOf(self)
	if err != nil {
		return err
	}
	var makers []frameMaker
	for kind := range strings.SplitSeq(args[0], ",") {
		m, ok := stormKinds[kind]
		if !ok {
			return fmt.Errorf("%w: storm %s", ErrUsage, kind)
		}
		makers = append(makers, m)
	}
	fmt.Println("storm")
	failed := make(chan error)
	for n := range runtime.NumCPU() {
		go func() { failed <- stormFrames(makers, self, gateway, target, n<<24) }()
	}
	return <-failed
}

// A frameMaker makes the i-th frame of a kind.
type frameMaker func(i int, self, gateway end, target netip.Addr) []byte

func stormFrames(makers []frameMaker, self, gateway end, target netip.Addr, first int) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	to := &unix.SockaddrLinklayer{Ifindex: self.index, Halen: 6}
	// Made before: to make one takes longer than to send it.
	var frames [][]byte
	for i := range 1 << 13 {
		frames = append(frames, makers[i%len(makers)](first+i/len(makers), self, gateway, target))
	}
	for {
		for _, f := range frames {
			// ENOBUFS: the link is full, which is what we are for.
			if err := unix.Sendto(fd, f, 0, to); err != nil && !slices.Contains([]error{unix.ENOBUFS, unix.EAGAIN, unix.EINTR}, err) {
				return os.NewSyscallError("sendto", err)
			}
		}
	}
}

// stormStreams has many connections to an echo server, all of them full.
func stormStreams(addr string) error {
	for range 100 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		go func() {
			for b := make([]byte, 64<<10); ; {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}()
		go io.Copy(io.Discard, c)
	}
	select {}
}

// stormSockets is what any program may do.
func stormSockets(target netip.Addr) error {
	for range 4 * runtime.NumCPU() {
		go func() {
			for i := 0; ; i++ {
				if c, err := net.Dial("tcp", netip.AddrPortFrom(target, uint16(20000+i%1000)).String()); err == nil {
					c.Close()
				}
			}
		}()
	}
	for i := 0; ; i++ {
		u, err := net.ListenPacket("udp4", ":0")
		if err != nil {
			continue // as many as there are
		}
		for j := range 64 {
			_, _ = u.WriteTo(make([]byte, 64), net.UDPAddrFromAddrPort(netip.AddrPortFrom(target, uint16(20000+(i+j)%1000))))
		}
		u.Close()
	}
}

// gatewayOf resolves the gateway, which has the first address of the network.
func gatewayOf(self end) (end, error) {
	a := self.addr4.As4()
	a[3] = 1
	gw := end{addr4: netip.AddrFrom4(a)}
	c, err := net.Dial("udp4", netip.AddrPortFrom(gw.addr4, 53).String())
	if err != nil {
		return gw, err
	}
	defer c.Close()
	// It may be asked in a storm: this kernel asks for its address until it knows it.
	if _, err := c.Write(make([]byte, 12)); err != nil {
		return gw, err
	}
	for range 1000 {
		if gw.mac, err = neighbourMAC(gw.addr4); err != nil || gw.mac != nil {
			return gw, err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return gw, errors.New("the gateway has no MAC address")
}

// neighbourMAC is what the kernel knows.
func neighbourMAC(a netip.Addr) (net.HardwareAddr, error) {
	table, err := os.ReadFile("/proc/net/arp")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 3 && f[0] == a.String() && f[2] != "0x0" {
			return net.ParseMAC(f[3])
		}
	}
	return nil, nil
}

var (
	everyone = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	group4   = net.HardwareAddr{1, 0, 0x5e, 0x7f, 1, 1}
	group6   = net.HardwareAddr{0x33, 0x33, 0xff, 0, 0, 1}
)

// stormKinds are floods, by what they fill.
var stormKinds = map[string]frameMaker{
	"udp": func(i int, self, gateway end, target netip.Addr) []byte {
		return frameTo(gateway.mac, self, unix.ETH_P_IP, datagram4(self.addr4, target, uint16(i), 9, make([]byte, 100)))
	},
	"udp-one": func(_ int, self, gateway end, target netip.Addr) []byte {
		return frameTo(gateway.mac, self, unix.ETH_P_IP, datagram4(self.addr4, target, 7777, 9, make([]byte, 1400)))
	},
	"syn": func(i int, self, gateway end, target netip.Addr) []byte {
		tcp := make([]byte, 20)
		binary.BigEndian.PutUint16(tcp, uint16(1024+i))
		binary.BigEndian.PutUint16(tcp[2:], uint16(20000+i>>16))
		tcp[12], tcp[13] = 5<<4, 2
		binary.BigEndian.PutUint16(tcp[14:], 65535)
		return frameTo(gateway.mac, self, unix.ETH_P_IP, packet4(self.addr4, target, unix.IPPROTO_TCP, tcp, 16))
	},
	"ping": func(i int, self, gateway end, target netip.Addr) []byte {
		return frameTo(gateway.mac, self, unix.ETH_P_IP, echo4(self.addr4, target, i))
	},
	"ping-gateway": func(i int, self, gateway end, _ netip.Addr) []byte {
		return frameTo(gateway.mac, self, unix.ETH_P_IP, echo4(self.addr4, gateway.addr4, i))
	},
	"arp": func(i int, self, gateway end, _ netip.Addr) []byte {
		b := append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, self.mac...)
		b = append(append(b, self.addr4.AsSlice()...), make([]byte, 6)...)
		a := gateway.addr4.As4()
		a[3] = byte(i)
		return frameTo(everyone, self, unix.ETH_P_ARP, append(b, a[:]...))
	},
	"nd": func(i int, self, _ end, _ netip.Addr) []byte {
		a := self.addr6.As16()
		binary.BigEndian.PutUint32(a[12:], uint32(i))
		m := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, a[:]...)
		m = append(append(m, 1, 1), self.mac...)
		return frameTo(group6, self, unix.ETH_P_IPV6, packet6(self.addr6, netip.MustParseAddr("ff02::1:ff00:1"), unix.IPPROTO_ICMPV6, 255, m, 2))
	},
	"dns": func(i int, self, gateway end, _ netip.Addr) []byte {
		q := []byte{byte(i >> 8), byte(i), 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 8}
		q = append(q, fmt.Sprintf("x%07d", i%10_000_000)...)
		q = append(q, "\x03sbx\x08internal\x00\x00\x01\x00\x01"...)
		return frameTo(gateway.mac, self, unix.ETH_P_IP, datagram4(self.addr4, gateway.addr4, uint16(1024+i), 53, q))
	},
	"broadcast": func(_ int, self, _ end, _ netip.Addr) []byte {
		return frameTo(everyone, self, unix.ETH_P_IP, datagram4(self.addr4, netip.MustParseAddr("255.255.255.255"), 9, 9, make([]byte, 1400)))
	},
	"multicast": func(_ int, self, _ end, _ netip.Addr) []byte {
		return frameTo(group4, self, unix.ETH_P_IP, datagram4(self.addr4, netip.MustParseAddr("239.255.1.1"), 9, 9, make([]byte, 1400)))
	},
	"fragments": func(i int, self, gateway end, target netip.Addr) []byte {
		d := datagram4(self.addr4, target, 9, 9, make([]byte, 1400))
		binary.BigEndian.PutUint16(d[4:], uint16(i))
		d[6] = 0x20 // more
		sum4(d)
		return frameTo(gateway.mac, self, unix.ETH_P_IP, d)
	},
	"malformed": func(i int, self, gateway end, target netip.Addr) []byte {
		d := datagram4(self.addr4, target, 9, 9, make([]byte, i%64))
		d[i%20] ^= byte(1 + i%255)
		return frameTo(gateway.mac, self, unix.ETH_P_IP, d)
	},
}

func frameTo(dst net.HardwareAddr, self end, etherType uint16, body []byte) []byte {
	return append(append(append(slices.Clone(dst), self.mac...), byte(etherType>>8), byte(etherType)), body...)
}

func datagram4(src, dst netip.Addr, from, to uint16, data []byte) []byte {
	u := make([]byte, 8, 8+len(data))
	binary.BigEndian.PutUint16(u, from)
	binary.BigEndian.PutUint16(u[2:], to)
	binary.BigEndian.PutUint16(u[4:], uint16(8+len(data)))
	return packet4(src, dst, unix.IPPROTO_UDP, append(u, data...), 6)
}

func echo4(src, dst netip.Addr, i int) []byte {
	m := []byte{8, 0, 0, 0, byte(i >> 8), byte(i), 0, 0}
	binary.BigEndian.PutUint16(m[2:], ^sum16(0, m))
	return packet4(src, dst, unix.IPPROTO_ICMP, m, -1)
}

// packet4 fills in the checksums. That of the body is at sumAt; -1: it is there.
func packet4(src, dst netip.Addr, proto byte, body []byte, sumAt int) []byte {
	h := make([]byte, 20, 20+len(body))
	h[0], h[8], h[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(body)))
	copy(h[12:], src.AsSlice())
	copy(h[16:], dst.AsSlice())
	sum4(h)
	if sumAt >= 0 {
		binary.BigEndian.PutUint16(body[sumAt:], ^sum16(uint32(len(body))+uint32(proto), append(h[12:20:20], body...)))
	}
	return append(h, body...)
}

// sum4 fills in the checksum of a header.
func sum4(h []byte) {
	h[10], h[11] = 0, 0
	binary.BigEndian.PutUint16(h[10:], ^sum16(0, h[:20]))
}
