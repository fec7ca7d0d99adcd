// Package inroot opens paths below a directory as if that were "/", whatever links
// are on the way and whoever moves them meanwhile. It is for trees that somebody
// hostile has filled: links, also absolute ones and "..", never lead out.
package inroot

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind is what to make where a looked-up path ends in nothing.
type Kind int

// What Open makes.
const (
	Nothing Kind = iota
	Dir
	File
)

// Limits of a walk.
const (
	MaxLinks = 40  // as the kernel
	MaxDepth = 256 // descriptors held
)

// Lookup says how Open treats what it finds.
type Lookup struct {
	// Create makes the last component, and any missing directory before it.
	Create Kind
	// NoLinks refuses a path that leads through a symbolic link (ELOOP).
	NoLinks bool
}

// Open opens path below the directory root as O_PATH. Links, also absolute
// ones and "..", are resolved as if root were "/", so the result is always
// inside. The last component is followed too. Mounts are crossed.
func Open(root int, path string, l Lookup) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	if l.NoLinks {
		how.Resolve |= unix.RESOLVE_NO_SYMLINKS
	}
	rel := strings.TrimLeft(path, "/")
	if rel == "" {
		rel = "."
	}
	for range 16 {
		fd, err := unix.Openat2(root, rel, &how)
		switch {
		case err == nil:
			return fd, nil
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
			continue // a rename elsewhere raced with the ".." check
		case errors.Is(err, unix.ENOENT) && l.Create == Nothing:
			return -1, err
		case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EACCES):
			return -1, err
		}
		break
	}
	// Something has to be made, or the kernel (before 5.6) or a seccomp filter
	// above us does not know openat2.
	return walk(root, path, l)
}

// walk is Open without openat2. It never asks the kernel to resolve more
// than one name and keeps the directories it came through on a stack, so ".."
// cannot leave root whatever moves meanwhile.
func walk(root int, path string, l Lookup) (int, error) {
	var stack []int
	defer func() {
		for _, fd := range stack {
			unix.Close(fd)
		}
	}()
	popAll := func() {
		for _, fd := range stack {
			unix.Close(fd)
		}
		stack = stack[:0]
	}
	todo := Split(path)
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		if name == ".." {
			if n := len(stack); n > 0 {
				unix.Close(stack[n-1])
				stack = stack[:n-1]
			}
			continue
		}
		dir := root
		if n := len(stack); n > 0 {
			dir = stack[n-1]
		}
		fd, err := step(dir, name, l, len(todo) == 0)
		if err != nil {
			return -1, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			return -1, err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			target, err := ReadlinkFd(fd)
			if onProc(fd) {
				err = unix.ELOOP // may be one that jumps, like /proc/1/root
			}
			unix.Close(fd)
			if err != nil {
				return -1, err
			}
			if links++; l.NoLinks || links > MaxLinks {
				return -1, unix.ELOOP
			}
			if strings.HasPrefix(target, "/") {
				popAll()
			}
			rest := todo
			todo = append(Split(target), rest...)
			if len(todo) > 2*MaxDepth {
				return -1, unix.ENAMETOOLONG
			}
			continue
		}
		stack = append(stack, fd)
		if len(todo) > 0 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return -1, unix.ENOTDIR
		}
		if len(stack) > MaxDepth {
			return -1, unix.ENAMETOOLONG
		}
	}
	if n := len(stack); n > 0 {
		fd := stack[n-1]
		stack = stack[:n-1]
		return fd, nil
	}
	return unix.Openat(root, ".", unix.O_PATH|unix.O_CLOEXEC, 0)
}

func onProc(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) != nil || st.Type == unix.PROC_SUPER_MAGIC
}

// step opens one name, making it if it is missing and that was asked for.
func step(dir int, name string, l Lookup, last bool) (int, error) {
	for range 16 {
		fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil || !errors.Is(err, unix.ENOENT) || l.Create == Nothing {
			return fd, err
		}
		if last && l.Create == File {
			var f int
			f, err = unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
			if err == nil {
				err = unix.Fchmod(f, 0o644) // whatever the umask
				unix.Close(f)
			}
		} else if err = unix.Mkdirat(dir, name, 0o755); err == nil {
			err = ChmodDir(dir, name, 0o755)
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return -1, err
		}
	}
	return -1, unix.EAGAIN // somebody removes what we make
}

// ChmodDir sets the mode of a directory that was just made, without following a
// link that took its place.
func ChmodDir(dir int, name string, mode uint32) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fchmod(fd, mode)
}

// Split cuts a path into its names; "" and "." are left out, ".." is kept.
func Split(p string) []string {
	var out []string
	for _, s := range strings.Split(p, "/") {
		if s != "" && s != "." {
			out = append(out, s)
		}
	}
	return out
}

// ReadlinkFd returns the text of the link that an O_PATH|O_NOFOLLOW descriptor
// refers to.
func ReadlinkFd(fd int) (string, error) { return ReadlinkAt(fd, "") }

// ReadlinkAt returns the text of the link name in dir.
func ReadlinkAt(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	if n == len(buf) {
		return "", unix.ENAMETOOLONG
	}
	if n == 0 {
		return "", unix.ENOENT
	}
	return string(buf[:n]), nil
}

// FdPath is a path to what fd refers to, for calls that take no descriptor.
func FdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// Mode is the type and mode of what fd refers to.
func Mode(fd int) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	return st.Mode, nil
}

// IsDir says whether fd refers to a directory.
func IsDir(fd int) (bool, error) {
	m, err := Mode(fd)
	return m&unix.S_IFMT == unix.S_IFDIR, err
}

// OpenDir opens a directory of ours, by a path that is trusted, as O_PATH.
func OpenDir(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// Names lists the directory dirfd (not O_PATH); it does not move the offset of
// other descriptors.
func Names(dir int, rel string) ([]string, error) {
	fd, err := unix.Openat(dir, rel, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), rel)
	defer f.Close()
	return f.Readdirnames(-1)
}
