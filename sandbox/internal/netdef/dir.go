package netdef

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/rootless-sbx/sbx/internal/atomicfile"
	"github.com/rootless-sbx/sbx/internal/flock"
	"golang.org/x/sys/unix"
)

const (
	lockName = ".lock"
	defExt   = ".json"
	leaseExt = ".leases.json"
	maxFile  = 4 << 20
)

// Dir is where the networks of a user are, below the data directory.
type Dir string

// In is the directory of the networks in a data directory.
func In(dataDir string) Dir { return Dir(filepath.Join(dataDir, "networks")) }

// owners is where each sandbox that is there has a directory.
func (d Dir) owners() string { return filepath.Join(filepath.Dir(string(d)), "containers") }

// Locked calls f while nobody else changes anything.
func (d Dir) Locked(ctx context.Context, f func() error) error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(string(d), lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := flock.Wait(ctx, lock, unix.LOCK_EX); err != nil {
		return err
	}
	return f()
}

// List returns the networks that have been made, by name. What cannot be read is
// left out and in the error, beside the rest.
func (d Dir) List() ([]Network, error) {
	files, err := os.ReadDir(string(d))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var list []Network
	var errs []error
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), defExt)
		if !ok || name == "" || name[0] == '.' || strings.HasSuffix(f.Name(), leaseExt) {
			continue
		}
		n := Network{}
		switch err := d.read(f.Name(), &n, &n.Version); {
		case err == nil && n.Name == name:
			list = append(list, n)
		case err == nil:
			errs = append(errs, fmt.Errorf("%s is of network %q", filepath.Join(string(d), f.Name()), n.Name))
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
		}
	}
	return list, errors.Join(errs...)
}

// Find returns the network with this name, this id, or the unique beginning of it.
func (d Dir) Find(ref string) (*Network, error) {
	list, err := d.List()
	var found []Network
	for _, n := range list {
		if n.Name == ref || n.ID == ref {
			return &n, nil
		}
		if ref != "" && strings.HasPrefix(n.ID, ref) {
			found = append(found, n)
		}
	}
	switch {
	case len(found) == 1:
		return &found[0], nil
	case len(found) > 1:
		return nil, &Error{ErrNotFound, fmt.Sprintf("%s is the beginning of %d networks' ids", ref, len(found)), "give more digits of the id, or the name"}
	}
	return nil, cmp.Or(err, error(&Error{ErrNotFound, fmt.Sprintf("no such network: %s", ref), "sbx network ls shows all; sbx network create " + ref + " makes it"}))
}

// Add writes a new network; the caller has the lock.
func (d Dir) Add(n *Network) error {
	// A network of the same name was there before: what it gave out is nobody's.
	if err := d.remove(n.Name + leaseExt); err != nil {
		return err
	}
	return d.write(n.Name+defExt, n)
}

// Change writes a network that is there; the caller has the lock.
func (d Dir) Change(n *Network) error { return d.write(n.Name+defExt, n) }

// Remove removes a network and its leases; the caller has the lock.
func (d Dir) Remove(name string) error {
	return errors.Join(d.remove(name+defExt), d.remove(name+leaseExt))
}

// alive says whether a sandbox is there, whatever it does. A network's process may not
// list the directory.
func (d Dir) alive(id string) bool {
	if id == "" || strings.ContainsAny(id, "/\x00") {
		return false
	}
	_, err := os.Lstat(filepath.Join(d.owners(), id))
	return err == nil
}

func (d Dir) remove(name string) error {
	if err := os.Remove(filepath.Join(string(d), name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (d Dir) write(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(string(d), name), b)
}

// read refuses what a newer sbx wrote.
func (d Dir) read(name string, v any, version *int) error {
	path := filepath.Join(string(d), name)
	b, err := atomicfile.Read(path, maxFile)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if *version != Version {
		return fmt.Errorf("%s is of version %d, and this sbx knows %d: use the newer sbx", path, *version, Version)
	}
	return nil
}
