// Package atomicfile replaces small files so that a reader sees the old or the new
// one, whole.
package atomicfile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Read returns what is at path, as Write left it: at most limit bytes. It follows no
// link and waits for nothing.
func Read(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit))
	if err == nil && len(b) == 0 {
		err = &fs.PathError{Op: "read", Path: path, Err: fs.ErrNotExist}
	}
	return b, err
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
