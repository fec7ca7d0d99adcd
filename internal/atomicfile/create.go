package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// File is one that has its name when it is complete.
type File struct {
	*os.File
	path string
	done bool
}

// Create begins a file that replaces the one at path. Until then it has no name where
// the file system can do that, so that nothing is left of it whatever becomes of this
// process. What is there and no regular file, such as a pipe, is written to as it is.
func Create(path string) (*File, error) {
	fi, err := os.Stat(path)
	switch {
	case err == nil && fi.IsDir():
		return nil, &fs.PathError{Op: "write", Path: path, Err: unix.EISDIR}
	case err == nil && !fi.Mode().IsRegular():
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		return &File{f, path, true}, err
	case err == nil: // through a link
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	dir := filepath.Dir(path)
	f, err := os.OpenFile(dir, os.O_WRONLY|unix.O_TMPFILE, 0o666)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		f, err = os.OpenFile(temporary(path), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	}
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			pe.Path = path
		}
		return nil, err
	}
	return &File{f, path, false}, nil
}

func temporary(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"-"+strconv.Itoa(os.Getpid()))
}

// Commit gives the file its name and closes it.
func (f *File) Commit() (err error) {
	defer func() { err = errors.Join(err, f.Close()) }()
	if f.done {
		return nil
	}
	tmp := temporary(f.path)
	if f.Name() != tmp {
		from := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
		if err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, tmp, unix.AT_SYMLINK_FOLLOW); err != nil {
			return &os.LinkError{Op: "link", Old: "a new file", New: tmp, Err: err}
		}
	}
	if err := os.Rename(tmp, f.path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	f.done = true
	return nil
}

// Close closes the file; nothing is left of one that was not committed.
func (f *File) Close() error {
	err := f.File.Close()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	if !f.done && f.Name() == temporary(f.path) {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}
