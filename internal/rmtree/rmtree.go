// Package rmtree removes directory trees that somebody hostile has filled.
//
// It follows no link, copes with any depth and with modes that forbid reading or
// writing, and needs a bounded number of descriptors. It must run where the owners
// of the files are mapped. What does not exist is removed.
package rmtree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// maxDepth is how deep a removal descends before it moves a directory up to
	// the top of the tree: it holds no more descriptors than twice that, whatever
	// has been nested.
	maxDepth  = 48
	nameBatch = 512 // names read at a time
)

// Remove removes the file or directory path with all below it.
func Remove(path string) error {
	parent, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err == nil {
		err = At(parent, filepath.Base(path), nil)
		unix.Close(parent)
	}
	if err != nil {
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
	return nil
}

// At removes name in the directory dirfd with all below it. seen, if not nil, is
// told the inode of every directory that is removed.
func At(dirfd int, name string, seen func(ino uint64)) error {
	r := &remover{seen: seen}
	done, err := r.simple(dirfd, name)
	if done || err != nil {
		return err
	}
	if r.top, err = openToEmpty(dirfd, name); err != nil {
		return err
	}
	defer unix.Close(r.top)
	if err := r.empty(r.top, 0); err != nil {
		return err
	}
	return r.rmdir(dirfd, name)
}

// Empty removes what is in the directory path and leaves it.
func Empty(path string) error {
	top, err := openToEmpty(unix.AT_FDCWD, path)
	if err == nil {
		err = (&remover{top: top}).empty(top, 0)
		unix.Close(top)
	}
	if err != nil {
		return &fs.PathError{Op: "empty", Path: path, Err: err}
	}
	return nil
}

type remover struct {
	top   int
	moved int // counts the names given to moved directories
	seen  func(ino uint64)
}

// empty removes what is in dir until a pass finds nothing.
func (r *remover) empty(dir, depth int) error {
	for {
		n, err := r.pass(dir, depth)
		if err != nil || n == 0 {
			return err
		}
	}
}

// pass reads the directory once and returns how many names it found.
func (r *remover) pass(dir, depth int) (int, error) {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	d := os.NewFile(uintptr(fd), ".")
	defer d.Close()
	total := 0
	for {
		names, err := d.Readdirnames(nameBatch)
		for _, name := range names {
			if err := r.remove(dir, name, depth); err != nil {
				return total, err
			}
		}
		total += len(names)
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func (r *remover) remove(dir int, name string, depth int) error {
	done, err := r.simple(dir, name)
	if done || err != nil {
		return err
	}
	if depth >= maxDepth {
		return r.moveUp(dir, name)
	}
	sub, err := openToEmpty(dir, name)
	if err != nil {
		return err
	}
	err = r.empty(sub, depth+1)
	unix.Close(sub)
	if err != nil {
		return err
	}
	return r.rmdir(dir, name)
}

// moveUp puts a deep directory into the top one, where the pass that runs there
// finds it again.
func (r *remover) moveUp(dir int, name string) error {
	for {
		r.moved++
		to := fmt.Sprintf(".sbx-removed-%d", r.moved)
		err := unix.Renameat2(dir, name, r.top, to, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EACCES) {
			// Moving a directory writes its "..".
			if sub, oerr := openToEmpty(dir, name); oerr == nil {
				unix.Close(sub)
				err = unix.Renameat2(dir, name, r.top, to, unix.RENAME_NOREPLACE)
			}
		}
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
}

// simple removes anything but a directory that is not empty; done says that
// nothing is left of name.
func (r *remover) simple(dir int, name string) (done bool, err error) {
	err = unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return true, nil
	}
	rerr := r.rmdir(dir, name)
	switch {
	case rerr == nil:
		return true, nil
	case errors.Is(rerr, unix.ENOTEMPTY) || errors.Is(rerr, unix.EEXIST):
		return false, nil
	case errors.Is(rerr, unix.ENOTDIR):
		return false, fmt.Errorf("%s: %w", name, err)
	}
	return false, rerr
}

// rmdir removes an empty directory.
func (r *remover) rmdir(dir int, name string) error {
	var st unix.Stat_t
	var serr error
	if r.seen != nil {
		serr = unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return fmt.Errorf("%s: %w", name, err)
	case serr != nil:
		return fmt.Errorf("%s: %w", name, serr)
	}
	if r.seen != nil {
		r.seen(st.Ino)
	}
	return nil
}

// openToEmpty opens a directory so that its entries can be removed, giving
// ourselves the permission if it is missing.
func openToEmpty(dir int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags, 0)
	if errors.Is(err, unix.EACCES) {
		p, perr := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if perr != nil {
			return -1, fmt.Errorf("%s: %w", name, err)
		}
		defer unix.Close(p)
		if cerr := unix.Chmod("/proc/self/fd/"+strconv.Itoa(p), 0o700); cerr != nil {
			return -1, fmt.Errorf("%s: %w", name, err)
		}
		fd, err = unix.Openat(dir, name, flags, 0)
	}
	if err != nil {
		return -1, fmt.Errorf("%s: %w", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil && st.Mode&0o300 != 0o300 {
		// Without capabilities, w and x are needed too; with them this may be
		// refused for an id that is not mapped, and then unlink says so.
		_ = unix.Fchmod(fd, 0o700)
	}
	return fd, nil
}
