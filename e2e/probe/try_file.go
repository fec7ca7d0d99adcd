package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mountAttempts change what is mounted where.
var mountAttempts = map[string]attempt{
	"mount":   plain(func() error { return unix.Mount("none", "/tmp", "tmpfs", 0, "") }),
	"bind":    plain(func() error { return unix.Mount("/", "/tmp", "", unix.MS_BIND|unix.MS_REC, "") }),
	"remount": func(a []string) error { return unix.Mount("", a[0], "", unix.MS_REMOUNT|unix.MS_BIND, "") },
	"umount":  func(a []string) error { return unix.Unmount(a[0], unix.MNT_DETACH) },
	"fsopen":  plain(func() error { return closing(unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)) }),
	"open_tree": plain(func() error {
		return closing(unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC))
	}),
	"setattr": func(a []string) error {
		return unix.MountSetattr(unix.AT_FDCWD, a[0], unix.AT_RECURSIVE, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NOEXEC})
	},
	"overlay":    overlay,
	"pivot_root": plain(pivot),
	"mount_proc": plain(func() error { return unix.Mount("proc", "/tmp", "proc", 0, "") }),
	"mount_disk": func(a []string) error { return unix.Mount(a[0], "/tmp", "ext4", unix.MS_RDONLY, "") },
	"cgroup_v1":  plain(func() error { return unix.Mount("cgroup", "/tmp", "cgroup", 0, "memory") }),
	"release_agent": plain(func() error {
		if err := unix.Mount("cgroup", "/tmp", "cgroup", 0, "none,name=sbx"); err != nil {
			return err
		}
		return os.WriteFile("/tmp/release_agent", []byte("/tmp/agent"), 0)
	}),
	"nested_proc": plain(nestedProc),
	"chroot":      chroot,
}

// overlay has the kernel work in a directory, for a file system that nobody can see: it
// makes a directory there, and empties one that is there.
func overlay(args []string) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	for k, v := range map[string]string{"lowerdir": "/bin", "upperdir": args[0] + "/upper", "workdir": args[0] + "/work"} {
		if err := unix.FsconfigSetString(fs, k, v); err != nil {
			return err
		}
	}
	if err := unix.FsconfigSetFlag(fs, "userxattr"); err != nil {
		return err
	}
	return unix.FsconfigCreate(fs)
}

func closing(fd int, err error) error {
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func pivot() error {
	if err := os.MkdirAll("/tmp/new", 0o755); err != nil {
		return err
	}
	return unix.PivotRoot("/tmp/new", "/tmp/new")
}

// nestedProc is root of new namespaces, and wants a /proc there without masks.
func nestedProc() error {
	return inNamespaces([]string{"unshare", "-Urmpf"}, "mount_proc")
}

// inNamespaces runs another attempt below a command.
func inNamespaces(command []string, args ...string) error {
	out, err := runProbe(command, append([]string{"try"}, args...)...)
	if err != nil {
		return err
	}
	return namedErrno(out)
}

// chroot is the classic way out of a chroot: a descriptor of a directory above it.
// It wants the file args[0].
func chroot(args []string) error {
	up, err := unix.Open("/", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := os.MkdirAll("/tmp/jail", 0o755); err != nil {
		return err
	}
	if err := errors.Join(unix.Chroot("/tmp/jail"), unix.Fchdir(up)); err != nil {
		return err
	}
	for range 64 {
		if err := unix.Chdir(".."); err != nil {
			return err
		}
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return readSome(args[0])
}

// fileAttempts want files that are not the sandbox's.
var fileAttempts = map[string]attempt{
	"sysrq":  plain(func() error { return openOnly("/proc/sysrq-trigger", unix.O_WRONLY) }),
	"kcore":  plain(func() error { return readSome("/proc/kcore") }),
	"sysctl": plain(func() error { return openOnly("/proc/sys/kernel/core_pattern", unix.O_WRONLY) }),
	"sysfs":  plain(func() error { return openOnly("/sys/kernel/uevent_helper", unix.O_WRONLY) }),
	"write":  func(a []string) error { return openOnly(a[0], unix.O_WRONLY) },
	"create": func(a []string) error {
		return closing(unix.Open(a[0], unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o644))
	},
	"rename":   func(a []string) error { return unix.Rename(a[0], a[1]) },
	"read":     func(a []string) error { return readSome(a[0]) },
	"list":     list,
	"mknod":    func(a []string) error { return mknod(append(a, "1", "3")[:2]) },
	"magic":    magicLinks,
	"handle":   byHandle,
	"leaks":    plain(leaks),
	"exe":      overwriteExe,
	"swap":     swap,
	"environ":  environ,
	"tiocsti":  plain(pushInput),
	"stealtty": plain(func() error { return unix.IoctlSetInt(1, unix.TIOCSCTTY, 1) }),
	"tioclinux": plain(func() error {
		b := []byte{2, 0}
		return errnoOf(unix.Syscall(unix.SYS_IOCTL, 1, unix.TIOCLINUX, uintptrOf(b)))
	}),
	"ttydisc": plain(func() error { return unix.IoctlSetPointerInt(1, unix.TIOCSETD, 3) }),
}

func list(args []string) error {
	entries, err := os.ReadDir(args[0])
	if err == nil && len(entries) == 0 {
		return unix.ENODATA
	}
	return err
}

// mknod makes a character device and opens it.
func mknod(args []string) error {
	var major, minor uint32
	if _, err := fmt.Sscan(args[0]+" "+args[1], &major, &minor); err != nil {
		return err
	}
	const file = "/tmp/probe-device"
	if err := unix.Mknod(file, unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor))); err != nil {
		return err
	}
	defer os.Remove(file)
	return openOnly(file, unix.O_RDONLY)
}

// magicLinks looks for a file of the host behind each link of /proc that leads
// somewhere else than its name says.
func magicLinks(args []string) error {
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return err
	}
	for _, name := range []string{"cwd", "root", "exe"} {
		more, err := filepath.Glob("/proc/[0-9]*/" + name)
		if err != nil {
			return err
		}
		links = append(links, more...)
	}
	for _, l := range links {
		for _, up := range []string{"", "/../../../../../../../.."} {
			if readSome(l+up+args[0]) == nil {
				return nil
			}
		}
	}
	return unix.ENOENT
}

