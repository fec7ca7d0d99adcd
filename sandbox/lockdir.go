package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A lockedDir is a directory below containers/ that its users hold a lock on:
// the kernel drops the lock when the last of them dies, however it dies, and an
// unlocked directory is garbage that the next engine sweeps.
type lockedDir struct {
	path string
	lock *os.File // flock on path/lock; shared with the monitor, which inherits it
}

// createDir makes a locked directory. The lock on containers/.lock keeps a sweep
// from seeing it between mkdir and flock; check runs under it.
func (e *Engine) createDir(id string, check func() error) (*lockedDir, error) {
	root := filepath.Join(e.dataDir, "containers")
	global, err := lockFile(filepath.Join(root, ".lock"), unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer global.Close()
	if check != nil {
		if err := check(); err != nil {
			return nil, err
		}
	}
	d := &lockedDir{path: filepath.Join(root, id)}
	if err := os.Mkdir(d.path, 0o711); err != nil {
		return nil, fmt.Errorf("make the sandbox's directory: %w", err)
	}
	if d.lock, err = lockFile(filepath.Join(d.path, "lock"), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		os.RemoveAll(d.path)
		return nil, err
	}
	return d, nil
}

// release drops this process's share of the lock.
func (d *lockedDir) release() { d.lock.Close() }

func lockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
	}
	return f, nil
}

// Sweep removes the directories of sandboxes whose processes were all killed. It
// returns how many it removed.
func (e *Engine) Sweep(ctx context.Context) (int, error) {
	root := filepath.Join(e.dataDir, "containers")
	entries, err := os.ReadDir(root)
	if err != nil {
		return 0, err
	}
	n := 0
	var errs []error
	for _, ent := range entries {
		if !ent.IsDir() || strings.HasPrefix(ent.Name(), ".") {
			continue
		}
		path := filepath.Join(root, ent.Name())
		lock, err := e.claim(root, path)
		if lock != nil {
			err = e.removeTree(ctx, path)
			lock.Close()
			n++
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep %s: %w", path, err))
		}
	}
	return n, errors.Join(errs...)
}

// claim takes the lock of a directory that nobody holds; nil if somebody does.
// The caller removes the directory under the lock, so that two sweeps do not.
func (e *Engine) claim(root, path string) (*os.File, error) {
	global, err := lockFile(filepath.Join(root, ".lock"), unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer global.Close()
	f, err := lockFile(filepath.Join(path, "lock"), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return f, err
}
