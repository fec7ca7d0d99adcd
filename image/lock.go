package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/rootless-sbx/sbx/internal/flock"
	"golang.org/x/sys/unix"
)

// Locks are flock(2) on files of their own, so that the kernel drops them when
// a process dies. A lock file may be unlinked by whoever holds it exclusively;
// hence after locking one must look whether the path still leads to it.

type fileLock struct {
	f    *os.File
	path string
}

// tryLock takes the lock, or fails with flock.ErrLocked. how is unix.LOCK_EX or LOCK_SH.
func tryLock(path string, how int) (*fileLock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flock.Try(f, how); err != nil {
			f.Close()
			return nil, err
		}
		if flock.AtPath(f, path) {
			return &fileLock{f: f, path: path}, nil
		}
		f.Close()
	}
}

// waitLock takes the lock as soon as it is free.
func waitLock(ctx context.Context, path string, how int) (l *fileLock, err error) {
	err = flock.Poll(ctx, func() (err error) {
		l, err = tryLock(path, how)
		return err
	})
	return l, err
}

func (s *Store) lockPath(name string) string { return filepath.Join(s.root, "locks", name) }

// unlock gives the lock up and leaves the file.
func (l *fileLock) unlock() error { return l.f.Close() }

// discard removes the file of a lock held exclusively, and gives the lock up.
func (l *fileLock) discard() error {
	return errors.Join(os.Remove(l.path), l.f.Close())
}

// drop removes the file if nobody else holds a shared lock; then gives up.
func (l *fileLock) drop() error {
	var err error
	if flock.Try(l.f, unix.LOCK_EX) == nil {
		err = os.Remove(l.path)
	}
	return errors.Join(err, l.f.Close())
}
