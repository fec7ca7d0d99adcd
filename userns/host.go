package userns

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"
)

// host is what the calling process may do and which ids exist for it. Tests make
// their own.
type host struct {
	uid, gid   int
	effective  uint64
	noNewPrivs bool
	bounding   func(uint) bool
	uids, gids []span // the ids that exist in this user namespace
	nsswitch   string
	userName   func(int) string
}

func thisHost() (*host, error) {
	h := &host{uid: os.Geteuid(), gid: os.Getegid(), nsswitch: "/etc/nsswitch.conf", userName: userName}
	var err error
	if h.effective, _, err = ownCaps(); err != nil {
		return nil, err
	}
	if v, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil {
		h.noNewPrivs = v == 1
	}
	h.bounding = func(c uint) bool {
		v, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		return err == nil && v == 1
	}
	if h.uids, err = readOffered("/proc/self/uid_map"); err != nil {
		return nil, err
	}
	if h.gids, err = readOffered("/proc/self/gid_map"); err != nil {
		return nil, err
	}
	return h, nil
}

// direct says that this process may write any map that consists of ids it has.
func (h *host) direct() bool {
	need := uint64(1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID)
	return h.effective&need == need
}

// ownCaps returns the effective and the permitted set of the calling thread.
func ownCaps() (effective, permitted uint64, err error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return 0, 0, os.NewSyscallError("capget", err)
	}
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective),
		uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted), nil
}

// ambientCaps lists what the child raises: everything the kernel knows in a new
// user namespace, otherwise what this process has itself.
func ambientCaps(newUser bool) ([]uintptr, error) {
	last, err := capability.LastCap()
	if err != nil {
		return nil, fmt.Errorf("find the last capability: %w", err)
	}
	have := ^uint64(0)
	if !newUser {
		if _, have, err = ownCaps(); err != nil {
			return nil, err
		}
	}
	var l []uintptr
	for c := uintptr(0); c <= uintptr(last); c++ {
		if have&(1<<c) != 0 {
			l = append(l, c)
		}
	}
	return l, nil
}

// readOffered returns the ids that exist in the user namespace whose map this is.
func readOffered(path string) ([]span, error) {
	m, err := readMap(path)
	var l []span
	for _, e := range m {
		l = append(l, span{uint64(e.ContainerID), min(uint64(e.ContainerID)+uint64(e.Size), noID)})
	}
	return l, err
}

// readMap reads a map as the kernel shows it.
func readMap(path string) ([]IDMap, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var l []IDMap
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		var e IDMap
		if _, err := fmt.Sscan(strings.TrimSpace(sc.Text()), &e.ContainerID, &e.HostID, &e.Size); err != nil {
			return nil, fmt.Errorf("read %s: line %q: %w", path, sc.Text(), err)
		}
		l = append(l, e)
	}
	return l, sc.Err()
}

func errnoOf(err error) syscall.Errno {
	var e syscall.Errno
	errors.As(err, &e)
	return e
}
