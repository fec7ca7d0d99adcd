package netd

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// netDir is a network's directory.
type netDir struct{ path string }

func openDir(runtimeDir, name string) (netDir, error) {
	d := netDir{filepath.Join(runtimeDir, "net", name)}
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return d, fmt.Errorf("make the network's directory: %w", err)
	}
	return d, nil
}

func (d netDir) file(name string) string { return filepath.Join(d.path, name) }

// lock waits for the network's lock. The file is never removed, so that everybody
// locks the same one.
func (d netDir) lock() (*os.File, error) {
	f, err := os.OpenFile(d.file("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	return f, nil
}

// sockAddr returns an address for the socket that fits the 108 bytes of
// sockaddr_un however deep the directory is. The caller closes the file when the
// address has been used.
func (d netDir) sockAddr() (*net.UnixAddr, *os.File, error) {
	f, err := os.OpenFile(d.path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, nil, err
	}
	name := d.file("sock")
	if len(name) >= 108 {
		name = "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) + "/sock"
	}
	return &net.UnixAddr{Net: "unixpacket", Name: name}, f, nil
}

func (d netDir) dial() (*net.UnixConn, error) {
	addr, f, err := d.sockAddr()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.DialUnix("unixpacket", nil, addr)
}

// listen makes the socket; the caller holds the lock, so that one that is there
// belongs to a process that was killed.
func (d netDir) listen() (*net.UnixListener, error) {
	if err := os.Remove(d.file("sock")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	addr, f, err := d.sockAddr()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ln, err := net.ListenUnix("unixpacket", addr)
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false) // done under the lock, by the real name
	return ln, os.Chmod(d.file("sock"), 0o600)
}

// clear removes what a process leaves behind, under the lock.
func (d netDir) clear() error {
	var errs []error
	for _, n := range []string{"sock", "state.json"} {
		if err := os.Remove(d.file(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// openLog opens the log for the process's standard streams; what is over the
// limit becomes log.1.
func (d netDir) openLog() (*os.File, error) {
	name := d.file("log")
	if fi, err := os.Stat(name); err == nil && fi.Size() > maxLogBytes {
		if err := os.Rename(name, name+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
}
