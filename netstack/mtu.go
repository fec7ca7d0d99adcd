package netstack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Linux sets don't-fragment on the datagrams of ordinary sockets and cuts what
// exceeds the MTU itself. Behind a link of 65520 bytes it cuts nothing, so an
// ordinary datagram of some kilobytes arrives here as one that must not be cut,
// like a probe for the path's MTU. See the package comment for what is done.

// etherMTU divides the two: a guest with an ordinary link would not have sent a
// larger datagram in one piece.
const etherMTU = 1500

const (
	// maxMTUAdvice is the number of destinations remembered. Forgetting one
	// costs a datagram that is cut where an error was due.
	maxMTUAdvice = 1024
	// mtuAdviceLife is less than the ten minutes for which the guest's kernel
	// remembers (net.ipv4.route.mtu_expires).
	mtuAdviceLife = 5 * time.Minute
)

// mtuAdvice remembers which destinations' MTU the guest has been told. The
// port's reader alone uses it.
type mtuAdvice struct{ given map[netip.Addr]advice }

type advice struct {
	at time.Time
	// emptied is linkReader.emptied at that time.
	emptied uint64
}

// heeded tells whether the guest's kernel has known the MTU for dst when it sent
// the current datagram. Those that it had queued before count as not knowing.
func (t *mtuAdvice) heeded(dst netip.Addr, r *linkReader) bool {
	a, ok := t.given[dst]
	return ok && a.emptied != r.emptied && time.Since(a.at) < mtuAdviceLife
}

func (t *mtuAdvice) add(dst netip.Addr, r *linkReader) {
	if a, ok := t.given[dst]; ok && a.emptied == r.emptied {
		return
	}
	if t.given == nil || len(t.given) >= maxMTUAdvice {
		t.given = map[netip.Addr]advice{}
	}
	t.given[dst] = advice{time.Now(), r.emptied}
}

// tooBig deals with a datagram that must not be cut and that the host's kernel
// does not send in one piece.
func (m *mapping) tooBig(s *hostSocket, real netip.AddrPort, ttl uint8, ip *packet, pieces [][]byte) error {
	p, v6 := m.port, ip.v6()
	m.readErrors(s) // the kernel's note about this datagram
	mtu, err := p.net.pathMTU(real.Addr())
	if err != nil {
		return err
	}
	headers := ip4Len
	if v6 {
		headers = ip6Len
	}
	size := headers
	for _, b := range pieces {
		size += len(b)
	}
	if m.proto == protoUDP {
		size += udpLen
	}
	gw, u := p.net.gateway(v6), errTooBig(v6, uint32(mtuInFamily(mtu, s.v6, v6)))
	if size <= etherMTU || p.mtus.heeded(ip.dst, &p.reader) {
		p.count.drop(DropUDPSend)
		p.sendError(gw, ip.src, u, ip.head)
		return nil
	}
	p.mtus.add(ip.dst, &p.reader)
	p.sendError(gw, ip.src, u, mtuCause(ip))
	return s.send(real, ttl, false, 0, pieces)
}

// mtuCause is an echo reply to the destination of ip, which the guest has not
// sent. An error about it reaches no socket, but the kernel takes the MTU from
// it. One about ip itself would end a read of the sender's with EMSGSIZE, and
// nothing was lost.
func mtuCause(ip *packet) []byte {
	v6 := ip.v6()
	b := make([]byte, ip6Len, ip6Len+icmpLen)
	if v6 {
		putIPv6(b, ip.src, ip.dst, protoICMPv6, guestTTL, icmpLen)
	} else {
		b = b[:ip4Len]
		putIPv4(b, ip.src, ip.dst, protoICMP, guestTTL, icmpLen, 0, 0)
		binary.BigEndian.PutUint16(b[6:], 0x4000)
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], ^sum(0, b))
	}
	return append(b, echoReply(v6), 0, 0, 0, 0, 0, 0, 0)
}

// mtuInFamily is the MTU of a path, known for one IP version, for datagrams that
// the guest sends with another one.
func mtuInFamily(mtu int, v6, guest6 bool) int {
	switch {
	case v6 && !guest6:
		return mtu - (ip6Len - ip4Len)
	case guest6 && !v6:
		return mtu + (ip6Len - ip4Len)
	}
	return mtu
}

// pathMTU is what the host's kernel knows of the way to an address.
func (n *Network) pathMTU(to netip.Addr) (int, error) {
	s, err := n.newHostSocket(protoUDP, to.Is6())
	if err != nil {
		return 0, err
	}
	defer s.close()
	level, opt := unix.SOL_IP, unix.IP_MTU
	var sa unix.Sockaddr
	const discard = 9 // nothing is sent
	if to.Is6() {
		level, opt = unix.SOL_IPV6, unix.IPV6_MTU
		sa = &unix.SockaddrInet6{Addr: to.As16(), Port: discard}
	} else {
		sa = &unix.SockaddrInet4{Addr: to.As4(), Port: discard}
	}
	var mtu int
	cerr := s.raw.Control(func(fd uintptr) {
		if err = unix.Connect(int(fd), sa); err != nil {
			err = os.NewSyscallError("connect", err)
		} else if mtu, err = unix.GetsockoptInt(int(fd), level, opt); err != nil {
			err = os.NewSyscallError("getsockopt(IP_MTU)", err)
		}
	})
	return mtu, errors.Join(cerr, err)
}
