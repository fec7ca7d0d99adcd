package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

func checkRuntimeDir(_ context.Context, e Env) Check {
	c := Check{Name: "runtime-dir", Status: Degraded}
	const fix = "log in through systemd (loginctl enable-linger keeps the directory), or set XDG_RUNTIME_DIR to a directory of your own with mode 0700"
	dir := e.RuntimeDir
	fail := func(format string, args ...any) Check {
		c.Detail, c.Fix = fmt.Sprintf(format, args...), fix
		return c
	}
	if dir == "" {
		return fail("XDG_RUNTIME_DIR is not set")
	}
	c.Data = map[string]any{"path": dir}
	if !filepath.IsAbs(dir) {
		return fail("XDG_RUNTIME_DIR=%s is not absolute", dir)
	}
	fi, err := os.Stat(e.path(dir)) // a symlink is fine, what it leads to counts
	if err != nil {
		return fail("XDG_RUNTIME_DIR=%s: %v", dir, err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case !fi.IsDir():
		return fail("XDG_RUNTIME_DIR=%s is not a directory", dir)
	case ok && int(st.Uid) != e.UID:
		return fail("XDG_RUNTIME_DIR=%s belongs to uid %d, not to %d", dir, st.Uid, e.UID)
	case fi.Mode().Perm() != 0o700:
		c.Detail = fmt.Sprintf("XDG_RUNTIME_DIR=%s has mode %04o: others may look into it", dir, fi.Mode().Perm())
		c.Fix = "chmod 0700 " + dir
		return c
	}
	c.Status, c.Detail = OK, dir
	return c
}

// Logout says what becomes of the user's processes when he logs out.
func Logout(userName string) Check { return checkLinger(context.Background(), Env{UserName: userName}) }

func checkLinger(_ context.Context, e Env) Check {
	c := Check{Name: "linger", Status: OK}
	switch {
	case !e.exists("/run/systemd/system"):
		c.Detail = "systemd does not run here: nothing ends sandboxes at logout"
	case e.UserName == "" || strings.Contains(e.UserName, "/"):
		c.Detail = "not known for a user without a name"
	case e.exists("/var/lib/systemd/linger/" + e.UserName):
		c.Detail = "on: sandboxes in the background go on after logout"
	default:
		c.Status, c.Detail = Degraded, "off: sandboxes in the background end when you log out of your last session"
		c.Fix = "loginctl enable-linger " + e.UserName
	}
	return c
}
