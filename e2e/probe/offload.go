package probe

import (
	"fmt"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// offload does what ethtool -K does to every device but the loopback: "all",
// "no-segments" (no TSO, no GSO), or "none" (and whole checksums).
func offload(args []string) error {
	on := map[bool]uint32{true: 1}
	segments, checksums := on[args[0] == "all"], on[args[0] != "none"]
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	devices, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, d := range devices {
		if d.Flags&net.FlagLoopback != 0 {
			continue
		}
		for _, c := range [][2]uint32{
			{unix.ETHTOOL_STXCSUM, checksums}, {unix.ETHTOOL_SSG, checksums}, {unix.ETHTOOL_STSO, segments}, {unix.ETHTOOL_SGSO, segments},
		} {
			if err := setEthtool(fd, d.Name, c); err != nil {
				return fmt.Errorf("%s: SIOCETHTOOL %#x: %w", d.Name, c[0], err)
			}
		}
	}
	return nil
}

// setEthtool passes a struct ethtool_value in a struct ifreq.
func setEthtool(fd int, name string, value [2]uint32) error {
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(req.name[:], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	if errno != 0 {
		return errno
	}
	return nil
}
