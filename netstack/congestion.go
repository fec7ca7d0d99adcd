package netstack

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// bbr paces what it sends: on a link that loses nothing, as the guest's and the
// loopback interface are, that costs a third of the throughput and as much CPU.
func paced(name string) bool { return strings.HasPrefix(name, "bbr") }

// unpaced are what is taken in its place, the best one first.
var unpaced = []string{"cubic", "reno"}

// withoutPacing moves a socket that will be connected over the loopback interface
// away from bbr. It must come before connect, since bbr's pacing outlasts bbr. A
// socket that must keep it works, too.
func withoutPacing(c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) {
		var cur string
		if cur, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil {
			err = os.NewSyscallError("getsockopt(TCP_CONGESTION)", err)
		}
		if err != nil || !paced(cur) {
			return
		}
		for _, want := range unpaced {
			serr := unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, want)
			switch {
			case serr == nil:
				return
			case errors.Is(serr, unix.EPERM), errors.Is(serr, unix.ENOENT):
				// Not in tcp_allowed_congestion_control, or not in the kernel.
			default:
				err = os.NewSyscallError("setsockopt(TCP_CONGESTION)", serr)
				return
			}
		}
	})
	return errors.Join(cerr, err)
}

// setCongestionControl moves the guest away from bbr, which a new namespace
// inherits from the host: paced sending costs a third on a link without loss.
func setCongestionControl() []string {
	const name = "net/ipv4/tcp_congestion_control"
	cur, err := readSysctl(name)
	if err != nil || !paced(cur) {
		return nil
	}
	allowed, err := readSysctl("net/ipv4/tcp_allowed_congestion_control")
	if err != nil {
		return []string{fmt.Sprintf("congestion control stays %s: %v", cur, err)}
	}
	for _, want := range unpaced {
		if slices.Contains(strings.Fields(allowed), want) {
			return setSysctls(name, want)
		}
	}
	return []string{fmt.Sprintf("congestion control stays %s: tcp_allowed_congestion_control has neither cubic nor reno", cur)}
}
