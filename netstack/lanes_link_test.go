package netstack

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// packetSocket listens to all that arrives on an interface of the guest, tags of
// VLANs included.
func packetSocket(name string) (int, error) {
	dev, err := net.InterfaceByName(name)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: dev.Index}))
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// guestSendFrame sends a frame as it is, in hexadecimal in Text.
func guestSendFrame(req request) error {
	fd, err := packetSocket("eth0")
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	b, err := hex.DecodeString(req.Text)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, b)
	return os.NewSyscallError("write", err)
}

// guestTagged says which tag the next datagram to UDP port 4242 has. It creates the
// file Addr when it listens.
func guestTagged(req request) (string, error) {
	fd, err := packetSocket("eth0")
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if err := os.WriteFile(req.Addr, nil, 0o600); err != nil {
		return "", err
	}
	b, oob := make([]byte, 70000), make([]byte, 256)
	for {
		n, oobn, _, _, err := unix.Recvmsg(fd, b, oob, 0)
		if err != nil {
			return "", os.NewSyscallError("recvmsg", err)
		}
		if n < ethLen+ip4Len+udpLen || binary.BigEndian.Uint16(b[12:]) != etherIPv4 || binary.BigEndian.Uint16(b[ethLen+ip4Len+2:]) != 4242 {
			continue
		}
		f := frame{}
		r := linkReader{}
		copy(r.control[:], oob[:oobn])
		r.msg.SetControllen(oobn)
		r.auxTag(&f)
		return fmt.Sprintf("%v %d, %d bytes", f.tagged, f.tci, n), nil
	}
}

// TestTagsOnLinks is a tagged frame on its way through the kernels of two guests,
// with every pair of drivers. Some kernels leave the tag in the frame, some take it
// out and say so beside it.
func TestTagsOnLinks(t *testing.T) {
	l := newLAN(t, nil)
	type station struct {
		*guest
		pc PortConfig
	}
	var trunks, access []station
	for i, driver := range []string{DriverTap, DriverPacket, DriverTap, DriverPacket} {
		s := station{}
		s.guest, _ = l.join(t, i, driver, func(c *PortConfig) {
			if i < 2 {
				c.Trunk = []uint16{10}
			} else {
				c.VLAN = 10
			}
			s.pc = *c
		})
		if i < 2 {
			trunks = append(trunks, s)
		} else {
			access = append(access, s)
		}
	}
	check := func(from, to station, out []uint32, want string) {
		t.Helper()
		ready := t.TempDir() + "/listens"
		type result struct {
			resp response
			err  error
		}
		got := make(chan result, 1)
		go func() {
			resp, err := to.try("tagged", request{Addr: ready})
			got <- result{resp, err}
		}()
		for start := time.Now(); ; time.Sleep(time.Millisecond) {
			if _, err := os.Stat(ready); err == nil {
				break
			}
			if time.Since(start) > 5*time.Second {
				t.Fatal("the guest does not listen")
			}
		}
		d := udpDatagram(netip.AddrPortFrom(from.pc.Addr4, 1), netip.AddrPortFrom(to.pc.Addr4, 4242), make([]byte, 1000))
		from.do("frame", request{Text: hex.EncodeToString(tagFrame(ethernetFrame(macAddr(to.pc.MAC), macAddr(from.pc.MAC), etherIPv4, d), out...))})
		if r := <-got; r.err != nil || r.resp.Text != want {
			t.Errorf("%s to %s: %q, %v, want %q", from.info.Driver, to.info.Driver, r.resp.Text, r.err, want)
		}
	}
	size := ethLen + ip4Len + udpLen + 1000
	for i := range 2 {
		for j := range 2 {
			if i != j {
				check(trunks[i], trunks[j], []uint32{dot1q(10)}, fmt.Sprintf("true 10, %d bytes", size))
			}
			check(trunks[i], access[j], []uint32{dot1q(10)}, fmt.Sprintf("false 0, %d bytes", size))
			check(access[i], trunks[j], nil, fmt.Sprintf("true 10, %d bytes", size))
		}
	}
	// And what a port does not carry is counted, whatever the kernel made of it.
	for _, s := range access {
		for _, c := range []struct {
			tags []uint32
			drop Drop
		}{{[]uint32{dot1q(20)}, DropVLAN}, {[]uint32{dot1q(10), dot1q(20)}, DropQinQ}, {[]uint32{etherQinQ<<16 | 10}, DropQinQ}} {
			p := l.members.Load().byID[s.pc.ID]
			before := p.count.drops[c.drop].Load()
			d := udpDatagram(netip.AddrPortFrom(s.pc.Addr4, 1), netip.AddrPortFrom(outside4, 2), nil)
			s.do("frame", request{Text: hex.EncodeToString(tagFrame(ethernetFrame(everyone, macAddr(s.pc.MAC), etherIPv4, d), c.tags...))})
			for start := time.Now(); p.count.drops[c.drop].Load() == before; time.Sleep(time.Millisecond) {
				if time.Since(start) > 2*time.Second {
					t.Errorf("%s, tags %x: counted as %v, want %s", s.info.Driver, c.tags, p.Stats().Drops, c.drop)
					break
				}
			}
		}
	}
}
