package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is a tree of files that a process needs.
type Root struct {
	// Needed are absolute paths of files and directories, with all that is below and
	// mounted there; Wanted those of them that need not exist.
	Needed, Wanted []string
}

// Enter leaves this mount namespace nothing but the tree, each file at its own path: an
// empty root in which the named ones are mounted, with what the host mounts below them
// later. Whoever is in the namespace finds himself in it.
//
// It needs CAP_SYS_ADMIN over the namespace, whose mounts must not be shared. A directory
// that is open stays a way out, as its ".." is: the caller has none.
//
// If it fails, everything is as it was.
func (r Root) Enter() error {
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	defer unix.Close(old)
	root, err := emptyRoot()
	if err != nil {
		return err
	}
	defer unix.Close(root)
	// On top of the root nobody sees it until it takes its place.
	if err := unix.MoveMount(root, "", old, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return os.NewSyscallError("move_mount", err)
	}
	if err = r.fill(root); err == nil {
		err = changeRoot(root, old)
	}
	if err != nil {
		err = errors.Join(err, os.NewSyscallError("umount", unix.Unmount(fmt.Sprintf("/proc/self/fd/%d", root), unix.MNT_DETACH)))
	}
	return err
}

// emptyRoot is a file system of its own, not mounted yet.
func emptyRoot() (int, error) {
	ctx, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen tmpfs", err)
	}
	defer unix.Close(ctx)
	for _, o := range [][2]string{{"mode", "0755"}, {"size", "4k"}, {"nr_inodes", "16k"}} {
		if err := unix.FsconfigSetString(ctx, o[0], o[1]); err != nil {
			return -1, os.NewSyscallError("fsconfig "+o[0], err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, os.NewSyscallError("fsconfig", err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	return fd, os.NewSyscallError("fsmount", err)
}

// fill mounts the files in the new root, and looks whether each is found there: a link on
// the way may lead to what is not in it.
func (r Root) fill(root int) error {
	needed := slices.Concat(r.Needed, r.Wanted)
	for i, p := range needed {
		switch needed[i] = filepath.Clean(p); {
		case !filepath.IsAbs(p):
			return fmt.Errorf("%s is not absolute", p)
		case needed[i] == "/":
			return errors.New("all of the machine's files are needed")
		}
	}
	slices.Sort(needed)
	var mounted, missing []string
	below := func(p string, dirs []string) bool {
		return slices.ContainsFunc(dirs, func(d string) bool { return p == d || strings.HasPrefix(p, d+"/") })
	}
	for _, p := range needed {
		if below(p, mounted) || below(p, missing) {
			continue
		}
		err := mountAt(root, p)
		switch {
		case err == nil:
			mounted = append(mounted, p)
		case errors.Is(err, fs.ErrNotExist) && !slices.Contains(r.Needed, p):
			missing = append(missing, p)
		default:
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	for _, p := range needed {
		if err := same(root, p); err != nil {
			return err
		}
	}
	return nil
}

// mountAt mounts what is at path there in the new root.
func mountAt(root int, path string) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(tree)
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	dir, err := makeDirs(root, filepath.Dir(path)[1:])
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	name := filepath.Base(path)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = unix.Mkdirat(dir, name, 0o755)
	} else {
		err = unix.Mknodat(dir, name, unix.S_IFREG, 0)
	}
	if err != nil {
		return os.NewSyscallError("make the place for it", err)
	}
	return os.NewSyscallError("move_mount", unix.MoveMount(tree, "", dir, name, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// makeDirs makes the directories of a path and opens the last. No part of it is mounted,
// so that there are no links.
func makeDirs(root int, path string) (int, error) {
	dir, err := unix.Openat(root, ".", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("open", err)
	}
	for name := range strings.SplitSeq(path, "/") {
		if name == "" {
			continue
		}
		if err := unix.Mkdirat(dir, name, 0o755); err != nil && err != unix.EEXIST {
			unix.Close(dir)
			return -1, os.NewSyscallError("mkdir", err)
		}
		next, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		unix.Close(dir)
		if err != nil {
			return -1, os.NewSyscallError("open", err)
		}
		dir = next
	}
	return dir, nil
}

// same says whether a path leads to the same file in the new root.
func same(root int, path string) error {
	var here, there unix.Stat_t
	if err := unix.Stat(path, &here); err == unix.ENOENT {
		return nil
	} else if err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	fd, err := unix.Openat2(root, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err == nil {
		err = unix.Fstat(fd, &there)
		unix.Close(fd)
	}
	switch {
	case err == unix.ENOENT || err == nil && (here.Dev != there.Dev || here.Ino != there.Ino):
		return fmt.Errorf("%s leads through a link to what would be gone", path)
	case err != nil:
		return &fs.PathError{Op: "openat2", Path: path, Err: err}
	}
	return nil
}

// changeRoot makes root "/" and lets the tree around it go.
func changeRoot(root, old int) error {
	// What is missing is not to be made in memory.
	const flags = unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("", fmt.Sprintf("/proc/self/fd/%d", root), "", flags, ""); err != nil {
		return os.NewSyscallError("remount", err)
	}
	cwd, err := unix.Open(".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	defer unix.Close(cwd)
	if err := unix.Fchdir(root); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return errors.Join(os.NewSyscallError("pivot_root", err), unix.Fchdir(cwd))
	}
	// From here on nothing fails.
	return errors.Join(
		os.NewSyscallError("fchdir", unix.Fchdir(old)),
		os.NewSyscallError("umount", unix.Unmount(".", unix.MNT_DETACH)),
		os.NewSyscallError("chdir", unix.Chdir("/")),
	)
}
