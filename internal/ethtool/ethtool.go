// Package ethtool switches the offloads of network devices, as ethtool -K does, for
// tests: a guest may switch off what it likes.
package ethtool

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Modes of Offload.
const (
	All        = "all"
	NoSegments = "no-segments" // no TSO, no GSO
	None       = "none"        // and whole checksums
)

// Offload sets those of a device.
func Offload(device, mode string) error {
	on := map[bool]uint32{true: 1}
	segments, checksums := on[mode == All], on[mode != None]
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	for _, c := range []struct{ cmd, value uint32 }{ // struct ethtool_value
		{unix.ETHTOOL_STXCSUM, checksums}, {unix.ETHTOOL_SSG, checksums}, {unix.ETHTOOL_STSO, segments}, {unix.ETHTOOL_SGSO, segments},
	} {
		// struct ifreq with a pointer in place of ifr_data.
		req := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: unsafe.Pointer(&c)}
		copy(req.name[:unix.IFNAMSIZ-1], device)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
		if errno != 0 {
			return fmt.Errorf("%s: SIOCETHTOOL %#x: %w", device, c.cmd, errno)
		}
	}
	return nil
}
