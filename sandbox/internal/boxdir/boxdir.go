package boxdir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/rootless-sbx/sbx/internal/atomicfile"
	"github.com/rootless-sbx/sbx/internal/flock"
	"github.com/rootless-sbx/sbx/internal/rmtree"
	"golang.org/x/sys/unix"
)

const (
	lockName = "lock"
	nameName = "name"

	renameExt = ".new"

	maxFile = 4096
)

// Dir is a directory that this process is an owner of.
type Dir struct {
	Path string
	// Lock makes another process an owner too, if it is given to it.
	Lock *os.File
}

// ID is the sandbox's id.
func (d *Dir) ID() string { return filepath.Base(d.Path) }

// Release gives up this process's share.
func (d *Dir) Release() error { return d.Lock.Close() }

// Create makes root/id. name, if not nil, chooses the sandbox's name among those
// that are taken, a map of name to id; nobody else chooses at the same time.
func Create(ctx context.Context, root, id string, name func(taken map[string]string) (string, error)) (_ *Dir, err error) {
	unlock, err := lockRoot(ctx, root)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var text string
	if name != nil {
		taken, err := names(root)
		if err != nil {
			return nil, err
		}
		if text, err = name(taken); err != nil {
			return nil, err
		}
	}
	d := &Dir{Path: filepath.Join(root, id)}
	if err := os.Mkdir(d.Path, 0o711); err != nil {
		return nil, fmt.Errorf("make the sandbox's directory: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(d.Path))
		}
	}()
	if err := os.Chmod(d.Path, 0o711); err != nil { // subordinate ids pass through, whatever the umask
		return nil, err
	}
	if d.Lock, err = tryLock(filepath.Join(d.Path, lockName)); err != nil {
		return nil, err
	}
	if name != nil {
		if err := os.WriteFile(filepath.Join(d.Path, nameName), []byte(text), 0o600); err != nil {
			d.Lock.Close()
			return nil, err
		}
	}
	return d, nil
}

// Rename gives root/id another name, which name chooses or refuses as in Create. It
// needs no owner.
func Rename(ctx context.Context, root, id string, name func(taken map[string]string) (string, error)) error {
	unlock, err := lockRoot(ctx, root)
	if err != nil {
		return err
	}
	defer unlock()
	taken, err := names(root)
	if err != nil {
		return err
	}
	text, err := name(taken)
	if err != nil {
		return err
	}
	path := filepath.Join(root, id)
	if _, err := os.Lstat(filepath.Join(path, lockName)); err != nil {
		return err // it is being removed
	}
	if err := forgetNames(root); err != nil {
		return err
	}
	tmp := filepath.Join(path, nameName+renameExt) // only one at a time is here
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(path, nameName))
}

// Name returns the name of root/id.
func Name(root, id string) (string, error) {
	b, err := atomicfile.Read(filepath.Join(root, id, nameName), maxFile)
	return string(b), err
}

// List returns the ids of all directories, with an owner or without.
func List(root string) ([]string, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Owned returns those of the ids that have an owner.
func Owned(ctx context.Context, root string, ids []string) (map[string]bool, error) {
	owned := map[string]bool{}
	if len(ids) == 0 {
		return owned, nil
	}
	unlock, err := lockRoot(ctx, root)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for _, id := range ids {
		f, err := tryLock(filepath.Join(root, id, lockName))
		switch {
		case err == nil:
			f.Close()
		case errors.Is(err, flock.ErrLocked):
			owned[id] = true
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return owned, nil
}

// Claim makes this process the owner of a directory that has none; nil if it has
// one, or is gone.
func Claim(ctx context.Context, root, id string) (*Dir, error) {
	unlock, err := lockRoot(ctx, root)
	if err != nil {
		return nil, err
	}
	defer unlock()
	d := &Dir{Path: filepath.Join(root, id)}
	d.Lock, err = tryLock(filepath.Join(d.Path, lockName))
	if errors.Is(err, flock.ErrLocked) || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Remove removes a directory, which its caller must be an owner of. That it has
// gone already is no error.
func Remove(ctx context.Context, path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	// Its name is free from now on, however long the rest takes.
	if err := os.Remove(filepath.Join(path, nameName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.Name() != lockName {
			errs = append(errs, rmtree.Remove(filepath.Join(path, e.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	unlock, err := lockRoot(ctx, filepath.Dir(path))
	if err != nil {
		return err
	}
	defer unlock()
	// What a Rename has put there meanwhile goes too.
	for _, f := range []string{filepath.Join(path, nameName+renameExt), filepath.Join(path, nameName), filepath.Join(path, lockName), path} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// lockRoot waits for containers/.lock. Its holders are quick unless one is
// stopped, so ctx bounds the wait.
func lockRoot(ctx context.Context, root string) (unlock func(), err error) {
	path := filepath.Join(root, ".lock")
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	if err := flock.Wait(ctx, f, unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

func open(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
}

// tryLock opens a lock file and locks it, or fails with flock.ErrLocked.
func tryLock(path string) (*os.File, error) {
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	if err := flock.Try(f, unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
