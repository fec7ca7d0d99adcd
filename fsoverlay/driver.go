package fsoverlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/rootless-sbx/sbx/internal/inroot"
	"github.com/rootless-sbx/sbx/internal/wire"
	"golang.org/x/sys/unix"
)

// Names of the drivers, in the order of preference.
const (
	DriverNative = "native"
	DriverFuse   = "fuse"
	DriverCopy   = "copy"
)

// Drivers lists the names, best first.
var Drivers = []string{DriverNative, DriverFuse, DriverCopy}

// MaxLowers is how many lower directories a root may have, the init layer included.
const MaxLowers = 127

// RootSpec describes one root file system. All paths are absolute.
type RootSpec struct {
	// Driver is one of Drivers.
	Driver string `json:"driver"`
	// Lowers are the read-only directories, the top one first: the init layer,
	// then the image's layers. At least one, at most MaxLowers.
	Lowers []string `json:"lowers"`
	// Upper is the writable directory; it survives the mount. With ReadOnly it
	// may be empty, except for the copy driver, which keeps its tree there.
	Upper string `json:"upper,omitempty"`
	// Work is an empty directory on the file system of Upper, for the driver's own use.
	Work string `json:"work,omitempty"`
	// Merged is the directory where the root appears.
	Merged string `json:"merged"`
	// ReadOnly makes a view of the lowers without a writable directory. It is not
	// --read-only, which still needs mount points made: that is PlanConfig.ReadOnly.
	ReadOnly bool `json:"readOnly,omitempty"`
	// Volatile says that Upper will be thrown away: the kernel's overlay then does
	// not write the whole file system below it to the disk at fsync and unmount,
	// and mounts this Upper and Work only once. Other drivers take no notice.
	Volatile bool `json:"volatile,omitempty"`
	// FuseOverlayfs is the program; empty means the one found in PATH.
	FuseOverlayfs string `json:"fuseOverlayfs,omitempty"`
}

// Driver makes root file systems one way.
type Driver interface {
	Name() string
	// Prepare runs in the monitor: inside the user namespace and the monitor's own
	// mount namespace; for DriverFuse before init is cloned from it.
	Prepare(ctx context.Context, s RootSpec) (*Prepared, error)
	// Mount runs in init and makes the root appear at Merged.
	Mount(s RootSpec) error
}

// Prepared is what a driver keeps in the monitor for one root.
type Prepared struct {
	// Process serves the file system, nil if the kernel does.
	Process *FuseProcess
	// Notes are degradations that the user should hear about.
	Notes []string

	merged string
}

// Detach lets the monitor's own copy of the mount go. Call it once init has its
// own mount namespace: a fuse-overlayfs process ends when the last copy goes.
func (p *Prepared) Detach() error {
	if p == nil || p.merged == "" {
		return nil
	}
	err := unix.Unmount(p.merged, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: is not a mount any more
		return fail("detach the root file system", p.merged, err)
	}
	p.merged = ""
	return nil
}

// Close undoes Prepare: it detaches the mount and ends the process if there is
// one. What was written to Upper stays. It may be called again.
func (p *Prepared) Close() error {
	if p == nil {
		return nil
	}
	err := p.Detach()
	if p.Process != nil {
		err = errors.Join(err, p.Process.stop())
	}
	return err
}

// NewDriver returns the driver called name. A nil logger discards.
func NewDriver(name string, log *slog.Logger) (Driver, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	switch name {
	case DriverNative:
		return nativeDriver{}, nil
	case DriverFuse:
		return fuseDriver{log: log}, nil
	case DriverCopy:
		return copyDriver{log: log}, nil
	}
	return nil, &DriverError{Driver: name, Reason: "there is no such driver", Fix: "use native, fuse or copy"}
}

// check validates a spec before anything is done with it.
func (s *RootSpec) check() error {
	bad := func(format string, a ...any) error {
		return &wire.Error{Code: CodeInvalid, Step: "root file system", Msg: fmt.Sprintf(format, a...)}
	}
	switch {
	case len(s.Lowers) == 0:
		return bad("no lower directory")
	case len(s.Lowers) > MaxLowers:
		return bad("%d lower directories, limit %d", len(s.Lowers), MaxLowers)
	case s.Merged == "":
		return bad("no directory to mount on")
	case s.Upper == "" && (!s.ReadOnly || s.Driver == DriverCopy):
		return bad("no writable directory")
	case s.Work == "" && (!s.ReadOnly || s.Driver == DriverCopy):
		return bad("no work directory")
	}
	return nil
}

// openLowers opens the lowers so that they can be named by descriptor, whatever
// characters their paths contain and however long they are.
func openLowers(s *RootSpec) (fds []int, err error) {
	defer func() {
		if err != nil {
			closeAll(fds)
		}
	}()
	for _, l := range s.Lowers {
		fd, err := inroot.OpenDir(l)
		if err != nil {
			return fds, fail("open a layer", l, err)
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// isOverlay says whether path is on an overlay, which cannot hold an upper
// directory of another one.
func isOverlay(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && uint32(st.Type) == unix.OVERLAYFS_SUPER_MAGIC
}

// mkUpper makes the writable directory. It becomes "/", so other users must be
// able to enter it whatever our umask is.
func mkUpper(path string) error {
	if err := mkdirs(filepath.Dir(path)); err != nil {
		return err
	}
	err := os.Mkdir(path, 0o755)
	if err == nil {
		err = os.Chmod(path, 0o755)
	} else if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	return fail("make the writable directory", path, err)
}

func mkdirs(paths ...string) error {
	for _, p := range paths {
		if p == "" {
			continue
		}
		if err := os.MkdirAll(p, 0o755); err != nil {
			return fail("make a directory", p, err)
		}
	}
	return nil
}
