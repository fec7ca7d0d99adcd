package image

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/rootless-sbx/sbx/internal/rmtree"
	"golang.org/x/sys/unix"
)

// tree is the directory being filled. All its methods take paths relative to
// the root, as cleanName makes them, and work on descriptors only.
type tree struct {
	root int // O_PATH
	u    *unpacker
	// The directory used last: entries mostly come directory by directory.
	path string // free of symlinks, also of ones in lower layers
	fd   int    // -1: none
	// noOpenat2: the kernel (before 5.6) or a seccomp filter refuses openat2.
	noOpenat2 bool
}

const (
	dirFlags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	maxLinks = 40 // as the kernel
)

func newTree(dest string, u *unpacker) (*tree, error) {
	if err := unix.Mkdir(dest, 0o700); err != nil {
		return nil, &os.PathError{Op: "mkdir", Path: dest, Err: err}
	}
	fd, err := unix.Open(dest, dirFlags, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dest, Err: err}
	}
	t := &tree{root: fd, u: u, fd: -1, noOpenat2: u.job.noOpenat2}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fstat", err)
	}
	u.dirs[st.Ino] = &dirMeta{mode: 0o755}
	return t, nil
}

func (t *tree) close() {
	t.forget()
	unix.Close(t.root)
}

// forget drops the cached directory: what leads to it may have changed.
func (t *tree) forget() {
	if t.fd >= 0 {
		unix.Close(t.fd)
		t.fd = -1
	}
}

// stale says that the cached path may lead elsewhere from now on. The
// descriptor stays open: the caller is working in it.
func (t *tree) stale() { t.path = "\x00" }

// dir returns an O_PATH descriptor of a directory and its path without
// symlinks. What is missing is made. The descriptor belongs to the tree and is
// good until the next call.
func (t *tree) dir(path string) (fd int, real string, err error) {
	if path == "" {
		return t.root, "", nil
	}
	if t.fd >= 0 && t.path == path {
		return t.fd, path, nil
	}
	fd, real, err = t.open(path)
	if err != nil {
		return -1, "", err
	}
	t.forget()
	t.fd, t.path = fd, path
	if real != path {
		t.stale() // any entry may come to hide the link
	}
	return fd, real, nil
}

