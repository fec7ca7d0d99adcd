package fsoverlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/rootless-sbx/sbx/internal/rmtree"
	"golang.org/x/sys/unix"
)

// ProbeResult says whether a driver works, and if not, why and what would help.
type ProbeResult struct {
	Driver string `json:"driver"`
	OK     bool   `json:"ok"`
	Reason string `json:"reason,omitempty"`
	Fix    string `json:"fix,omitempty"`
}

// Prober tries the drivers. The zero value works.
type Prober struct {
	// FuseOverlayfs is the program; empty means the one found in PATH.
	FuseOverlayfs string
	// Logger; nil discards.
	Logger *slog.Logger
}

// Probe is Prober{}.Probe.
func Probe(ctx context.Context, dir string) []ProbeResult { return Prober{}.Probe(ctx, dir) }

// Probe makes a root with every driver in a scratch directory in dir, which
// should be where the writable layers will be, changes it, and looks at what
// became of it. It must run inside the user namespace with a mount namespace of
// its own, as the monitor does. It takes a few milliseconds, some ten where
// fuse-overlayfs is started; see ProbeKey for keeping the results.
func (p Prober) Probe(ctx context.Context, dir string) []ProbeResult {
	out := make([]ProbeResult, 0, len(Drivers))
	for _, name := range Drivers {
		r := ProbeResult{Driver: name, OK: true}
		if err := p.try(ctx, name, dir); err != nil {
			r.OK = false
			r.Reason, r.Fix = explain(name, dir, err)
		}
		out = append(out, r)
	}
	return out
}

// Choose returns the best driver that works, or the forced one. If that does not
// work, or none does, the error is a *DriverError.
func Choose(results []ProbeResult, forced string) (string, error) {
	var reasons []string
	var fix string // of the last resort: the easiest to have
	for _, name := range Drivers {
		if forced != "" && name != forced {
			continue
		}
		for _, r := range results {
			if r.Driver != name {
				continue
			}
			if r.OK {
				return name, nil
			}
			if forced != "" {
				return "", &DriverError{Driver: name, Reason: r.Reason, Fix: r.Fix}
			}
			reasons = append(reasons, name+": "+r.Reason)
			if r.Fix != "" {
				fix = r.Fix
			}
		}
	}
	if forced != "" {
		_, err := NewDriver(forced, nil)
		if err == nil {
			err = &DriverError{Driver: forced, Reason: "it was not probed"}
		}
		return "", err
	}
	return "", &DriverError{Reason: strings.Join(reasons, "; "), Fix: fix}
}

// try makes a root of two layers, changes it, and checks what is seen.
func (p Prober) try(ctx context.Context, name, dir string) (err error) {
	d, err := NewDriver(name, p.Logger)
	if err != nil {
		return err
	}
	if name == DriverFuse {
		prog, err := fuseProgram(p.FuseOverlayfs)
		if err != nil {
			return err
		}
		if err := fuseVersion(ctx, prog); err != nil {
			return err
		}
	}
	scratch, err := os.MkdirTemp(dir, ".probe-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rmtree.Remove(scratch)) }()
	at := func(s ...string) string { return filepath.Join(append([]string{scratch}, s...)...) }
	s := RootSpec{Driver: name, Lowers: []string{at("l1"), at("l0")}, Upper: at("u"), Work: at("w"), Merged: at("m"),
		FuseOverlayfs: p.FuseOverlayfs}
	if name == DriverNative {
		if err := probeXattr(scratch); err != nil {
			return err
		}
	}
	if err := probeLayers(at, name == DriverNative); err != nil {
		return err
	}
	if name != DriverCopy {
		if err := probeTypes(scratch); err != nil {
			return err
		}
	}
	prep, err := d.Prepare(ctx, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, prep.Close()) }()
	if err := d.Mount(s); err != nil {
		return err
	}
	err = probeRoot(s.Merged)
	if name != DriverFuse { // the one mount there is the Prepared's
		err = errors.Join(err, unix.Unmount(s.Merged, unix.MNT_DETACH))
	}
	if err == nil && name == DriverNative {
		err = probeMarks(at)
	}
	return err
}