// byHandle asks the file system of a directory that is the host's for its root
// directory, whose inode on ext4 is 2, by a handle that nobody gave it.
func byHandle(args []string) error {
	dir, err := unix.Open(args[0], unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	raw := binary.NativeEndian.AppendUint32(nil, 2)
	raw = binary.NativeEndian.AppendUint32(raw, 0)
	return closing(unix.OpenByHandleAt(dir, unix.NewFileHandle(1, raw), unix.O_RDONLY|unix.O_CLOEXEC))
}

// leaks wants an open descriptor that is none of the standard streams.
func leaks() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		var fd int
		if _, err := fmt.Sscan(e.Name(), &fd); err != nil {
			return err
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && fd > 2 && flags&unix.FD_CLOEXEC == 0 {
			return nil
		}
	}
	return unix.EBADF
}

// overwriteExe waits for another process with the file of the runtime, which is any
// that is not in /bin, holds on to the file, and wants to write to it or, as long as
// it is executed, to change its mode. It prints "waiting" and "holding".
func overwriteExe([]string) error {
	fmt.Println("waiting")
	own, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	held := -1
	for end := time.Now().Add(20 * time.Second); held < 0; {
		if time.Now().After(end) {
			return unix.ETIMEDOUT
		}
		links, err := filepath.Glob("/proc/[0-9]*/exe")
		if err != nil {
			return err
		}
		for _, l := range links {
			name, err := os.Readlink(l)
			if err != nil || name == own || strings.HasPrefix(name, "/bin/") {
				continue
			}
			if fd, err := unix.Open(l, unix.O_PATH|unix.O_CLOEXEC, 0); err == nil {
				held = fd
				break
			}
		}
	}
	fmt.Println("holding")
	file := fmt.Sprintf("/proc/self/fd/%d", held)
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == unix.ETXTBSY { // a question of time, then
		return os.Chmod(file, 0o777)
	}
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, []byte("overwritten"))
	return errors.Join(err, unix.Close(fd))
}

// swap makes name, in a directory that others mount from, a directory and a link to
// a target of the host in turns, until it is killed.
func swap(args []string) error {
	name, target := args[0], args[1]
	if err := errors.Join(os.Mkdir(name, 0o777), os.Symlink(target, name+".link")); err != nil {
		return err
	}
	fmt.Println("swapping")
	for {
		if err := unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, name+".link", unix.RENAME_EXCHANGE); err != nil {
			return err
		}
	}
}

// environ looks for a secret in the environment of every process there is.
func environ(args []string) error {
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return err
	}
	if slices.ContainsFunc(files, func(f string) bool {
		f2, err := os.Open(f)
		if err != nil {
			return false
		}
		defer f2.Close()
		b, err := io.ReadAll(f2)
		return err == nil && bytes.Contains(b, []byte(args[0]))
	}) {
		return nil
	}
	return unix.ENOENT
}

// pushInput puts a command into the input of the terminal that its output goes to.
func pushInput() error {
	for _, c := range []byte("echo pushed\n") {
		b := []byte{c}
		if err := errnoOf(unix.Syscall(unix.SYS_IOCTL, 1, unix.TIOCSTI, uintptrOf(b))); err != nil {
			return err
		}
	}
	return nil
}
