// Package boxsock is the socket of a sandbox's monitor: $XDG_RUNTIME_DIR/sbx/box/ID,
// for whoever wants something of a sandbox that runs. Only the user gets there, by
// the modes of directory (0700) and socket (0600), and each side asks the kernel
// who the other one is.
package boxsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/rootless-sbx/sbx/internal/wire"
)

// Listener is the monitor's end.
type Listener struct {
	*net.UnixListener
	path string
}

// short names a socket through a descriptor of its directory: the path of a Unix
// socket is limited to 107 bytes.
func short(path string) (name string, dir *os.File, err error) {
	if dir, err = os.Open(filepath.Dir(path)); err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), dir, nil
}

// Listen makes the socket. One that is there is a dead monitor's: the caller is the
// sandbox's owner.
func Listen(path string) (*Listener, error) {
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	name, dir, err := short(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: name, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the name is gone with dir
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(path))
	}
	return &Listener{l, path}, nil
}

// Accept returns the next connection of the user's own.
func (l *Listener) Accept() (*wire.Conn, error) {
	for {
		uc, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if c, err := own(uc); err == nil {
			return c, nil
		}
	}
}

// Close ends Accept and removes the socket.
func (l *Listener) Close() error {
	err := errors.Join(os.Remove(l.path), l.UnixListener.Close())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Dial connects to a monitor; an error that is fs.ErrNotExist or ECONNREFUSED says
// that there is none.
func Dial(ctx context.Context, path string) (*wire.Conn, error) {
	name, dir, err := short(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", name)
	if err != nil {
		return nil, err
	}
	return own(c.(*net.UnixConn))
}

// own refuses what another user has opened.
func own(uc *net.UnixConn) (*wire.Conn, error) {
	c := wire.NewUnixConn(uc)
	peer, err := c.Peer()
	if err == nil && int(peer.Uid) != os.Geteuid() {
		err = fmt.Errorf("the other end belongs to user %d", peer.Uid)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}
