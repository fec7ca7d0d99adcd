package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

// identity is the ordinary user that everything measured runs as.
type identity struct {
	name     string
	uid, gid int
	groups   []uint32
}

// benchUser is $SBX_TEST_USER, as for the tests.
func benchUser() (identity, error) {
	name := os.Getenv("SBX_TEST_USER")
	if name == "" {
		name = "sbxtest"
	}
	u, err := user.Lookup(name)
	if err != nil {
		return identity{}, fmt.Errorf("%w: run scripts/setup.sh, or set SBX_TEST_USER", err)
	}
	id := identity{name: name}
	if id.uid, err = strconv.Atoi(u.Uid); err != nil {
		return id, err
	}
	if id.gid, err = strconv.Atoi(u.Gid); err != nil {
		return id, err
	}
	groups, err := u.GroupIds()
	if err != nil {
		return id, err
	}
	for _, g := range groups {
		n, err := strconv.ParseUint(g, 10, 32)
		if err != nil {
			return id, err
		}
		id.groups = append(id.groups, uint32(n))
	}
	return id, nil
}

// command makes a command that runs as the user with a fresh environment, with dir
// as home and runtime as XDG_RUNTIME_DIR.
func (w *world) command(runtime string, args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = w.home
	cmd.Env = append([]string{
		"HOME=" + w.home, "USER=" + w.user.name, "LOGNAME=" + w.user.name, "SHELL=/bin/sh", "LANG=C.UTF-8", "TERM=dumb",
		"XDG_RUNTIME_DIR=" + runtime, "XDG_DATA_HOME=" + w.home + "/data", "TMPDIR=/var/tmp",
		"PATH=" + w.path,
	}, cmd.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uint32(w.user.uid), Gid: uint32(w.user.gid), Groups: w.user.groups},
		Setpgid:    true,
	}
	return cmd
}
