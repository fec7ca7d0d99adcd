package netstack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Uplink is a device that leads to a segment outside: a TAP which an administrator
// has put into a bridge and given to the user, or a macvtap.
//
// The segment sees each member with its own MAC; a macvtap must thus be in
// passthru mode, or else it takes in only what is for its own address. There is no
// gateway, no NAT and no name server of ours. A member sends from its own MAC
// alone, from its IP address if it has a fixed one, never as a router or as a
// DHCP server; the switch answers for fixed addresses, and everything else that
// looks for an address crosses the uplink. Multicasts and broadcasts of each side
// are bounded by Limits.Flood; those from outside have one budget for all.
type Uplink struct {
	// File carries [virtio-net header | Ethernet frame].
	File *os.File
	// Name and MTU of the device.
	Name string
	MTU  int
}

// uplinkID names the port in logs.
const uplinkID = "uplink"

// OpenUplink opens a device by its name, or a macvtap by the path of its node
// (/dev/tap5). The user must be the owner of the one, or be allowed to open the
// other.
func OpenUplink(device string) (*Uplink, error) {
	fail := func(err error) (*Uplink, error) { return nil, fmt.Errorf("uplink %s: %w", device, err) }
	l, err := uplinkDevice(device)
	if err != nil {
		return fail(err)
	}
	a, node := l.Attrs(), tunDevice
	switch l.(type) {
	case *netlink.Tuntap:
	case *netlink.Macvtap:
		node = "/dev/tap" + strconv.Itoa(a.Index)
	default:
		return fail(fmt.Errorf("%w: it is a %s device, not a TAP or macvtap; as root: ip tuntap add dev tap0 mode tap user %d, and put it into a bridge",
			ErrInvalidConfig, l.Type(), os.Geteuid()))
	}
	if a.Flags&unix.IFF_UP == 0 {
		return fail(fmt.Errorf("%w: it is down; as root: ip link set %s up", ErrInvalidConfig, a.Name))
	}
	f, err := attachTap(node, a.Name)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fail(fmt.Errorf("it is not this user's (%w); as root: ip tuntap add dev %s mode tap user %d, or for a macvtap: chown %d %s",
			err, a.Name, os.Geteuid(), os.Geteuid(), node))
	case errors.Is(err, unix.EBUSY):
		return fail(fmt.Errorf("another process has it: %w", err))
	case err != nil:
		return fail(err)
	}
	return &Uplink{File: f, Name: a.Name, MTU: a.MTU}, nil
}

// uplinkDevice finds a device of this network namespace.
func uplinkDevice(device string) (netlink.Link, error) {
	index, isNode := strings.CutPrefix(filepath.Clean(device), "/dev/tap")
	if !isNode {
		return netlink.LinkByName(device)
	}
	n, err := strconv.Atoi(index)
	if err != nil {
		return nil, fmt.Errorf("%w: not the node of a macvtap, which is /dev/tap and a number", ErrInvalidConfig)
	}
	return netlink.LinkByIndex(n)
}

// UplinkName is the name of the device behind an open TAP or macvtap. It fails if
// UplinkFrom would.
func UplinkName(f *os.File) (name string, err error) {
	rc, err := f.SyscallConn() // Fd would make it blocking
	if err != nil {
		return "", fmt.Errorf("uplink: %w", err)
	}
	cerr := rc.Control(func(fd uintptr) {
		ifr, _ := unix.NewIfreq("") // an empty name is never too long
		if err = unix.IoctlIfreq(int(fd), unix.TUNGETIFF, ifr); err != nil {
			err = fmt.Errorf("%w: the descriptor is not that of a TAP or macvtap: %w", ErrInvalidConfig, os.NewSyscallError("TUNGETIFF", err))
			return
		}
		name = ifr.Name()
		const want = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
		if ifr.Uint16()&want != want {
			err = fmt.Errorf("%w: %s was not opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR", ErrInvalidConfig, name)
		}
	})
	if err = errors.Join(cerr, err); err != nil {
		return "", fmt.Errorf("uplink: %w", err)
	}
	return name, nil
}

// UplinkFrom makes an uplink of an open TAP or macvtap, which must have been
// opened with IFF_VNET_HDR. It takes the descriptor over when it succeeds.
func UplinkFrom(f *os.File) (*Uplink, error) {
	name, err := UplinkName(f)
	if err != nil {
		return nil, err
	}
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("uplink: %w", err)
	}
	u := &Uplink{File: f, Name: name, MTU: etherMTU}
	cerr := rc.Control(func(fd uintptr) {
		if err = os.NewSyscallError("fcntl O_NONBLOCK", unix.SetNonblock(int(fd), true)); err == nil {
			err = setTapOffloads(int(fd), name)
		}
	})
	if err = errors.Join(cerr, err); err != nil {
		return nil, fmt.Errorf("uplink: %w", err)
	}
	// It may be of another network namespace.
	if l, err := netlink.LinkByName(u.Name); err == nil {
		u.MTU = l.Attrs().MTU
	}
	return u, nil
}

// attachUplink starts to serve the uplink.
func (n *Network) attachUplink(u *Uplink) error {
	p := &Port{net: n, uplink: true, done: make(chan struct{}), cfg: PortConfig{ID: uplinkID, Name: u.Name, Link: u.File, Driver: DriverTap}}
	if err := p.open(); err != nil {
		return fmt.Errorf("uplink %s: %w", u.Name, err)
	}
	n.mu.Lock()
	t := n.members.Load().clone()
	t.uplink = p
	n.members.Store(t)
	n.mu.Unlock()
	p.start()
	if err := u.File.Close(); err != nil {
		n.log.Warn("close the original of the uplink's descriptor", "error", err)
	}
	return nil
}
