package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

func checkTun(_ context.Context, e Env) Check {
	return e.device("tun", "/dev/net/tun", "the packet link (a veth pair) is used instead")
}

func checkFuse(_ context.Context, e Env) Check {
	return e.device("fuse", "/dev/fuse", "fuse-overlayfs cannot be used")
}

// device opens a device node as sbx would.
func (e Env) device(name, path, without string) Check {
	c := Check{Name: name, Status: Degraded}
	fi, err := os.Stat(e.path(path))
	if err == nil && fi.Mode()&fs.ModeCharDevice == 0 {
		err = errors.New("it is not a device")
	}
	if err == nil {
		c.Data = map[string]any{"mode": fmt.Sprintf("%04o", fi.Mode().Perm())}
		var f *os.File
		if f, err = os.OpenFile(e.path(path), os.O_RDWR|syscall.O_NONBLOCK, 0); err == nil {
			f.Close()
			c.Status, c.Detail = OK, fmt.Sprintf("%s can be opened (mode %04o)", path, fi.Mode().Perm())
			return c
		}
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	c.Detail = fmt.Sprintf("%s: %v; %s", path, err, without)
	switch {
	case absent(err):
		c.Fix = "ask the administrator: modprobe " + name + "; in a container, start it with --device " + path
	case errors.Is(err, fs.ErrPermission):
		c.Fix = "ask the administrator: chmod 0666 " + path + "; in a container, start it with --device " + path
	default: // the node is there and its module is not
		c.Fix = "ask the administrator: modprobe " + name
	}
	return c
}

func checkFuseOverlay(ctx context.Context, e Env) Check {
	c := Check{Name: "fuse-overlayfs", Status: Degraded}
	const fix = "ask the administrator: apt install fuse-overlayfs"
	path, err := e.LookPath("fuse-overlayfs")
	if err != nil {
		c.Detail, c.Fix = "not installed; it is needed only where the kernel's own overlay cannot be used", fix
		return c
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	version := fuseOverlayVersion(string(out))
	major, minor, ok := parseRelease(version)
	switch {
	case err != nil:
		c.Detail, c.Fix = fmt.Sprintf("%s --version: %v", path, err), "reinstall fuse-overlayfs"
	case !ok:
		c.Detail, c.Fix = path+" does not say its version", fix
	case major < 1 || major == 1 && minor < 10:
		c.Detail, c.Fix = fmt.Sprintf("%s is version %s; 1.10 or later is needed", path, version), "a newer fuse-overlayfs"
	default:
		c.Status, c.Detail = OK, fmt.Sprintf("%s, version %s", path, version)
	}
	c.Data = map[string]any{"path": path, "version": version}
	return c
}

func fuseOverlayVersion(out string) string {
	for line := range strings.Lines(out) {
		if v, ok := strings.CutPrefix(line, "fuse-overlayfs: version "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
