package fsoverlay

import (
	"errors"
	"fmt"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/rootless-sbx/sbx/internal/inroot"
	"golang.org/x/sys/unix"
)

// Attr are the attributes of one mount.
type Attr uint32

const (
	ReadOnly Attr = 1 << iota
	NoSuid
	NoDev
	NoExec
	StrictAtime
)

var attrNames = []struct {
	a    Attr
	name string
	api  uint64 // mount_setattr, fsmount
	flag uintptr
}{
	{ReadOnly, "ro", unix.MOUNT_ATTR_RDONLY, unix.MS_RDONLY},
	{NoSuid, "nosuid", unix.MOUNT_ATTR_NOSUID, unix.MS_NOSUID},
	{NoDev, "nodev", unix.MOUNT_ATTR_NODEV, unix.MS_NODEV},
	{NoExec, "noexec", unix.MOUNT_ATTR_NOEXEC, unix.MS_NOEXEC},
	{StrictAtime, "strictatime", unix.MOUNT_ATTR_STRICTATIME, unix.MS_STRICTATIME},
}

func (a Attr) String() string {
	var s []string
	for _, n := range attrNames {
		if a&n.a != 0 {
			s = append(s, n.name)
		}
	}
	return strings.Join(s, ",")
}

// MarshalText and UnmarshalText make a plan readable as JSON.
func (a Attr) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

func (a *Attr) UnmarshalText(b []byte) error {
	*a = 0
next:
	for _, s := range strings.Split(string(b), ",") {
		if s == "" {
			continue
		}
		for _, n := range attrNames {
			if n.name == s {
				*a |= n.a
				continue next
			}
		}
		return fmt.Errorf("unknown mount attribute %q", s)
	}
	return nil
}

func (a Attr) api() (v uint64) {
	for _, n := range attrNames {
		if a&n.a != 0 {
			v |= n.api
		}
	}
	return v
}

func (a Attr) flags() (v uintptr) {
	for _, n := range attrNames {
		if a&n.a != 0 {
			v |= n.flag
		}
	}
	return v
}

// newFS makes a file system and returns it as a detached mount.
func newFS(fstype string, attr Attr, opts []string) (int, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen %s: %w", fstype, err)
	}
	defer unix.Close(fs)
	for _, o := range opts {
		k, v, hasValue := strings.Cut(o, "=")
		if hasValue {
			err = unix.FsconfigSetString(fs, k, v)
		} else {
			err = unix.FsconfigSetFlag(fs, k)
		}
		if err != nil {
			return -1, fsError(fs, fmt.Sprintf("%s option %s", fstype, o), err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fsError(fs, "create "+fstype, err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attr.api()))
	if err != nil {
		return -1, fsError(fs, "fsmount "+fstype, err)
	}
	return mnt, nil
}

// fsError adds what the kernel wrote into the context's log, which says more
// than the errno: "e overlay: upper fs is missing required features".
func fsError(fs int, what string, err error) error {
	buf := make([]byte, 1024)
	var log []string
	for len(log) < 8 {
		n, rerr := unix.Read(fs, buf)
		if rerr != nil || n <= 0 {
			break
		}
		line := strings.TrimSpace(string(buf[:n]))
		if len(line) > 2 && line[1] == ' ' {
			line = line[2:] // severity
		}
		log = append(log, line)
	}
	if len(log) > 0 {
		return fmt.Errorf("%s: %s: %w", what, strings.Join(log, "; "), err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// cloneTree returns a detached copy of the mount at path (or at the descriptor
// dir if path is ""). In a user namespace mounts inherited from the host are
// locked together, so a copy without the mounts below it is refused with EINVAL
// where there are any.
func cloneTree(dir int, path string, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	fd, err := unix.OpenTree(dir, path, flags)
	if err != nil {
		return -1, fmt.Errorf("open_tree: %w", err)
	}
	return fd, nil
}

// attach mounts the detached tree on what the descriptor target refers to.
func attach(tree, target int) error {
	err := unix.MoveMount(tree, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// setAttr adds attributes to the mount that fd is the root of, and only adds: a
// nosuid, nodev or noexec that the host put on it stays.
func setAttr(fd int, a Attr, propagation uint64, recursive bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	ma := unix.MountAttr{Attr_set: a.api(), Propagation: propagation}
	if a&StrictAtime != 0 {
		ma.Attr_clr = unix.MOUNT_ATTR__ATIME
	}
	if err := unix.MountSetattr(fd, "", flags, &ma); err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}

// remount is setAttr for kernels before 5.12: an attached mount and, if
// recursive, every mount below it is remounted with the flags it has plus a.
// The flags have to be repeated because a remount that leaves out a locked one
// fails with EPERM.
func remount(fd int, a Attr, propagation uint64, recursive bool) error {
	if propagation != 0 {
		f := uintptr(propagation)
		if recursive {
			f |= unix.MS_REC
		}
		if err := unix.Mount("", inroot.FdPath(fd), "", f, ""); err != nil {
			return fmt.Errorf("mount propagation: %w", err)
		}
	}
	if a == 0 {
		return nil
	}
	if err := remountOne(fd, a); err != nil {
		return err
	}
	if !recursive {
		return nil
	}
	top, err := inroot.ReadlinkAt(unix.AT_FDCWD, inroot.FdPath(fd))
	if err != nil {
		return fmt.Errorf("path of the mount: %w", err)
	}
	below, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(i.Mountpoint, strings.TrimSuffix(top, "/")+"/"), false
	})
	if err != nil {
		return fmt.Errorf("mounts below %s: %w", top, err)
	}
	for _, m := range below {
		sub, err := unix.Open(m.Mountpoint, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue // covered by another mount, so nobody can reach it
		}
		if err == nil {
			err = remountOne(sub, a)
			unix.Close(sub)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", m.Mountpoint, err)
		}
	}
	return nil
}

func remountOne(fd int, a Attr) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return fmt.Errorf("fstatfs: %w", err)
	}
	flags := a.flags() | unix.MS_REMOUNT | unix.MS_BIND
	for _, k := range []struct{ st, ms uintptr }{
		{unix.ST_RDONLY, unix.MS_RDONLY}, {unix.ST_NOSUID, unix.MS_NOSUID}, {unix.ST_NODEV, unix.MS_NODEV},
		{unix.ST_NOEXEC, unix.MS_NOEXEC}, {unix.ST_NOATIME, unix.MS_NOATIME},
		{unix.ST_NODIRATIME, unix.MS_NODIRATIME}, {unix.ST_RELATIME, unix.MS_RELATIME},
	} {
		if uintptr(st.Flags)&k.st != 0 {
			flags |= k.ms
		}
	}
	if err := unix.Mount("", inroot.FdPath(fd), "", flags, ""); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	return nil
}
