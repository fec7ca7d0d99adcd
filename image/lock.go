package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Locks are flock(2) on files of their own, so that the kernel drops them when
// a process dies. A lock file may be unlinked by whoever holds it exclusively;
// hence after locking one must look whether the path still leads to it.

// errLocked is returned by tryLock if somebody else holds the lock.
var errLocked = errors.New("locked by another process")

type fileLock struct {
	f    *os.File
	path string
}

// tryLock takes the lock unless it is held. how is unix.LOCK_EX or LOCK_SH.
func tryLock(path string, how int) (*fileLock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flock(f, how|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, errLocked
			}
			return nil, &os.PathError{Op: "flock", Path: path, Err: err}
		}
		if sameFile(f, path) {
			return &fileLock{f: f, path: path}, nil
		}
		f.Close()
	}
}

// waitLock takes the lock as soon as it is free. It polls, since a blocking
// flock cannot be interrupted by a context.
func waitLock(ctx context.Context, path string, how int) (*fileLock, error) {
	wait := time.Millisecond
	for {
		l, err := tryLock(path, how)
		if !errors.Is(err, errLocked) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(wait):
		}
		wait = min(wait*2, 50*time.Millisecond)
	}
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
	if flock(l.f, unix.LOCK_EX|unix.LOCK_NB) == nil {
		err = os.Remove(l.path)
	}
	return errors.Join(err, l.f.Close())
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			return err
		}
	}
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}
