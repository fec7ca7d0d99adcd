package fsoverlay

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"github.com/rootless-sbx/sbx/internal/inroot"
	"golang.org/x/sys/unix"
)

// maxHidden bounds the processes of a surrounding container that are hidden; each
// costs a mount.
const maxHidden = 512

// Inside another container that masks parts of its /proc or /sys the kernel
// refuses a new one (mount_too_revealing), and the sandbox gets the outer one. What
// it then could see and do there:
//
//   - /proc/PID of the outer processes. The kernel's ptrace rule protects memory,
//     environment, root and descriptors, since they are in another user namespace.
//     Command lines, mounts, sockets and status are open to all. And where root in
//     the sandbox has the user id of root outside, it owns files like
//     oom_score_adj and autogroup: hence read-only, but for pid 1's own directory.
//   - The numbers are those of the outer pid namespace: /proc/1 is not the pid 1
//     of the sandbox, and a program that looks itself up by getpid() would find
//     somebody else. Those of the processes that are there now are covered, so
//     that ps shows the sandbox's. It is not a boundary: later ones are seen.
//   - /sys/class/net shows the outer devices, which the sandbox does not have.

// hideOuter covers what a bind of the outer /proc or /sys shows too much of.
func (a *applier) hideOuter(target string) error {
	top, err := inroot.Open(a.root, target, inroot.Lookup{NoLinks: true})
	if err != nil {
		return err
	}
	defer unix.Close(top)
	if target != "/proc" {
		for _, rel := range []string{"class/net", "devices/virtual/net"} {
			if err := a.cover(top, rel); err != nil {
				return fmt.Errorf("hide %s/%s: %w", target, rel, err)
			}
		}
		return nil
	}
	self, err := inroot.ReadlinkAt(top, "self")
	if err != nil {
		return &fs.PathError{Op: "readlink", Path: "/proc/self", Err: err}
	}
	names, err := inroot.Names(top, ".")
	if err != nil {
		return err
	}
	hidden := 0
	for _, name := range names {
		if _, err := strconv.ParseUint(name, 10, 31); err != nil || name == self {
			continue
		}
		if hidden++; hidden > maxHidden {
			break
		}
		if err := a.cover(top, name); err != nil {
			return fmt.Errorf("hide process %s: %w", name, err)
		}
	}
	return a.ownProcess(top, self)
}

// cover puts an empty directory over rel, unless it is gone: processes end.
func (a *applier) cover(dir int, rel string) error {
	target, err := inroot.Open(dir, rel, inroot.Lookup{NoLinks: true})
	if err == nil {
		defer unix.Close(target)
		var tree int
		if tree, err = emptyDir(); err == nil {
			defer unix.Close(tree)
			err = a.finish(tree, target, 0, unix.MS_PRIVATE, true)
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// ownProcess gives pid 1 its own directory back as it was, to write for example its
// oom_score_adj.
func (a *applier) ownProcess(proc int, self string) error {
	target, err := inroot.Open(proc, self, inroot.Lookup{NoLinks: true})
	if err != nil {
		return err
	}
	defer unix.Close(target)
	source, err := unix.Openat(unix.AT_FDCWD, "/proc/"+self, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(source)
	tree, err := cloneTree(source, "", false)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return a.finish(tree, target, NoSuid|NoDev|NoExec, unix.MS_PRIVATE, true)
}

// emptyDir is a detached, empty, read-only directory.
func emptyDir() (int, error) {
	return newFS("tmpfs", ReadOnly|NoSuid|NoDev|NoExec, []string{"size=4k", "nr_inodes=2", "mode=0755"})
}
