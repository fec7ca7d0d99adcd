package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// packetAttempts write frames past the sandbox's own IP stack. What matters is what
// arrives at a neighbour that listens: each carries a mark.
var packetAttempts = map[string]attempt{"spoof": spoof}

const mark = "mark:"

// listen prints its addresses and then the mark of each frame that comes in.
func listen([]string) error {
	self, err := device()
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	fmt.Println("listening", self.mac, self.addr4, self.addr6)
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return err
		}
		if _, rest, ok := bytes.Cut(buf[:n], []byte(mark)); ok && !bytes.Equal(buf[6:12], self.mac) {
			name, _, _ := bytes.Cut(rest, []byte("."))
			fmt.Printf("got %q\n", name)
		}
	}
}

// end is one end of a conversation on the link.
type end struct {
	index        int
	mac          net.HardwareAddr
	addr4, addr6 netip.Addr
}

// device is eth0 with its addresses.
func device() (end, error) {
	ifi, err := net.InterfaceByName("eth0")
	if err != nil {
		return end{}, err
	}
	e := end{index: ifi.Index, mac: ifi.HardwareAddr}
	addrs, err := ifi.Addrs()
	if err != nil {
		return e, err
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		switch {
		case err != nil:
			return e, err
		case p.Addr().Is4():
			e.addr4 = p.Addr()
		case !p.Addr().IsLinkLocalUnicast():
			e.addr6 = p.Addr()
		}
	}
	return e, nil
}

// spoof sends a frame of a kind to the neighbour with the addresses that follow, and
// in the name of the gateway: KIND MAC ADDR4 ADDR6 GATEWAY4 GATEWAY6. A frame of the
// kind "honest" follows it on the same way.
func spoof(args []string) error {
	if len(args) < 6 {
		return ErrUsage
	}
	self, err := device()
	if err != nil {
		return err
	}
	peer, gateway := end{}, end{}
	if peer.mac, err = net.ParseMAC(args[1]); err != nil {
		return err
	}
	for i, p := range []*netip.Addr{&peer.addr4, &peer.addr6, &gateway.addr4, &gateway.addr6} {
		if *p, err = netip.ParseAddr(args[2+i]); err != nil {
			return err
		}
	}
	f, err := frameOf(args[0], self, peer, gateway)
	if err != nil {
		return err
	}
	honest, err := frameOf("honest", self, peer, gateway)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	to := &unix.SockaddrLinklayer{Ifindex: self.index, Halen: 6}
	return errors.Join(unix.Sendto(fd, f, 0, to), unix.Sendto(fd, honest, 0, to), unix.Close(fd))
}

// frameOf makes a frame with its own name as mark.
func frameOf(kind string, self, peer, gateway end) ([]byte, error) {
	tail := []byte(mark + kind + ".")
	ethernet := func(src net.HardwareAddr, typ uint16, body []byte) []byte {
		return append(append(append(append([]byte{}, peer.mac...), src...), byte(typ>>8), byte(typ)), body...)
	}
	switch kind {
	case "honest":
		return ethernet(self.mac, unix.ETH_P_IP, udp4(self.addr4, peer.addr4, tail)), nil
	case "ip4":
		return ethernet(self.mac, unix.ETH_P_IP, udp4(gateway.addr4, peer.addr4, tail)), nil
	case "ip6":
		return ethernet(self.mac, unix.ETH_P_IPV6, packet6(gateway.addr6, peer.addr6, unix.IPPROTO_UDP, 64, append([]byte{0, 9, 0, 9, 0, byte(8 + len(tail)), 0, 0}, tail...), 6)), nil
	case "mac":
		other := append(net.HardwareAddr{}, self.mac...)
		other[5] ^= 0xff
		return ethernet(other, unix.ETH_P_IP, udp4(self.addr4, peer.addr4, tail)), nil
	case "vlan":
		return ethernet(self.mac, unix.ETH_P_8021Q, append([]byte{0, 1, 8, 0}, udp4(self.addr4, peer.addr4, tail)...)), nil
	case "arp":
		b := []byte{0, 1, 8, 0, 6, 4, 0, 2}
		b = append(append(b, self.mac...), gateway.addr4.AsSlice()...)
		b = append(append(b, peer.mac...), peer.addr4.AsSlice()...)
		return ethernet(self.mac, unix.ETH_P_ARP, append(b, tail...)), nil
	case "advert", "router", "redirect":
		return ethernet(self.mac, unix.ETH_P_IPV6, discovery(kind, tail, self, peer, gateway)), nil
	}
	return nil, fmt.Errorf("%w: spoof %s", ErrUsage, kind)
}

// discovery is a message that would make its reader send to us what is for the gateway.
func discovery(kind string, tail []byte, self, peer, gateway end) []byte {
	var m []byte
	switch kind {
	case "advert":
		m = append([]byte{136, 0, 0, 0, 0xe0, 0, 0, 0}, gateway.addr6.AsSlice()...)
		m = append(append(m, 2, 1), self.mac...)
	case "router":
		m = []byte{134, 0, 0, 0, 64, 0, 0x1c, 0x20, 0, 0, 0, 0, 0, 0, 0, 0}
		m = append(append(m, 1, 1), self.mac...)
	case "redirect":
		m = append([]byte{137, 0, 0, 0, 0, 0, 0, 0}, self.addr6.AsSlice()...)
		m = append(m, gateway.addr6.AsSlice()...)
		m = append(append(m, 2, 1), self.mac...)
	}
	opt := make([]byte, 24) // of an unknown type
	opt[0], opt[1] = 200, 3
	copy(opt[2:], tail)
	return packet6(gateway.addr6, peer.addr6, unix.IPPROTO_ICMPV6, 255, append(m, opt...), 2)
}

func udp4(src, dst netip.Addr, data []byte) []byte {
	b := make([]byte, 20+8, 20+8+len(data))
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(cap(b)))
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(b[10:], ^sum16(0, b[:20]))
	b[21], b[23] = 9, 9
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(data)))
	return append(b, data...)
}

// packet6 fills in the checksum, which is at sumAt of the body.
func packet6(src, dst netip.Addr, proto, hops byte, body []byte, sumAt int) []byte {
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, proto, hops
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	binary.BigEndian.PutUint16(body[sumAt:], ^sum16(uint32(len(body))+uint32(proto), append(h[8:40:40], body...)))
	return append(h, body...)
}

func sum16(s uint32, b []byte) uint16 {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) > 0 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
