package fsoverlay

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// explain turns the failure of a probe into a reason and a fix.
func explain(driver, dir string, err error) (reason, fix string) {
	var de *DriverError
	if errors.As(err, &de) {
		return de.Reason, de.Fix
	}
	reason = err.Error()
	const elsewhere = "put the data directory on a local file system such as ext4, xfs or btrfs"
	kernel := kernelRelease()
	switch {
	case errors.Is(err, unix.EROFS):
		return reason, "put the data directory on a writable file system"
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return reason, "free some space in " + dir
	case driver == DriverNative && isOverlay(dir):
		return fmt.Sprintf("%s is on an overlay itself, which cannot hold the writable directory of another: %s", dir, reason),
			"mount a volume at the data directory, or from Linux 6.6 on a tmpfs"
	case errors.Is(err, errNoXattr):
		return fmt.Sprintf("%s (%s, %s)", errNoXattr, dir, fsName(dir)), elsewhere
	case errors.Is(err, errNoDType):
		return fmt.Sprintf("%s (%s, %s)", errNoDType, dir, fsName(dir)), elsewhere + " (xfs: made with ftype=1)"
	case driver == DriverCopy:
		return reason, ""
	case driver == DriverFuse:
		return explainFuse(reason)
	case errors.Is(err, unix.ENODEV):
		return "the kernel has no overlay file system: " + reason, "load the module overlay (modprobe overlay)"
	case errors.Is(err, unix.EPERM) && !kernelAtLeast(kernel, 5, 11):
		return fmt.Sprintf("Linux %s does not let a user namespace mount an overlay: %s", kernel, reason), "use Linux 5.11 or later"
	case errors.Is(err, unix.EINVAL) && !kernelAtLeast(kernel, 5, 11):
		return fmt.Sprintf("the overlay of Linux %s has no userxattr: %s", kernel, reason), "use Linux 5.11 or later"
	case errors.Is(err, errNoWhiteout):
		return fmt.Sprintf("%s (%s, %s)", reason, dir, fsName(dir)), elsewhere
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return reason, "a security module or the seccomp filter of a surrounding container may forbid mounts"
	case errors.Is(err, unix.EINVAL):
		return fmt.Sprintf("%s (the writable directory is on %s)", reason, fsName(dir)), elsewhere
	}
	return reason, ""
}

func explainFuse(reason string) (string, string) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		unix.Close(fd)
		return reason, ""
	case errors.Is(err, unix.ENOENT):
		return "there is no /dev/fuse: " + reason, "load the module fuse, or give the surrounding container --device /dev/fuse"
	case errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM):
		return "/dev/fuse cannot be opened: " + reason, "give the user access to /dev/fuse (mode 0666 on most systems)"
	}
	return fmt.Sprintf("/dev/fuse: %v: %s", err, reason), ""
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

func kernelAtLeast(release string, major, minor int) bool {
	a, b, ok := leadingVersion(release)
	return !ok || a > major || a == major && b >= minor // assume the best of what cannot be read
}

// leadingVersion reads "major.minor" at the start of s.
func leadingVersion(s string) (major, minor int, ok bool) {
	digits := func(s string) string {
		return s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
	}
	a := digits(s)
	rest, found := strings.CutPrefix(s[len(a):], ".")
	b := digits(rest)
	if !found || a == "" || b == "" {
		return 0, 0, false
	}
	major, err1 := strconv.Atoi(a)
	minor, err2 := strconv.Atoi(b)
	return major, minor, err1 == nil && err2 == nil
}

// fsName names the file system of path.
func fsName(path string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return err.Error()
	}
	if n, ok := map[uint32]string{
		unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "nfs", unix.TMPFS_MAGIC: "tmpfs", unix.EXT4_SUPER_MAGIC: "ext4",
		unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.FUSE_SUPER_MAGIC: "fuse", unix.V9FS_MAGIC: "9p",
		unix.MSDOS_SUPER_MAGIC: "vfat", unix.F2FS_SUPER_MAGIC: "f2fs", unix.ECRYPTFS_SUPER_MAGIC: "ecryptfs", unix.CIFS_SUPER_MAGIC: "cifs",
		unix.SMB2_SUPER_MAGIC: "smb", 0x2fc12fc1: "zfs",
	}[uint32(st.Type)]; ok {
		return n
	}
	return fmt.Sprintf("file system type %#x", uint32(st.Type))
}
