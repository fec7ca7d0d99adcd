package userns

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// OpenNetNS opens a network namespace by its path: /proc/PID/ns/net, or a file that
// it was bound to, as ip netns and unshare --net=FILE do.
func OpenNetNS(path string) (*os.File, error) {
	const step = "open the network namespace"
	// Whatever else lies there is not to be waited for.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		e := &Error{Kind: ErrNetNS, Step: step, Path: path, Errno: errnoOf(err)}
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
			e.Msg, e.Fix = "there is none: its process may have ended", "give the path of one that exists, as /proc/PID/ns/net"
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
			e.Msg, e.Fix = "it belongs to another user", "use one that you made yourself: unshare -Urn"
		}
		return nil, e
	}
	f := os.NewFile(uintptr(fd), path)
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err == nil && kind == unix.CLONE_NEWNET {
		return f, nil
	}
	f.Close()
	e := &Error{Kind: ErrNetNS, Step: step, Path: path, Msg: "it is a namespace of another kind", Fix: "give the path of a network namespace, as /proc/PID/ns/net"}
	if err != nil {
		e.Msg = "it is not a namespace"
	}
	return nil, e
}

// OwnerOf opens the user namespace that owns a network namespace, if it is one that
// this user has made and so may enter. A network namespace of this process's own user
// namespace, such as the host's, is root's.
func OwnerOf(netns *os.File) (*os.File, error) {
	fail := func(why, fix string, err error) (*os.File, error) {
		return nil, &Error{Kind: ErrNetNS, Step: "enter the network namespace", Path: netns.Name(), Errno: errnoOf(err), Msg: why, Fix: fix}
	}
	const foreign, make = "it belongs to root, and only root may enter it", "use one that you made yourself: unshare -Urn"
	fd, err := rawFd(netns)
	if err != nil {
		return nil, err
	}
	if same, err := sameFile(int(fd), "/proc/self/ns/net"); err != nil || same {
		return fail("it is the host's", "use --network host", err)
	}
	user, err := unix.IoctlRetInt(int(fd), unix.NS_GET_USERNS)
	if errors.Is(err, unix.EPERM) { // it is not below ours
		return fail(foreign, make, nil)
	}
	if err != nil {
		return fail("the user namespace that owns it cannot be found", "", err)
	}
	unix.CloseOnExec(user)
	f := os.NewFile(uintptr(user), "user namespace of "+netns.Name())
	if same, err := sameFile(user, "/proc/self/ns/user"); err != nil || same {
		f.Close()
		return fail(foreign, make, err)
	}
	uid, err := unix.IoctlGetUint32(user, unix.NS_GET_OWNER_UID)
	if err != nil || int(uid) != os.Geteuid() {
		f.Close()
		return fail(fmt.Sprintf("it belongs to user %d", uid), make, err)
	}
	return f, nil
}

// InUserNS says whether a descriptor refers to the user namespace of this process.
func InUserNS(ns *os.File) (bool, error) {
	fd, err := rawFd(ns)
	if err != nil {
		return false, err
	}
	return sameFile(int(fd), "/proc/self/ns/user")
}

func sameFile(fd int, path string) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Fstat(fd, &a); err != nil {
		return false, os.NewSyscallError("fstat", err)
	}
	if err := unix.Stat(path, &b); err != nil {
		return false, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return a.Dev == b.Dev && a.Ino == b.Ino, nil
}
