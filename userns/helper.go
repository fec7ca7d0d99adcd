package userns

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

const installFix = "ask the administrator: apt install uidmap (Debian, Ubuntu), dnf install shadow-utils (Fedora), apk add shadow-uidmap (Alpine)"

// findHelpers returns the paths of both helpers.
func findHelpers(cfg MappingConfig, h *host) (uidmap, gidmap string, err error) {
	uidmap, herr := findHelper("newuidmap", cfg.NewUIDMap, unix.CAP_SETUID, h)
	if herr != nil {
		return "", "", herr
	}
	gidmap, herr = findHelper("newgidmap", cfg.NewGIDMap, unix.CAP_SETGID, h)
	if herr != nil {
		return "", "", herr
	}
	return uidmap, gidmap, nil
}

// findHelper returns the path of newuidmap or newgidmap if it is there and can
// gain capability cpb (CAP_SETUID or CAP_SETGID) when it is executed.
func findHelper(name, configured string, cpb uint, hs *host) (string, *Error) {
	path := configured
	fail := func(msg, fix string, errno syscall.Errno) (string, *Error) {
		return "", &Error{Kind: ErrNoHelper, Step: "look for " + name, Path: path, Msg: msg, Fix: fix, Errno: errno}
	}
	if path == "" {
		var err error
		if path, err = exec.LookPath(name); err != nil {
			path = ""
			for _, dir := range []string{"/usr/bin/", "/bin/"} { // PATH may be unset or odd
				if _, err := os.Stat(dir + name); err == nil {
					path = dir + name
					break
				}
			}
			if path == "" {
				return fail(name+" is not installed", installFix, 0)
			}
		}
	}
	fi, err := os.Stat(path)
	if err != nil {
		return fail(name+" is not installed", installFix, errnoOf(err))
	}
	if !fi.Mode().IsRegular() || fi.Mode().Perm()&0o111 == 0 {
		return fail("it is not an executable file", installFix, 0)
	}
	if hs.noNewPrivs {
		return fail("no_new_privs is set on this process, which takes away the privilege of set-user-ID programs",
			"start sbx without no-new-privileges (Docker --security-opt no-new-privileges, systemd NoNewPrivileges=)", 0)
	}
	if !hs.bounding(cpb) {
		return fail(fmt.Sprintf("capability %d is not in the bounding set of this process, so the helper cannot gain it", cpb),
			"give the outer container CAP_SETUID and CAP_SETGID", 0)
	}
	var fsst unix.Statfs_t
	if err := unix.Statfs(path, &fsst); err == nil && fsst.Flags&unix.ST_NOSUID != 0 {
		return fail("its file system is mounted nosuid", "ask the administrator to mount it without nosuid", 0)
	}
	if setuidRoot(fi) || hasFileCap(path, cpb) {
		return path, nil
	}
	return fail("it is neither set-user-ID root nor has file capabilities",
		"ask the administrator: chmod u+s "+path+" (or reinstall the package)", 0)
}

func setuidRoot(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && st.Uid == 0 && fi.Mode()&fs.ModeSetuid != 0
}

// hasFileCap reads the permitted set out of security.capability.
func hasFileCap(path string, cpb uint) bool {
	var b [64]byte
	n, err := unix.Getxattr(path, "security.capability", b[:])
	return err == nil && n >= 8 && cpb < 32 && binary.LittleEndian.Uint32(b[4:])&(1<<cpb) != 0
}