// probeLayers makes two layers, the upper of which hides a file and the contents
// of a directory: with the marks of the kernel's overlay if need be, else with
// those that the file system takes, as the layers of an image are unpacked.
func probeLayers(at func(...string) string, kernelMarks bool) error {
	for _, d := range []string{at("l0"), at("l0", "d"), at("l0", "d", "sub"), at("l0", "o"), at("l1"), at("l1", "o")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	for _, f := range []string{at("l0", "a"), at("l0", "hidden"), at("l0", "d", "x"), at("l0", "o", "hidden"), at("l1", "b")} {
		if err := os.WriteFile(f, []byte("probe"), 0o644); err != nil {
			return err
		}
	}
	if err := unix.Mknod(at("l1", "hidden"), unix.S_IFCHR, 0); kernelMarks && err != nil {
		return fmt.Errorf("%w: mknod: %w", errNoWhiteout, err)
	} else if err != nil {
		if err := os.WriteFile(at("l1", whPrefix+"hidden"), nil, 0o600); err != nil {
			return err
		}
	}
	if err := unix.Setxattr(at("l1", "o"), opaqueXattr, []byte("y"), 0); kernelMarks && err != nil {
		return fmt.Errorf("mark a directory as opaque: %w", err)
	} else if err != nil {
		return os.WriteFile(at("l1", "o", whOpaque), nil, 0o600)
	}
	return nil
}

var (
	errNoXattr    = errors.New("the file system keeps no user.* attributes")
	errNoDType    = errors.New("the file system does not tell the types of directory entries")
	errNoWhiteout = errors.New("whiteouts (character device 0:0) cannot be made")
)

// probeXattr checks what the kernel's overlay needs from the file system of its
// writable directory, to say it more clearly than the kernel does.
func probeXattr(dir string) error {
	err := unix.Setxattr(dir, "user.overlay.probe", []byte("y"), 0)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return errNoXattr
	}
	if err != nil {
		return fmt.Errorf("set user.overlay.probe: %w", err)
	}
	return nil
}

// probeTypes does so for what both overlays need.
func probeTypes(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Getdents(fd, buf)
	if err != nil {
		return fmt.Errorf("getdents: %w", err)
	}
	// struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name.
	for b := buf[:n]; len(b) > 19; {
		size := int(b[16]) | int(b[17])<<8
		if size < 20 || size > len(b) {
			break
		}
		if b[18] == unix.DT_UNKNOWN && b[19] != '.' {
			return errNoDType
		}
		b = b[size:]
	}
	return nil
}

// probeRoot uses the root as an image build would.
func probeRoot(root string) error {
	in := func(p string) string { return filepath.Join(root, p) }
	// Twice: once a directory was listed, fuse-overlayfs 1.10 forgets that a file
	// ".wh..wh..opq" hides what is below it.
	for range 2 {
		for _, f := range []string{"hidden", "o/hidden"} {
			if _, err := os.Lstat(in(f)); !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("the mark of a layer that hides /%s is not honoured (%v)", f, err)
			}
		}
		for _, d := range []string{"", "o"} {
			if _, err := os.ReadDir(in(d)); err != nil {
				return err
			}
		}
	}
	if err := os.WriteFile(in("b"), []byte("changed"), 0o644); err != nil {
		return fmt.Errorf("copy up: %w", err)
	}
	if err := os.Remove(in("a")); err != nil {
		return fmt.Errorf("remove a file of a layer: %w", err)
	}
	if err := os.RemoveAll(in("d")); err != nil {
		return fmt.Errorf("remove a directory of a layer: %w", err)
	}
	if err := os.Mkdir(in("d"), 0o755); err != nil {
		return fmt.Errorf("make a directory anew: %w", err)
	}
	names, err := os.ReadDir(in("d"))
	if err != nil {
		return err
	}
	if len(names) != 0 {
		return errors.New("a directory that was made anew shows what is below it")
	}
	if err := os.Rename(in("b"), in("c")); err != nil {
		return fmt.Errorf("rename: %w", err)
	}
	if _, err := os.Lstat(in("a")); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("a removed file is still there: %v", err)
	}
	return nil
}

// probeMarks looks for the overlay's marks in the writable directory: a kernel
// that does not write them in user.* would lose them when it is mounted again.
func probeMarks(at func(...string) string) error {
	var st unix.Stat_t
	if err := unix.Lstat(at("u", "a"), &st); err != nil {
		return fmt.Errorf("whiteout in the writable layer: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		return fmt.Errorf("whiteout in the writable layer has mode %o", st.Mode)
	}
	var b [4]byte
	if n, err := unix.Lgetxattr(at("u", "d"), opaqueXattr, b[:]); err != nil || n != 1 || b[0] != 'y' {
		return fmt.Errorf("opaque directory in the writable layer is not marked: %w", errors.Join(err, errNoXattr))
	}
	return nil
}
