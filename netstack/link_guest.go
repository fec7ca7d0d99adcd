package netstack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/rootless-sbx/sbx/internal/wire"
	"golang.org/x/sys/unix"
)

// Names of the link drivers.
const (
	DriverAuto   = "auto"
	DriverTap    = "tap"
	DriverPacket = "packet"
)

// Bounds of a link's MTU. The lower one is IPv4's smallest datagram that every
// host takes; the upper one is the largest a TAP accepts.
const (
	MinMTU     = 576
	MaxMTU     = 65521
	DefaultMTU = 65520
	// minMTU6 is what IPv6 needs of a link (RFC 8200, section 5). Below it a
	// link has no IPv6.
	minMTU6 = 1280
)

// CodeNoLink is the wire.Error code of SetupGuest where no driver works here.
const CodeNoLink = "no-link-driver"

// GuestConfig says which link SetupGuest makes.
type GuestConfig struct {
	// Driver is "tap", "packet" or "auto"; empty means auto: tap where
	// /dev/net/tun can be opened, else packet.
	Driver string
	// Name of the interface in the guest; empty means eth0.
	Name string
	// MAC of the interface. Required: the switch pins it.
	MAC net.HardwareAddr
	// Addrs are the guest's addresses with the length of the subnet's prefix.
	// IPv6 addresses are left out when the MTU is below 1280.
	Addrs []netip.Prefix
	// Gateways are the next hops of the default routes, at most one for each
	// family.
	Gateways []netip.Addr
	// Metric of the default routes: the lowest of several links is the way out. 0 is
	// the kernel's choice.
	Metric int
	// MTU of the interface; 0 means 65520.
	MTU int
	// Autoconf lets routers of the segment give it IPv6 addresses and routes.
	Autoconf bool
}

// GuestLink is the near end of a link, for Network.Attach.
type GuestLink struct {
	// File carries [virtio-net header | Ethernet frame] in each direction. It
	// is non-blocking, and it keeps the guest's network namespace alive.
	File *os.File
	// Driver that made it: tap or packet.
	Driver string
	// HdrLen is the length of the virtio-net header, 12 or 10.
	HdrLen int
	// MTU of the interface.
	MTU int
	// Reason says why this driver was chosen, and which settings the kernel
	// refused. Empty when everything is as asked for.
	Reason string
}

// SetupLoopback brings the loopback interface of the current network namespace
// up.
func SetupLoopback() error {
	h, err := newHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	return h.up("lo")
}

// RemoveGuest removes a link of a sandbox with its addresses and routes. It runs where
// SetupGuest does.
func RemoveGuest(name string) error {
	h, err := newHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkDel(l)
	}
	if err != nil {
		return wire.ToError("remove the link "+name, err)
	}
	return nil
}

// MoveGuest gives a link of a sandbox other addresses and default routes in place of
// those that gone had, and nothing else. It runs where SetupGuest does.
func MoveGuest(gone, cfg GuestConfig) error {
	h, err := newHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.move(gone, cfg); err != nil {
		return wire.ToError("give "+cfg.Name+" another address", err)
	}
	return nil
}

// SetupGuest makes the link of a sandbox. It runs in a process (or a locked
// thread) inside the sandbox's network namespace that has CAP_NET_ADMIN and
// CAP_SYS_ADMIN in the user namespace owning it. It sets the namespace's
// sysctls, makes the device, and gives it its addresses and routes. Errors are
// *wire.Error.
func SetupGuest(cfg GuestConfig) (*GuestLink, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, wire.ToError("set up the link", err)
	}
	notes := shorten(setNamespaceSysctls())

	link, err := createLink(cfg)
	if err != nil {
		return nil, wire.ToError("set up the link "+cfg.Name, err)
	}
	more, err := configureLink(cfg, link)
	if err != nil {
		link.File.Close()
		return nil, wire.ToError("configure "+cfg.Name, err)
	}
	notes = append(notes, more...)
	if err := awaitReady(cfg, link); err != nil {
		notes = append(notes, err.Error())
	}
	for _, n := range notes {
		if link.Reason != "" {
			link.Reason += "; "
		}
		link.Reason += n
	}
	return link, nil
}

func (cfg GuestConfig) complete() (GuestConfig, error) {
	if cfg.Name == "" {
		cfg.Name = "eth0"
	}
	if len(cfg.Name) >= unix.IFNAMSIZ {
		return cfg, fmt.Errorf("interface name %q is longer than %d bytes", cfg.Name, unix.IFNAMSIZ-1)
	}
	if cfg.MTU == 0 {
		cfg.MTU = DefaultMTU
	}
	if cfg.MTU < MinMTU || cfg.MTU > MaxMTU {
		return cfg, fmt.Errorf("MTU %d is out of range: %d to %d", cfg.MTU, MinMTU, MaxMTU)
	}
	if len(cfg.MAC) != 6 || cfg.MAC[0]&1 != 0 {
		return cfg, fmt.Errorf("%q is not the MAC address of a host", cfg.MAC)
	}
	if cfg.Driver == "" {
		cfg.Driver = DriverAuto
	}
	return cfg, nil
}

// createLink makes the device with the driver asked for, or with the best one.
func createLink(cfg GuestConfig) (*GuestLink, error) {
	switch cfg.Driver {
	case DriverTap:
		return createTap(cfg)
	case DriverPacket:
		return createPacket(cfg)
	case DriverAuto:
	default:
		return nil, fmt.Errorf("unknown link driver %q: use %s, %s or %s", cfg.Driver, DriverAuto, DriverTap, DriverPacket)
	}

	tapErr := probeTap()
	if tapErr == nil {
		link, err := createTap(cfg)
		if err == nil {
			return link, nil
		}
		tapErr = err
	}
	link, err := createPacket(cfg)
	if err != nil {
		errno := syscall.Errno(0)
		errors.As(tapErr, &errno)
		return nil, &wire.Error{
			Code: CodeNoLink, Path: tunDevice, Errno: errno,
			Msg: fmt.Sprintf("no link driver works here (tap: %v; packet: %v)", tapErr, err),
			Fix: "make " + tunDevice + " available (modprobe tun; in a container: --device " + tunDevice +
				"), or load the veth and af_packet modules, or use --network none",
		}
	}
	link.Reason = fmt.Sprintf("packet link, as tap does not work: %v", tapErr)
	return link, nil
}
