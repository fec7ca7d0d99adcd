package fsoverlay

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/rootless-sbx/sbx/internal/inroot"
	"golang.org/x/sys/unix"
)

// nativeDriver mounts the kernel's overlay inside the user namespace. userxattr
// makes it keep its marks in user.overlay.*, the only attributes that a user
// namespace may write.
type nativeDriver struct{}

func (nativeDriver) Name() string { return DriverNative }

func (nativeDriver) Prepare(_ context.Context, s RootSpec) (*Prepared, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if s.ReadOnly {
		return &Prepared{}, mkdirs(s.Merged)
	}
	if err := mkUpper(s.Upper); err != nil {
		return nil, err
	}
	return &Prepared{}, mkdirs(s.Work, s.Merged)
}

func (nativeDriver) Mount(s RootSpec) error {
	if err := s.check(); err != nil {
		return err
	}
	const step = "mount the overlay"
	if err := mkdirs(s.Merged); err != nil {
		return err
	}
	target, err := inroot.OpenDir(s.Merged)
	if err != nil {
		return fail(step, s.Merged, err)
	}
	defer unix.Close(target)
	if s.ReadOnly && len(s.Lowers) == 1 {
		// An overlay without a writable directory wants two lower ones.
		return fail(step, s.Merged, bindReadOnly(s.Lowers[0], target))
	}
	tree, err := overlayTree(&s)
	if err == nil {
		defer unix.Close(tree)
		return fail(step, s.Merged, attach(tree, target))
	}
	if !errors.Is(err, unix.EINVAL) {
		return fail(step, s.Merged, err)
	}
	// Linux before 6.7 knows no lowerdir+: 6.5 says so at the option, older ones
	// collect whatever they are given and refuse it all in the end.
	if old := overlayMount(&s); old != nil {
		return fail(step, s.Merged, fmt.Errorf("%w (with lowerdir+: %v)", old, err))
	}
	return nil
}

// overlayTree makes the overlay as a detached mount.
func overlayTree(s *RootSpec) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fs)
	fds, err := openLowers(s)
	if err != nil {
		return -1, err
	}
	defer closeAll(fds)
	for i, fd := range fds {
		if err := unix.FsconfigSetString(fs, "lowerdir+", plainOr(s.Lowers[i], fd)); err != nil {
			return -1, fsError(fs, "overlay lower directory "+s.Lowers[i], err)
		}
	}
	for _, o := range s.upperOptions() {
		fd, err := inroot.OpenDir(o.path)
		if err != nil {
			return -1, err
		}
		defer unix.Close(fd)
		if err := unix.FsconfigSetString(fs, o.key, plainOr(o.path, fd)); err != nil {
			return -1, fsError(fs, "overlay "+o.key+" "+o.path, err)
		}
	}
	if err := unix.FsconfigSetFlag(fs, "userxattr"); err != nil {
		return -1, fsError(fs, "overlay userxattr", err)
	}
	// Hard links of an upper directory that is mounted again must not depend on
	// file handles of layers that were pulled anew.
	if err := unix.FsconfigSetString(fs, "index", "off"); err != nil {
		return -1, fsError(fs, "overlay index=off", err)
	}
	if s.volatile() {
		if err := unix.FsconfigSetFlag(fs, "volatile"); err != nil {
			return -1, fsError(fs, "overlay volatile", err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fsError(fs, "create overlay", err)
	}
	attr := 0
	if s.ReadOnly {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return -1, fsError(fs, "fsmount overlay", err)
	}
	return mnt, nil
}

// overlayMount is the same through mount(2). Its options must fit into one page
// and split at ':' and ',': every directory is named by its descriptor, which is
// short and harmless, so that MaxLowers of them take at most 2,3 KB.
func overlayMount(s *RootSpec) error {
	fds, err := openLowers(s)
	if err != nil {
		return err
	}
	defer closeAll(fds)
	names := make([]string, len(fds))
	for i, fd := range fds {
		names[i] = inroot.FdPath(fd)
	}
	opts := []string{"userxattr", "index=off", "lowerdir=" + strings.Join(names, ":")}
	if s.volatile() {
		opts = append(opts, "volatile")
	}
	for _, o := range s.upperOptions() {
		fd, err := inroot.OpenDir(o.path)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		opts = append(opts, o.key+"="+inroot.FdPath(fd))
	}
	var flags uintptr
	if s.ReadOnly {
		flags = unix.MS_RDONLY
	}
	if err := unix.Mount("overlay", s.Merged, "overlay", flags, strings.Join(opts, ",")); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	return nil
}

// volatile is an option of Linux 5.10; without a writable directory it is refused.
func (s *RootSpec) volatile() bool { return s.Volatile && !s.ReadOnly }

type pathOption struct{ key, path string }

func (s *RootSpec) upperOptions() []pathOption {
	if s.ReadOnly {
		return nil
	}
	return []pathOption{{"upperdir", s.Upper}, {"workdir", s.Work}}
}

// plainOr returns path where the overlay takes it as it is, so that mountinfo is
// readable; else a path by descriptor. fsconfig takes at most 255 bytes, and the
// overlay has its own ideas about backslashes.
func plainOr(path string, fd int) string {
	if len(path) > 255 || strings.ContainsAny(path, "\\:,\n\t \"") {
		return inroot.FdPath(fd)
	}
	return path
}

func bindReadOnly(source string, target int) error {
	tree, err := cloneTree(unix.AT_FDCWD, source, true)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := attach(tree, target); err != nil {
		return err
	}
	if err := setAttr(tree, ReadOnly, unix.MS_PRIVATE, true); errors.Is(err, unix.ENOSYS) {
		return remount(tree, ReadOnly, unix.MS_PRIVATE, true)
	} else {
		return err
	}
}
