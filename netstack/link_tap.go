package netstack

import (
	"errors"
	"fmt"
	"os"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

const tunDevice = "/dev/net/tun"

// Offloads that the near end of a TAP takes: the guest's kernel may hand over
// frames with a partial checksum and super-segments of TCP, and since Linux 6.2
// also of UDP.
const (
	tapOffloads    = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	tapOffloadsUDP = unix.TUN_F_USO4 | unix.TUN_F_USO6
)

// tapQueue is how many frames a TAP holds until they are read. What comes then is lost,
// which a new connection feels: its SYN is sent again a second later. It is as many as
// there may be connection attempts in flight; the kernel's 500 are fewer.
const tapQueue = 2048

// probeTap tells whether the TUN device can be opened. The node may exist and
// still have no driver behind it (ENODEV, ENXIO).
func probeTap() error {
	f, err := os.OpenFile(tunDevice, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// createTap makes a persistent TAP and attaches to it again with the flags of
// the fast path, which water does not know. Persistent, because closing the
// last descriptor of another TAP takes 20 ms, wherever that happens; the
// device goes away with the namespace.
func createTap(cfg GuestConfig) (_ *GuestLink, err error) {
	dev, err := water.New(water.Config{
		DeviceType:             water.TAP,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: cfg.Name, Persist: true},
	})
	if err != nil {
		return nil, fmt.Errorf("create TAP %s: %w", cfg.Name, err)
	}
	// One queue has one descriptor: it must be free before the re-attach.
	if err := dev.Close(); err != nil {
		return nil, fmt.Errorf("close TAP %s: %w", cfg.Name, err)
	}

	f, err := attachTap(tunDevice, cfg.Name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := setCarrier(f, false); err != nil {
		return nil, err
	}
	return &GuestLink{File: f, Driver: DriverTap, HdrLen: vnetHdrLen, MTU: cfg.MTU}, nil
}

// attachTap opens the fast path of a TAP, or of the macvtap whose own device node
// is given.
func attachTap(node, name string) (_ *os.File, err error) {
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: node, Err: err}
	}
	f := os.NewFile(uintptr(fd), node)
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return nil, fmt.Errorf("attach to TAP %s: %w", name, os.NewSyscallError("TUNSETIFF", err))
	}
	return f, setTapOffloads(fd, name)
}

// setTapOffloads makes frames come with a virtio header, and in the form in which
// the kernel has them.
func setTapOffloads(fd int, name string) error {
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetHdrLen); err != nil {
		return fmt.Errorf("TAP %s: %w", name, os.NewSyscallError("TUNSETVNETHDRSZ", err))
	}
	// After TUNSETIFF: before it the kernel has no device to apply it to.
	err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tapOffloads|tapOffloadsUDP)
	if err == unix.EINVAL {
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tapOffloads)
	}
	if err != nil {
		return fmt.Errorf("TAP %s: %w", name, os.NewSyscallError("TUNSETOFFLOAD", err))
	}
	return nil
}

// setCarrier takes a TAP's carrier away before the interface is up, and gives it back
// after: then the kernel makes the link usable at once. It does the same for a link that
// had its carrier before only when nothing else on the machine has changed its state
// within a second, and before Linux 6.8 nobody can hurry it. Linux before 4.20 has no
// such call.
func setCarrier(tap *os.File, on bool) error {
	v := 0
	if on {
		v = 1
	}
	rc, err := tap.SyscallConn() // Fd would make it blocking
	if err != nil {
		return err
	}
	cerr := rc.Control(func(fd uintptr) { err = unix.IoctlSetPointerInt(int(fd), unix.TUNSETCARRIER, v) })
	if err == unix.EINVAL {
		err = nil
	}
	return errors.Join(cerr, os.NewSyscallError("TUNSETCARRIER", err))
}