// open is dir for a descriptor that the caller closes.
func (t *tree) open(path string) (int, string, error) {
	if path == "" {
		fd, err := unix.FcntlInt(uintptr(t.root), unix.F_DUPFD_CLOEXEC, 0)
		return fd, "", err
	}
	// One system call for the common case; whatever stands in its way is
	// found, followed or made by the walk.
	if !t.noOpenat2 {
		fd, err := unix.Openat2(t.root, path, &unix.OpenHow{
			Flags:   dirFlags,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err == nil {
			return fd, path, nil
		}
		t.noOpenat2 = err == unix.ENOSYS || err == unix.EPERM
	}
	return t.walk(path)
}

// walk goes component by component. It follows symlinks as chroot(2) would make
// it: absolute ones start at the root, and ".." of the root is the root. What is
// missing it looks for in the layers below (unpack_implied.go), and makes when it
// has arrived: what a link has led away from is not needed.
func (t *tree) walk(path string) (fd int, real string, err error) {
	stack := []int{t.root} // -1: to be made
	var names []string
	pop := func() {
		if fd := stack[len(stack)-1]; fd >= 0 {
			unix.Close(fd)
		}
		stack = stack[:len(stack)-1]
		names = names[:len(names)-1]
	}
	defer func() {
		for len(stack) > 1 {
			pop()
		}
	}()
	todo := strings.Split(path, "/")
	links := 0
	for len(todo) > 0 {
		c := todo[0]
		todo = todo[1:]
		switch c {
		case "", ".":
			continue
		case "..":
			if len(stack) > 1 {
				pop()
			}
			continue
		}
		if len(names) >= t.u.limits.Depth {
			return -1, "", &LimitError{What: "Depth", Limit: int64(t.u.limits.Depth), Got: -1, Path: path}
		}
		top := stack[len(stack)-1]
		next, target, err := t.step(top, strings.Join(append(names, c), "/"), c)
		if err != nil {
			return -1, "", fmt.Errorf("%q: %w", path, err)
		}
		if target == "" {
			stack, names = append(stack, next), append(names, c)
			continue
		}
		if links++; links > maxLinks {
			return -1, "", bad(path, "more than %d symbolic links on the way", maxLinks)
		}
		if strings.HasPrefix(target, "/") {
			for len(stack) > 1 {
				pop()
			}
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	for i, fd := range stack {
		if fd >= 0 {
			continue
		}
		if stack[i], err = t.imply(stack[i-1], strings.Join(names[:i], "/"), names[i-1]); err != nil {
			return -1, "", err
		}
	}
	fd, err = unix.FcntlInt(uintptr(stack[len(stack)-1]), unix.F_DUPFD_CLOEXEC, 0)
	return fd, strings.Join(names, "/"), err
}

// step opens the directory name, or reads the symlink of that name, its own or a
// lower layer's. Neither: the directory is to be made. real is its path; dirfd -1
// is a directory that is to be made itself.
func (t *tree) step(dirfd int, real, name string) (fd int, target string, err error) {
	fd, err = -1, unix.ENOENT
	if dirfd >= 0 {
		fd, err = unix.Openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	if err == unix.ENOENT {
		target, err = t.u.missing(real)
		return -1, target, err
	}
	if err != nil {
		return -1, "", &os.PathError{Op: "open", Path: real, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, "", os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return fd, "", nil
	}
	defer unix.Close(fd)
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", buf)
		if err != nil {
			return -1, "", &os.PathError{Op: "readlink", Path: real, Err: err}
		}
		return -1, string(buf[:n]), nil
	case isWhiteout(&st):
		// "Remove what is below, then put a directory here."
		if err := unix.Unlinkat(dirfd, name, 0); err != nil {
			return -1, "", &os.PathError{Op: "unlink", Path: real, Err: err}
		}
		nfd, err := t.imply(dirfd, real, name)
		if err != nil {
			return -1, "", err
		}
		if err := t.u.opaqueAt(nfd, real, true); err != nil {
			unix.Close(nfd)
			return -1, "", err
		}
		return nfd, "", nil
	}
	return -1, "", bad(real, "an entry wants it as a directory, but it is none")
}

// imply makes a directory that the layer needs but does not list, or not yet.
func (t *tree) imply(dirfd int, real, name string) (int, error) {
	if err := t.u.count(real); err != nil {
		return -1, err
	}
	fd, ino, err := mkdirAt(dirfd, name, real)
	if err != nil {
		return -1, err
	}
	t.u.dirs[ino] = &dirMeta{path: real, mode: 0o755, implied: true}
	return fd, nil
}

// mkdirAt makes a directory, with mode 0700 until finish, and opens it.
func mkdirAt(dirfd int, name, real string) (fd int, ino uint64, err error) {
	if err := unix.Mkdirat(dirfd, name, 0o700); err != nil {
		return -1, 0, &os.PathError{Op: "mkdir", Path: real, Err: err}
	}
	fd, err = unix.Openat(dirfd, name, dirFlags, 0)
	if err != nil {
		return -1, 0, &os.PathError{Op: "open", Path: real, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, 0, os.NewSyscallError("fstat", err)
	}
	return fd, st.Ino, nil
}

// remove what lies at name in dirfd, directories with their content.
func (t *tree) remove(dirfd int, name string) error {
	err := rmtree.At(dirfd, name, func(ino uint64) {
		if m := t.u.dirs[ino]; m != nil {
			delete(t.u.hides, m.path) // the mark goes with the directory
			delete(t.u.dirs, ino)
		}
	})
	if err != nil {
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

// lstatAt looks at name; ok is false if it does not exist.
func lstatAt(dirfd int, name string) (st unix.Stat_t, ok bool, err error) {
	err = unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return st, false, nil
	}
	if err != nil {
		return st, false, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	return st, true, nil
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}
