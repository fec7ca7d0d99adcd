package fsoverlay

import (
	"errors"
	"fmt"
	"os"

	"github.com/rootless-sbx/sbx/internal/inroot"
	"golang.org/x/sys/unix"
)

// OpenConsole is OpenTerminal and mounts the slave on /dev/console, for a plan that
// was built with TTY.
func OpenConsole() (master, slave *os.File, err error) {
	if master, slave, err = OpenTerminal(); err != nil {
		return nil, nil, err
	}
	if err := MountConsole(slave); err != nil {
		return nil, nil, errors.Join(err, slave.Close(), master.Close())
	}
	return master, slave, nil
}

// OpenTerminal makes a terminal in the sandbox's own devpts. It runs in the
// sandbox's mount namespace after Apply. The master goes to the monitor, the slave
// is for a program; both are close-on-exec and the slave is nobody's controlling
// terminal yet.
func OpenTerminal() (master, slave *os.File, err error) {
	const step = "make a terminal"
	dev, err := unix.Open("/dev", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fail(step, "/dev", err)
	}
	defer unix.Close(dev)
	ptmx, err := inroot.Open(dev, "pts/ptmx", inroot.Lookup{NoLinks: true})
	if err != nil {
		return nil, nil, fail(step, "/dev/pts/ptmx", err)
	}
	defer unix.Close(ptmx)
	var st unix.Statfs_t
	if err := unix.Fstatfs(ptmx, &st); err != nil || st.Type != unix.DEVPTS_SUPER_MAGIC {
		return nil, nil, failf(CodeTarget, step, "/dev/pts/ptmx", "", "not on a devpts (type %#x, %v)", st.Type, err)
	}
	m, err := unix.Open(inroot.FdPath(ptmx), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fail(step, "/dev/pts/ptmx", err)
	}
	master = os.NewFile(uintptr(m), "console")
	defer func() {
		if err != nil {
			master.Close()
			master = nil
		}
	}()
	if err := unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, fail(step, "unlock", err)
	}
	// The slave by ioctl, not by a name that something may have been put on.
	s, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(m), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, nil, fail(step, "open the slave", errno)
	}
	return master, os.NewFile(s, "console"), nil
}

// MountConsole mounts the terminal slave on /dev/console. The slave must come
// from a devpts that is mounted in this namespace.
func MountConsole(slave *os.File) error {
	const step = "mount the console"
	var st unix.Stat_t
	if err := unix.Fstat(int(slave.Fd()), &st); err != nil {
		return fail(step, "", err)
	}
	// Unix98 slaves are character devices of majors 136 to 143.
	if m := unix.Major(st.Rdev); st.Mode&unix.S_IFMT != unix.S_IFCHR || m < 136 || m > 143 {
		return failf(CodeSource, step, slave.Name(), "", "not the slave of a terminal")
	}
	tree, err := cloneTree(int(slave.Fd()), "", false)
	if err != nil {
		return fail(step, slave.Name(), err)
	}
	defer unix.Close(tree)
	target, err := unix.Open("/dev/console", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(step, "/dev/console", err)
	}
	defer unix.Close(target)
	if err := attach(tree, target); err != nil {
		return fail(step, "/dev/console", fmt.Errorf("terminal: %w", err))
	}
	return nil
}
