package image

import (
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// Whiteouts take the form that the kernel's overlay reads: a character device
// 0:0 in place of the file that is hidden, and the xattr user.overlay.opaque=y
// on a directory that hides all of lower ones. A whiteout concerns lower layers
// only: what this layer has under that name stays, in whichever order they come.
//
// Since Linux 5.8 anybody may make the device. Where it fails all the same
// (NFS, some FUSE file systems, older kernels), the fallback is an empty file
// ".wh.NAME" or ".wh..wh..opq", which fuse-overlayfs honours in lower layers,
// and UnpackResult.WhiteoutFiles says so.

// whiteout hides name in parent; full is the entry, for messages.
func (u *unpacker) whiteout(parent, name, full string) error {
	if name == "" || name == "." || name == ".." {
		return bad(full, "a whiteout of nothing")
	}
	dirfd, real, err := u.tree.dir(parent)
	if err != nil {
		return err
	}
	st, ok, err := lstatAt(dirfd, name)
	if err != nil {
		return err
	}
	if ok {
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return nil
		}
		fd, err := unix.Openat(dirfd, name, dirFlags, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: full, Err: err}
		}
		defer unix.Close(fd)
		return u.opaqueAt(fd, path.Join(real, name), true)
	}
	if !u.noWhiteout {
		err := unix.Mknodat(dirfd, name, unix.S_IFCHR, 0)
		switch err {
		case nil:
			return nil
		case unix.EPERM, unix.EACCES, unix.ENOSYS, unix.ENOTSUP, unix.EINVAL:
			u.noWhiteout = true
			u.note("%s: whiteouts are kept as files: mknod: %v", full, err)
		default:
			return &os.PathError{Op: "mknod", Path: full, Err: err}
		}
	}
	u.hide(path.Join(real, name), true)
	return u.whiteoutFile(dirfd, whPrefix+name)
}

// opaque hides what lower layers have in a directory.
func (u *unpacker) opaque(dir string) error {
	fd, real, err := u.tree.dir(dir)
	if err != nil {
		return err
	}
	return u.opaqueAt(fd, real, false)
}

// opaqueAt marks the directory of an O_PATH descriptor. itself: it replaces the
// one below, rather than taking its content away.
func (u *unpacker) opaqueAt(fd int, real string, itself bool) error {
	u.hide(real, itself)
	if real == "" {
		// The overlay does not look for the mark on the root of a layer:
		// whoever stacks the layers leaves out the lower ones.
		u.res.OpaqueRoot = true
		return nil
	}
	rfd, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: real, Err: err}
	}
	defer unix.Close(rfd)
	err = unix.Fsetxattr(rfd, xattrOpaque, []byte("y"), 0)
	switch err {
	case nil:
		return nil
	case unix.ENOTSUP, unix.EPERM:
		u.note("%s: opaque mark kept as a file: setxattr: %v", real, err)
		return u.whiteoutFile(rfd, whOpaque)
	}
	return &os.PathError{Op: "setxattr " + xattrOpaque, Path: real, Err: err}
}

func (u *unpacker) whiteoutFile(dirfd int, name string) error {
	fd, err := unix.Openat(dirfd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "create", Path: name, Err: err}
	}
	u.res.WhiteoutFiles = true
	return unix.Close(fd)
}
