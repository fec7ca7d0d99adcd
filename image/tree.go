package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// removeTree removes a directory of the store, which may hold files of
// subordinate ids: first by itself, then through Config.Remover.
func (s *Store) removeTree(ctx context.Context, path string) error {
	err := RemoveTree(path)
	if err == nil || s.remover == nil || !isPermission(err) {
		return err
	}
	return s.remover(ctx, path)
}

// RemoveTree removes path and everything below it, as os.RemoveAll does, but
// also what lies in directories that their owner may not write. It follows no
// link. A path that does not exist is no error.
func RemoveTree(path string) error {
	parent, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(parent)
	if err := removeAt(parent, filepath.Base(path), nil); err != nil {
		return &os.PathError{Op: "remove", Path: path, Err: err}
	}
	return nil
}

// removeAt removes name in the directory dirfd with all it contains. seen, if
// not nil, is told the inode of every directory removed. The recursion holds
// one descriptor per level, hence Limits.Depth.
func removeAt(dirfd int, name string, seen func(ino uint64)) error {
	err := unix.Unlinkat(dirfd, name, 0)
	switch err {
	case nil, unix.ENOENT:
		return nil
	case unix.EISDIR, unix.EPERM: // a directory
	default:
		return err
	}
	var st unix.Stat_t
	if serr := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); serr != nil {
		return serr
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	if st.Mode&0o700 != 0o700 {
		// Fails for somebody else's directory; then so does what follows, or
		// a capability makes it unnecessary.
		_ = unix.Fchmodat(dirfd, name, 0o700, 0)
	}
	fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	// A second look for what a file system skipped while entries vanished.
	for pass := 0; ; pass++ {
		for {
			names, rerr := f.Readdirnames(1024)
			for _, n := range names {
				if err := removeAt(fd, n, seen); err != nil {
					return err
				}
			}
			if rerr != nil || len(names) == 0 {
				break // the end, or an error that the removal below reports
			}
		}
		err = unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR)
		if err != unix.ENOTEMPTY || pass == 2 {
			break
		}
		if _, err := f.Seek(0, 0); err != nil {
			return err
		}
	}
	if err != nil && err != unix.ENOENT {
		return err
	}
	if seen != nil {
		seen(st.Ino)
	}
	return nil
}

func isPermission(err error) bool {
	return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)
}
