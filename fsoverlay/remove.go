package fsoverlay

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// removeDepth is how deep RemoveTree descends before it moves a directory up
	// to the top of the tree: it holds no more descriptors than that, whatever a
	// guest has nested.
	removeDepth = 48
	removeBatch = 512 // names read at a time
)

// RemoveTree removes the file or directory path with all below it. It follows no
// link, copes with any depth and with modes that forbid reading, and must run
// where the owners of the files are mapped. What does not exist is removed.
func RemoveTree(path string) error {
	parent, err := openDir(filepath.Dir(path))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fail("remove", path, err)
	}
	defer unix.Close(parent)
	name := filepath.Base(path)
	done, err := removeSimple(parent, name)
	if done || err != nil {
		return fail("remove", path, err)
	}
	top, err := openToEmpty(parent, name)
	if err != nil {
		return fail("remove", path, err)
	}
	r := &remover{top: top}
	err = r.empty(top, 0)
	unix.Close(top)
	if err == nil {
		if err = unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); errors.Is(err, unix.ENOENT) {
			err = nil
		}
	}
	return fail("remove", path, err)
}

// removeContents empties the directory path and leaves it.
func removeContents(path string) error {
	top, err := openToEmpty(unix.AT_FDCWD, path)
	if err != nil {
		return fail("empty", path, err)
	}
	defer unix.Close(top)
	return fail("empty", path, (&remover{top: top}).empty(top, 0))
}

type remover struct {
	top   int
	moved int // counts the names given to moved directories
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
		names, err := d.Readdirnames(removeBatch)
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
	done, err := removeSimple(dir, name)
	if done || err != nil {
		return err
	}
	if depth >= removeDepth {
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
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
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

// removeSimple removes anything but a directory that is not empty; done says
// that nothing is left of name.
func removeSimple(dir int, name string) (done bool, err error) {
	err = unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return true, nil
	}
	rerr := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	switch {
	case rerr == nil || errors.Is(rerr, unix.ENOENT):
		return true, nil
	case errors.Is(rerr, unix.ENOTEMPTY) || errors.Is(rerr, unix.EEXIST):
		return false, nil
	case errors.Is(rerr, unix.ENOTDIR):
		return false, fmt.Errorf("%s: %w", name, err)
	}
	return false, fmt.Errorf("%s: %w", name, rerr)
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
		if cerr := unix.Chmod(fdPath(p), 0o700); cerr != nil {
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
