// Package atomicfile replaces small files so that a reader sees the old or the new
// one, whole.
package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Read returns what is at path, as Write left it: at most limit bytes of a regular file.
// It follows no link and waits for nothing.
//
// It does without an *os.File: some commands read hundreds of files, and that costs four
// times as much, 10 µs.
func Read(path string, limit int64) ([]byte, error) {
	fail := func(op string, err error) ([]byte, error) { return nil, &fs.PathError{Op: op, Path: path, Err: err} }
	fd, err := retry(func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return fail("open", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	switch err := unix.Fstat(fd, &st); {
	case err != nil:
		return fail("stat", err)
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return fail("read", fs.ErrInvalid)
	}
	b := make([]byte, min(st.Size, limit))
	for n := 0; n < len(b); {
		got, err := retry(func() (int, error) { return unix.Read(fd, b[n:]) })
		if err != nil {
			return fail("read", err)
		}
		if got == 0 {
			b = b[:n]
		}
		n += got
	}
	if len(b) == 0 {
		return fail("read", fs.ErrNotExist)
	}
	return b, nil
}

// retry repeats a system call that a signal has interrupted.
func retry(f func() (int, error)) (int, error) {
	for {
		if n, err := f(); err != unix.EINTR {
			return n, err
		}
	}
}

// Write replaces the file at path, which only the user can read. It is not synced:
// after a crash of the machine the file may be empty, and its readers take that
// for one that is not there.
func Write(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
