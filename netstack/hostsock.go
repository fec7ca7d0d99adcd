package netstack

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"github.com/rootless-sbx/sbx/internal/dgram"
	"golang.org/x/sys/unix"
)

// maxDatagram is the largest payload of UDP over IPv4.
const maxDatagram = 65507

// udpBuf is asked for each way; the kernel cuts it to net.core.rmem_max and
// net.core.wmem_max.
const udpBuf = 1 << 20

// hostSocket is an unconnected UDP or ping socket on the host. Errors that
// come back for its datagrams are kept in the kernel's error queue, with the
// destination they are about.
type hostSocket struct {
	file *os.File
	raw  syscall.RawConn
	v6   bool

	// mu guards the rest: it keeps fd open during a send.
	mu  sync.Mutex
	fd  int // -1 when closed
	ttl int
	df  int // -1 unknown, else a bool
	// maxSegment is the largest datagram that goes in trains: a larger one was
	// refused, for the MTU of some way.
	maxSegment int
}

// newHostSocket makes a socket for a transport protocol.
func (n *Network) newHostSocket(proto uint8, v6 bool) (_ *hostSocket, err error) {
	domain, level, recverr, network := unix.AF_INET, unix.SOL_IP, unix.IP_RECVERR, "udp4"
	if v6 {
		domain, level, recverr, network = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_RECVERR, "udp6"
	}
	protocol := 0
	if proto != protoUDP {
		protocol, network = int(proto), "icmp"
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s := &hostSocket{file: os.NewFile(uintptr(fd), network), fd: fd, v6: v6, ttl: guestTTL, df: -1, maxSegment: maxDatagram}
	defer func() {
		if err != nil {
			s.file.Close()
		}
	}()
	if err := unix.SetsockoptInt(fd, level, recverr, 1); err != nil {
		return nil, os.NewSyscallError("setsockopt(IP_RECVERR)", err)
	}
	if v6 {
		if err := unix.SetsockoptInt(fd, level, unix.IPV6_V6ONLY, 1); err != nil {
			return nil, os.NewSyscallError("setsockopt(IPV6_V6ONLY)", err)
		}
	}
	if proto == protoUDP {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, udpBuf); err != nil {
			return nil, os.NewSyscallError("setsockopt(SO_RCVBUF)", err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, udpBuf); err != nil {
			return nil, os.NewSyscallError("setsockopt(SO_SNDBUF)", err)
		}
		dgram.Join(fd)
	}
	if s.raw, err = s.file.SyscallConn(); err != nil {
		return nil, err
	}
	if n.cfg.Control != nil {
		if err := n.cfg.Control(network, "", s.raw); err != nil {
			return nil, fmt.Errorf("control hook: %w", err)
		}
	}
	return s, nil
}

func (s *hostSocket) close() {
	s.mu.Lock()
	open := s.fd >= 0
	s.fd = -1
	s.mu.Unlock()
	if open {
		// Without locks: it waits until nobody is inside raw.
		_ = s.file.Close() // a datagram socket has nothing left to say
	}
}

// send sends a datagram, or a train of them, with the TTL and the don't-fragment
// bit of the guest's. It never blocks.
func (s *hostSocket) send(to netip.AddrPort, ttl uint8, df bool, segment int, pieces [][]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return os.ErrClosed
	}
	if segment > s.maxSegment {
		return errNoTrain
	}
	if err := s.prepare(int(ttl), df); err != nil {
		return err
	}
	if errno := dgram.Send(s.fd, to, 0, nil, segment, pieces); errno != 0 {
		if segment > 0 && dgram.Refuses(errno) {
			s.maxSegment = segment - 1
			return errNoTrain
		}
		return errno
	}
	return nil
}

// errNoTrain asks for the datagrams of a train one by one.
var errNoTrain = errors.New("the kernel does not take the datagrams together")

// prepare sets what differs from the last datagram. s.mu is held.
func (s *hostSocket) prepare(ttl int, df bool) error {
	level, optTTL, optMTU := unix.SOL_IP, unix.IP_TTL, unix.IP_MTU_DISCOVER
	if s.v6 {
		level, optTTL, optMTU = unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_MTU_DISCOVER
	}
	if ttl != s.ttl {
		if err := unix.SetsockoptInt(s.fd, level, optTTL, ttl); err != nil {
			return os.NewSyscallError("setsockopt(IP_TTL)", err)
		}
		s.ttl = ttl
	}
	want, mode := 0, unix.IP_PMTUDISC_DONT
	if df {
		want, mode = 1, unix.IP_PMTUDISC_DO
	}
	if want != s.df {
		if err := unix.SetsockoptInt(s.fd, level, optMTU, mode); err != nil {
			return os.NewSyscallError("setsockopt(IP_MTU_DISCOVER)", err)
		}
		s.df = want
	}
	return nil
}

// hostError is an entry of a socket's error queue.
type hostError struct {
	to       netip.AddrPort // the destination it is about
	offender netip.Addr     // who said so; invalid for the host itself
	what     unreachable
	errno    syscall.Errno
	icmp     bool   // what is from the wire, of the socket's family
	data     []byte // the start of what was sent, maybe nothing
}

// readError takes one entry from the error queue; false if it is empty.
func (s *hostSocket) readError(fd int) (hostError, bool) {
	var e hostError
	data, oob := make([]byte, 128), make([]byte, 512)
	n, oobn, _, from, err := unix.Recvmsg(fd, data, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if err != nil {
		return e, false
	}
	e.data = data[:n]
	switch sa := from.(type) {
	case *unix.SockaddrInet4:
		e.to = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		e.to = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return e, true
	}
	for _, m := range msgs {
		ours := m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_RECVERR ||
			m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		const size = int(unsafe.Sizeof(unix.SockExtendedErr{}))
		if !ours || len(m.Data) < size {
			continue
		}
		ee := (*unix.SockExtendedErr)(unsafe.Pointer(&m.Data[0]))
		e.errno = syscall.Errno(ee.Errno)
		e.what = unreachable{ee.Type, ee.Code, ee.Info}
		e.icmp = ee.Origin == unix.SO_EE_ORIGIN_ICMP || ee.Origin == unix.SO_EE_ORIGIN_ICMP6
		if e.icmp && len(m.Data) >= size+int(unsafe.Sizeof(unix.RawSockaddrInet6{})) || e.icmp && !s.v6 && len(m.Data) >= size+16 {
			var rsa unix.RawSockaddrInet6
			copy((*[unsafe.Sizeof(rsa)]byte)(unsafe.Pointer(&rsa))[:], m.Data[size:])
			e.offender = dgram.Sockaddr(&rsa).Addr()
		}
	}
	return e, true
}

// pendingError tells whether a send may have failed because of an earlier
// datagram.
func pendingError(err error) bool {
	for _, e := range []syscall.Errno{syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EMSGSIZE,
		syscall.EPROTO, syscall.ENOPROTOOPT, syscall.EACCES, syscall.EOPNOTSUPP} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
