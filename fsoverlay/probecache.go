package fsoverlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ProbeCache is what the caller keeps of a probe, as JSON. It is good as long as
// Key equals ProbeKey for the same directory.
type ProbeCache struct {
	Key     string        `json:"key"`
	Results []ProbeResult `json:"results"`
}

// Valid says whether the results belong to key and name every driver. Where none
// works they are not kept: a full disk is tried again.
func (c *ProbeCache) Valid(key string) bool {
	return c != nil && key != "" && c.Key == key && len(c.Results) == len(Drivers) &&
		slices.ContainsFunc(c.Results, func(r ProbeResult) bool { return r.OK })
}

// ProbeKey stands for what the result of a probe depends on: the kernel, the file
// system of dir, fuse-overlayfs and the access to /dev/fuse. It is cheap and
// needs no namespace. The kind of id mapping is the caller's to add.
func (p Prober) ProbeKey(dir string) (string, error) {
	var fsid unix.Statfs_t
	if err := unix.Statfs(dir, &fsid); err != nil {
		return "", &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	key := []any{2, kernelRelease(), fsid.Type, fsid.Fsid.Val, st.Dev}
	if prog, err := findFuse(p.FuseOverlayfs); err == nil {
		if err := unix.Stat(prog, &st); err != nil {
			return "", &fs.PathError{Op: "stat", Path: prog, Err: err}
		}
		key = append(key, prog, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec)
	}
	key = append(key, unix.Access("/dev/fuse", unix.R_OK|unix.W_OK) == nil)
	b, err := json.Marshal(key)
	return string(b), err
}

func findFuse(prog string) (string, error) {
	if prog == "" {
		prog = "fuse-overlayfs"
	}
	return exec.LookPath(prog)
}

// The first version that reads the marks of the kernel's overlay in user.*, and
// mounts without fusermount in a user namespace.
const fuseMajor, fuseMinor = 1, 10

// fuseProgram finds fuse-overlayfs and checks its version and the device.
func fuseProgram(name string) (string, error) {
	prog, err := findFuse(name)
	if err != nil {
		return "", &DriverError{Driver: DriverFuse, Reason: "fuse-overlayfs is not installed: " + err.Error(),
			Fix: "install the package fuse-overlayfs", Err: err}
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		reason, fix := explainFuse("open /dev/fuse")
		return "", &DriverError{Driver: DriverFuse, Reason: reason, Fix: fix, Err: err}
	}
	unix.Close(fd)
	return prog, nil
}

// fuseVersion refuses a fuse-overlayfs that is too old. Only the probe asks: it
// costs a process.
func fuseVersion(ctx context.Context, prog string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, prog, "--version")
	cmd.Env = []string{"LC_ALL=C"}
	out, err := cmd.Output()
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) && len(ee.Stderr) > 0 {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(ee.Stderr)))
		}
		return &DriverError{Driver: DriverFuse, Reason: prog + " does not tell its version: " + err.Error(), Err: err}
	}
	major, minor, ok := parseFuseVersion(string(out))
	if !ok || major > fuseMajor || major == fuseMajor && minor >= fuseMinor {
		return nil // a version that cannot be read is judged by the trial that follows
	}
	return &DriverError{Driver: DriverFuse,
		Reason: fmt.Sprintf("%s is version %d.%d, %d.%d is needed", prog, major, minor, fuseMajor, fuseMinor),
		Fix:    "install a newer fuse-overlayfs", Err: os.ErrInvalid}
}

func parseFuseVersion(out string) (major, minor int, ok bool) {
	for line := range strings.Lines(out) {
		if v, found := strings.CutPrefix(line, "fuse-overlayfs: version "); found {
			return leadingVersion(v)
		}
	}
	return 0, 0, false
}
