// Package flock takes flock(2) locks, which the kernel drops when their process
// dies, and which belong to the open file: a duplicate or an inherited descriptor
// holds the same lock.
package flock

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another open file has the lock.
var ErrLocked error = unix.EWOULDBLOCK

const maxWait = 20 * time.Millisecond

// Try takes the lock of f unless it is held. how is unix.LOCK_EX or LOCK_SH.
func Try(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}

// Wait takes the lock of f as soon as it is free.
func Wait(ctx context.Context, f *os.File, how int) error {
	return Poll(ctx, func() error { return Try(f, how) })
}

// Poll calls try until it returns anything but ErrLocked: a blocking flock(2)
// would not end with the context, whose cause is returned when it does end.
func Poll(ctx context.Context, try func() error) error {
	for wait := time.Millisecond; ; wait = min(2*wait, maxWait) {
		err := try()
		if !errors.Is(err, ErrLocked) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// AtPath says whether path still leads to f: a lock file may be removed by who
// holds its lock, and then a lock on it is worth nothing.
func AtPath(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}
