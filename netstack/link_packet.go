package netstack

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The packet link needs no device node. A veth pair takes the place of the TAP:
// one end is the guest's interface, the other one sits in a second network
// namespace of the same user namespace, where nobody lives but an AF_PACKET
// socket that reads and writes virtio-net headers. The socket alone keeps that
// namespace alive, so that the guest's root can neither see nor change it.

const (
	peerName = "sbx0"
	// packetRcvBuf is asked for; the kernel cuts it to net.core.rmem_max. The
	// default of 208 KiB drops thousands of super-segments under load.
	packetRcvBuf = 8 << 20
	packetSndBuf = 4 << 20
)

// createPacket makes the veth pair and the socket on its far end.
func createPacket(cfg GuestConfig) (*GuestLink, error) {
	far, err := newFarNamespace()
	if err != nil {
		return nil, err
	}
	defer far.close()

	h, err := newHandle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = cfg.Name, cfg.MTU, cfg.MAC
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerMTU = peerName, uint32(cfg.MTU)
	veth.PeerHardwareAddr = randomMAC()
	veth.PeerNamespace = netlink.NsFd(far.fd)
	if err := h.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("create veth pair %s: %w", cfg.Name, err)
	}

	var link *GuestLink
	err = far.do(func() error {
		link, err = openPacketPeer(cfg)
		return err
	})
	if err != nil {
		if derr := h.LinkDel(veth); derr != nil {
			err = errors.Join(err, fmt.Errorf("remove veth pair %s: %w", cfg.Name, derr))
		}
		return nil, err
	}
	return link, nil
}

// openPacketPeer brings the far end up without any protocol of its own and
// opens the socket on it.
func openPacketPeer(cfg GuestConfig) (_ *GuestLink, err error) {
	h, err := newHandle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	peer, err := h.LinkByName(peerName)
	if err != nil {
		return nil, fmt.Errorf("find veth peer: %w", err)
	}
	// The far namespace is empty: whatever its kernel answered or announced
	// would be a second host on the guest's cable.
	if err := h.LinkSetARPOff(peer); err != nil {
		return nil, fmt.Errorf("turn ARP off on the veth peer: %w", err)
	}
	const addrGenModeNone = 1
	if err := h.LinkSetIP6AddrGenMode(peer, addrGenModeNone); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, fmt.Errorf("turn IPv6 off on the veth peer: %w", err)
	}
	// The mode above already leaves the peer without an address. This one only
	// saves the kernel the work, and /proc may be read-only here.
	_, _ = writeSysctl("net/ipv6/conf/"+peerName+"/disable_ipv6", "1")
	if err := h.LinkSetUp(peer); err != nil {
		return nil, fmt.Errorf("bring the veth peer up: %w", err)
	}

	// Protocol 0: the socket must not receive before it is bound to the peer.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket(AF_PACKET)", err)
	}
	f := os.NewFile(uintptr(fd), "packet:"+cfg.Name)
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	hdrLen := vnetHdrLen
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR_SZ, hdrLen); err != nil {
		// Before Linux 6.4 the header always has ten bytes.
		hdrLen = vnetHdrLenOld
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			return nil, os.NewSyscallError("setsockopt(PACKET_VNET_HDR)", err)
		}
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return nil, os.NewSyscallError("setsockopt(PACKET_IGNORE_OUTGOING)", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, packetRcvBuf); err != nil {
		return nil, os.NewSyscallError("setsockopt(SO_RCVBUF)", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, packetSndBuf); err != nil {
		return nil, os.NewSyscallError("setsockopt(SO_SNDBUF)", err)
	}
	sa := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: peer.Attrs().Index}
	if err := unix.Bind(fd, sa); err != nil {
		return nil, os.NewSyscallError("bind(AF_PACKET)", err)
	}
	return &GuestLink{File: f, Driver: DriverPacket, HdrLen: hdrLen, MTU: cfg.MTU}, nil
}

// farNamespace is a network namespace that only a descriptor keeps alive.
type farNamespace struct{ fd int }

func newFarNamespace() (*farNamespace, error) {
	far := &farNamespace{fd: -1}
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare(CLONE_NEWNET)", err)
		}
		fd, err := currentNetNS()
		far.fd = fd
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make the far namespace of the packet link: %w", err)
	}
	return far, nil
}

// do runs fn on a thread inside the namespace.
func (n *farNamespace) do(fn func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return fn()
	})
}

func (n *farNamespace) close() { unix.Close(n.fd) }

// onOwnThread runs fn, in the caller's network namespace, on a thread whose
// namespace it may change. The thread is not used again: where it came from it
// may not be allowed to go back to, and the caller's namespace is the wrong place
// if that is a locked thread's own.
func onOwnThread(fn func() error) error {
	home, err := currentNetNS()
	if err != nil {
		return err
	}
	defer unix.Close(home)
	done := make(chan error, 1)
	go ownThread(home, fn, done)
	return <-done
}

func ownThread(home int, fn func() error, done chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// Not the main thread, whose namespace is the process' in /proc. It is
		// kept busy while another one is taken.
		inner := make(chan error, 1)
		go ownThread(home, fn, inner)
		done <- <-inner
		runtime.UnlockOSThread()
		return
	}
	err := unix.Setns(home, unix.CLONE_NEWNET)
	if err == nil {
		err = fn()
	}
	done <- err
}

// currentNetNS returns a descriptor of the calling thread's network namespace.
// It asks a socket and not /proc, which in init may belong to another pid
// namespace or be missing.
func currentNetNS() (int, error) {
	sock, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, os.NewSyscallError("socket(AF_NETLINK)", err)
	}
	defer unix.Close(sock)
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(sock), unix.SIOCGSKNS, 0)
	if errno != 0 {
		return -1, os.NewSyscallError("ioctl(SIOCGSKNS)", errno)
	}
	unix.CloseOnExec(int(fd))
	return int(fd), nil
}

// randomMAC returns a locally administered unicast address.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	rand.Read(mac) // never fails, as of Go 1.24
	mac[0] = mac[0]&^1 | 2
	return mac
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
