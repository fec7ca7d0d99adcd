package probe

import (
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"

	"golang.org/x/sys/unix"
)

// Spoiling is something that can be done in a directory, with the words of allow= that it
// needs. There are a file, a program and an empty directory in it.
type Spoiling struct {
	Needs []string
	do    func(dir string) error
}

func needs(do func(dir string) error, words ...string) Spoiling { return Spoiling{words, do} }

// Spoil is all of it, each by the name of the directory below the mount where it is tried.
var Spoil = map[string]Spoiling{
	"read":        needs(func(d string) error { return readSome(d + "/file") }, "read"),
	"append":      needs(func(d string) error { return writeTo(d+"/file", unix.O_APPEND) }, "write"),
	"truncate":    needs(func(d string) error { return unix.Truncate(d+"/file", 1) }, "write"),
	"cut":         needs(func(d string) error { return writeTo(d+"/file", unix.O_TRUNC) }, "write"),
	"create":      needs(func(d string) error { return writeTo(d+"/new", unix.O_CREAT|unix.O_EXCL) }, "create", "write"),
	"touch":       needs(func(d string) error { return unix.Mknod(d+"/new", unix.S_IFREG|0o644, 0) }, "create"),
	"name":        needs(nameIt, "create", "write"),
	"link":        needs(func(d string) error { return unix.Link(d+"/file", d+"/new") }, "create"),
	"link-across": needs(func(d string) error { return unix.Link(d+"/file", d+"/dir/new") }, "create", "remove"),
	"mkdir":       needs(func(d string) error { return unix.Mkdir(d+"/new", 0o755) }, "mkdir"),
	"unlink":      needs(func(d string) error { return unix.Unlink(d + "/file") }, "remove"),
	"rmdir":       needs(func(d string) error { return unix.Rmdir(d + "/dir") }, "remove"),
	"rename":      needs(func(d string) error { return unix.Rename(d+"/file", d+"/new") }, "create", "remove"),
	"rename-dir":  needs(func(d string) error { return unix.Rename(d+"/dir", d+"/new") }, "mkdir", "remove"),
	"replace":     needs(func(d string) error { return unix.Rename(d+"/program", d+"/file") }, "create", "remove"),
	"exchange": needs(func(d string) error {
		return unix.Renameat2(unix.AT_FDCWD, d+"/file", unix.AT_FDCWD, d+"/dir", unix.RENAME_EXCHANGE)
	}, "create", "mkdir", "remove"),
	"move-across": needs(func(d string) error { return unix.Rename(d+"/file", d+"/dir/new") }, "create", "remove"),
	"symlink":     needs(func(d string) error { return unix.Symlink("/etc/passwd", d+"/new") }, "symlink"),
	"fifo":        needs(func(d string) error { return unix.Mkfifo(d+"/new", 0o644) }, "special"),
	"socket":      needs(listenIn, "special"),
	"exec":        needs(func(d string) error { return exec.Command(d + "/program").Run() }, "exec", "read"),

	// The same files by other names.
	"by-fd":   needs(unlinkByFd, "remove"),
	"by-root": needs(func(d string) error { return unix.Unlink("/proc/thread-self/root" + d + "/file") }, "remove"),
	"by-cwd":  needs(unlinkByCwd, "remove"),
}

func writeTo(file string, flags int) error {
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC|flags, 0o644)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("spoilt"))
	return err
}

// nameIt gives a name to a file that was made without.
func nameIt(dir string) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, dir+"/new", unix.AT_SYMLINK_FOLLOW)
}

func listenIn(dir string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: dir + "/new"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	return l.Close()
}

func unlinkByFd(dir string) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Unlink(fmt.Sprintf("/proc/self/fd/%d/file", fd))
}

func unlinkByCwd(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	return unix.Unlink("/proc/self/cwd/file")
}

// spoil tries all of it below a directory, or what is named, and prints a line for each.
func spoil(args []string) error {
	names := args[1:]
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(Spoil))
	}
	for _, n := range names {
		fmt.Println(n, callResult(Spoil[n].do(args[0]+"/"+n)))
	}
	return nil
}
