package boxfiles

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/internal/inroot"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxroot"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"golang.org/x/sys/unix"
)

// Mounted is the tree of a sandbox that does not run, mounted in this process's mount
// namespace.
type Mounted struct {
	*Tree
	root *boxroot.Root
	lock *os.File // nobody else works on it
}

// Mount mounts it. lock, the sandbox's, is held as long.
func Mount(ctx context.Context, req *proto.MountRoot, lock *os.File) (*Mounted, *proto.Mounted, error) {
	s := &req.Start
	vols := &fsoverlay.Volumes{Root: s.VolumesDir}
	root, err := boxroot.Prepare(ctx, s, vols, req.Volumes, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, err
	}
	m := &Mounted{root: root, lock: lock}
	if err := m.mount(s); err != nil {
		m.lock = nil // the caller's still
		return nil, nil, errors.Join(err, m.Close())
	}
	return m, &proto.Mounted{Volumes: root.Volumes, Notes: root.Storage.Notes}, nil
}

func (m *Mounted) mount(s *proto.Start) error {
	driver, err := fsoverlay.NewDriver(s.Driver, nil)
	if err != nil {
		return err
	}
	if err := driver.Mount(m.root.Spec); err != nil {
		return err
	}
	c := fsoverlay.PlanConfig{Root: m.root.Spec.Merged, ReadOnly: s.ReadOnly, Mounts: m.root.Mounts}
	for name, into := range map[string]*string{"hosts": &c.Hosts, "hostname": &c.Hostname, "resolv.conf": &c.ResolvConf} {
		if path := filepath.Join(s.Dir, name); isFile(path) { // it has run before
			*into = path
		}
	}
	plan, err := fsoverlay.BuildFilesPlan(c)
	if err != nil {
		return err
	}
	if _, err := plan.Apply(); err != nil {
		return err
	}
	fd, err := inroot.OpenDir(m.root.Spec.Merged)
	if err != nil {
		return err
	}
	m.Tree = &Tree{fd}
	return nil
}

func isFile(path string) bool {
	fi, err := os.Lstat(path)
	return err == nil && fi.Mode().IsRegular()
}

// Close unmounts it and ends the storage driver.
func (m *Mounted) Close() error {
	if m == nil {
		return nil
	}
	var errs []error
	if m.Tree != nil {
		errs = append(errs, m.Tree.Close())
	}
	for range 2 { // the root is bound on itself
		if err := unix.Unmount(m.root.Spec.Merged, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			if !errors.Is(err, unix.EINVAL) {
				errs = append(errs, err)
			}
			break
		}
	}
	errs = append(errs, m.root.Close())
	if m.lock != nil {
		errs = append(errs, m.lock.Close())
	}
	return errors.Join(errs...)
}
