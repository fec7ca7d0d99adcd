package netd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/rootless-sbx/sbx/internal/flock"
	"github.com/rootless-sbx/sbx/internal/wire"
	"golang.org/x/sys/unix"
)

const (
	lockName  = "lock"
	sockName  = "sock"
	stateName = "state.json"
	logName   = "log"
	maxName   = 64
)

// directory is a network's, held open: whatever happens to the path, every file
// of ours is reached through this descriptor.
type directory struct {
	f    *os.File
	path string // for messages
}

// CheckName says whether a network may be called so: it becomes a file name.
func CheckName(name string) error {
	ok := name != "" && len(name) <= maxName && name[0] != '.' && name[0] != '-'
	for _, r := range name {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_')
	}
	if !ok {
		return &wire.Error{Code: CodeMisuse, Step: "network name", Path: fmt.Sprintf("%.80q", name),
			Msg: fmt.Sprintf("want 1 to %d letters, digits, '.', '-' or '_', beginning with a letter or digit", maxName)}
	}
	return nil
}

// makeDir makes and opens RuntimeDir/net/NAME. RuntimeDir itself may be a symbolic link, as
// where /run/user is one; what is below it is ours alone.
func makeDir(runtimeDir, name string) (*directory, error) {
	if err := os.MkdirAll(runtimeDir, 0o700); err != nil {
		return nil, wire.ToError("make the directory of network "+name, err)
	}
	return walk(runtimeDir, name, func(d *os.File, part string) error {
		if err := unix.Mkdirat(int(d.Fd()), part, 0o700); !errors.Is(err, unix.EEXIST) {
			return err
		}
		return nil
	})
}

// openDir opens what makeDir has made: whoever only looks makes nothing, least of all
// again what was just removed. It is ENOENT where there is no network.
func openDir(runtimeDir, name string) (*directory, error) {
	return walk(runtimeDir, name, func(*os.File, string) error { return nil })
}

// walk goes down to a network's directory, and calls before with each part of the way
// before that is opened.
func walk(runtimeDir, name string, before func(d *os.File, part string) error) (*directory, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	step := func(err error) error { return wire.ToError("open the directory of network "+name, err) }
	d, err := openat(unix.AT_FDCWD, runtimeDir, unix.O_DIRECTORY)
	if err != nil {
		return nil, step(&fs.PathError{Op: "open", Path: runtimeDir, Err: err})
	}
	at := runtimeDir
	for _, part := range []string{"net", name} {
		if err := private(d, at); err != nil {
			d.Close()
			return nil, step(err)
		}
		at = filepath.Join(at, part)
		var next *os.File
		if err = before(d, part); err == nil {
			next, err = openat(int(d.Fd()), part, unix.O_DIRECTORY|unix.O_NOFOLLOW)
		}
		d.Close()
		if err != nil {
			return nil, step(&fs.PathError{Op: "open", Path: at, Err: err})
		}
		d = next
	}
	if err := private(d, at); err != nil {
		d.Close()
		return nil, step(err)
	}
	return &directory{d, at}, nil
}

func openat(dir int, name string, flags int) (*os.File, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0o600)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// private refuses a directory in which somebody else can put files.
func private(d *os.File, path string) error {
	fi, err := d.Stat()
	if err != nil {
		return err
	}
	if st := fi.Sys().(*syscall.Stat_t); int(st.Uid) != os.Geteuid() || fi.Mode().Perm()&0o022 != 0 {
		return &wire.Error{Path: path, Msg: fmt.Sprintf("belongs to user %d with mode %o: others could put files there", st.Uid, fi.Mode().Perm()),
			Fix: "set XDG_RUNTIME_DIR to a directory of your own with mode 0700"}
	}
	return nil
}

func (d *directory) close() error { return d.f.Close() }

func (d *directory) open(name string, flags int) (*os.File, error) {
	f, err := openat(int(d.f.Fd()), name, flags|unix.O_NOFOLLOW)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: filepath.Join(d.path, name), Err: err}
	}
	return f, nil
}

// has says whether a file is there.
func (d *directory) has(name string) (bool, error) {
	err := unix.Faccessat(int(d.f.Fd()), name, unix.F_OK, 0)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "look for", Path: filepath.Join(d.path, name), Err: err}
	}
	return true, nil
}

// remove of what is not there is no error.
func (d *directory) remove(name string) error {
	if err := unix.Unlinkat(int(d.f.Fd()), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "remove", Path: filepath.Join(d.path, name), Err: err}
	}
	return nil
}

// write replaces a file at once.
func (d *directory) write(name string, b []byte) error {
	tmp := name + ".new"
	f, err := d.open(tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		if err = unix.Renameat(int(d.f.Fd()), tmp, int(d.f.Fd()), name); err == nil {
			return nil
		}
		err = &fs.PathError{Op: "rename", Path: filepath.Join(d.path, name), Err: err}
	}
	return errors.Join(err, d.remove(tmp))
}

// at is a path to a file. It is short, however long the directory's own path is: the
// address of a socket has room for 107 bytes.
func (d *directory) at(name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", d.f.Fd(), name) }

func (d *directory) dial() (*net.UnixConn, error) {
	return net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: d.at(sockName), Net: "unixpacket"})
}

// listen replaces a socket that a killed process left behind. The caller is the
// only one alive: it has claimed the directory.
func (d *directory) listen() (*net.UnixListener, error) {
	if err := d.remove(sockName); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: d.at(sockName), Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by then the lock must be held
	if err := unix.Fchmodat(int(d.f.Fd()), sockName, 0o600, 0); err != nil {
		l.Close()
		return nil, &fs.PathError{Op: "chmod", Path: filepath.Join(d.path, sockName), Err: err}
	}
	return l, nil
}

// claim makes the caller the network's process, until it ends.
func (d *directory) claim(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// A killed process keeps its claim until the kernel has closed its last
	// link, some 20 ms after its socket.
	if err := flock.Wait(ctx, d.f, unix.LOCK_EX); err != nil {
		return &wire.Error{Code: CodeBusy, Path: d.path, Msg: "another process serves this network"}
	}
	return nil
}

// lock waits for the right to start a process, or to leave.
func (d *directory) lock(ctx context.Context) (*os.File, error) {
	f, err := d.open(lockName, unix.O_RDWR|unix.O_CREAT)
	if err != nil {
		return nil, err
	}
	if err := flock.Wait(ctx, f, unix.LOCK_EX); err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "lock", Path: filepath.Join(d.path, lockName), Err: err}
	}
	return f, nil
}

// tryLock returns nil if somebody else has the lock.
func (d *directory) tryLock() (*os.File, error) {
	f, err := d.open(lockName, unix.O_RDWR|unix.O_CREAT)
	if err != nil {
		return nil, err
	}
	if err := flock.Try(f, unix.LOCK_EX); err != nil {
		f.Close()
		if errors.Is(err, flock.ErrLocked) {
			return nil, nil
		}
		return nil, err
	}
	return f, nil
}
