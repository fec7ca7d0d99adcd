// Package sealed makes a copy of this process's program for processes that share a
// sandbox with hostile ones. Those can get hold of the file that another process
// executes, by /proc/PID/exe; it is the user's own, and so is root in a sandbox.
//
// The copy is the same file behind an overlay that has no writable layer: it costs
// neither memory nor time, and nothing can be changed through it, not its mode either.
// The mount belongs to no namespace, so that nobody can alter it, and goes with its
// last user. Where the kernel refuses such an overlay the copy is a sealed memory file.
package sealed

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// lowest keeps the descriptor out of the way of those that a child is given. From 64 on
// the table of descriptors would have to grow, for which the kernel makes a process with
// threads wait some 8 ms.
const lowest = 32

// elsewhere is a directory in which no program is.
const elsewhere = "/etc"

// Program is what to execute in place of /proc/self/exe.
type Program struct{ file *os.File }

// Path is the program's for this process and for children that it clones.
func (p *Program) Path() string {
	if p == nil {
		return "/proc/self/exe"
	}
	return "/proc/self/fd/" + strconv.Itoa(int(p.file.Fd()))
}

// Self makes the copy. other is a directory beside that of the program, for an overlay
// wants two, or one below it. The calling process has CAP_SYS_ADMIN over its mount namespace.
//
// A program with an interpreter gets none (nil): its libraries may be looked for
// beside it.
func Self(other string) (*Program, error) {
	interpreted, err := hasInterpreter()
	if err != nil || interpreted {
		return nil, err
	}
	fd, err := behindOverlay(other)
	if err != nil { // one of the two directories is below the other
		fd, err = behindOverlay(elsewhere)
	}
	if err != nil {
		var merr error
		if fd, merr = inMemory(); merr != nil {
			return nil, errors.Join(err, merr)
		}
	}
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, lowest)
	unix.Close(fd)
	if err != nil {
		return nil, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	return &Program{os.NewFile(uintptr(high), "sealed program")}, nil
}

// hasInterpreter tells whether the kernel has loaded one with this program.
func hasInterpreter() (bool, error) {
	const base = 7 // AT_BASE
	auxv, err := unix.Auxv()
	if err != nil {
		return false, fmt.Errorf("read the auxiliary vector: %w", err)
	}
	for _, a := range auxv {
		if a[0] == base {
			return a[1] != 0, nil
		}
	}
	return false, nil
}

// behindOverlay returns the program's file on a detached mount.
func behindOverlay(other string) (int, error) {
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return -1, err
	}
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(dir)
	var there, here unix.Stat_t
	if err := unix.Fstatat(dir, filepath.Base(path), &there, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return -1, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if err := unix.Stat("/proc/self/exe", &here); err != nil {
		return -1, os.NewSyscallError("stat", err)
	}
	if there.Dev != here.Dev || there.Ino != here.Ino {
		return -1, fmt.Errorf("%s is another program by now", path)
	}
	second, err := unix.Open(other, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: other, Err: err}
	}
	defer unix.Close(second)
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen overlay", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "lowerdir", fmt.Sprintf("/proc/self/fd/%d:/proc/self/fd/%d", dir, second)); err != nil {
		return -1, os.NewSyscallError("fsconfig lowerdir", err)
	}
	if err := unix.FsconfigSetFlag(fs, "userxattr"); err != nil {
		return -1, os.NewSyscallError("fsconfig userxattr", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, os.NewSyscallError("fsconfig create", err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return -1, os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(mnt) // the file keeps the mount
	fd, err := unix.Openat(mnt, filepath.Base(path), unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open sealed", Path: path, Err: err}
	}
	return fd, nil
}

// inMemory returns a copy that can be neither written nor resized.
func inMemory() (int, error) {
	fd, err := unix.MemfdCreate("sbx", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "copy of the program")
	defer f.Close()
	src, err := os.Open("/proc/self/exe")
	if err != nil {
		return -1, err
	}
	defer src.Close()
	if _, err := io.Copy(f, src); err != nil {
		return -1, fmt.Errorf("copy the program into memory: %w", err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return -1, os.NewSyscallError("fcntl F_ADD_SEALS", err)
	}
	// What is open for writing is not executed.
	ro, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_PATH|unix.O_CLOEXEC, 0)
	return ro, os.NewSyscallError("open the copy", err)
}
