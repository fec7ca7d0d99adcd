package fsoverlay

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/rootless-sbx/sbx/internal/wire"
)

// Codes of the errors that cross a process boundary, see wire.Error.
const (
	CodeDriver   = "storage-driver"  // the driver cannot be used here
	CodeTarget   = "mount-target"    // the target of a mount is not acceptable
	CodeSource   = "mount-source"    // the source of a mount is missing or not acceptable
	CodeInvalid  = "invalid-mount"   // what the user wrote cannot be parsed
	CodeNoVolume = "volume-missing"  // no volume of that name
	CodeTooMany  = "too-many-mounts" // over a limit of this package
	CodeLandlock = "landlock"        // the kernel cannot enforce what is asked for
)

var (
	// ErrVolumeInUse is returned by Volumes.Remove while a sandbox holds the volume.
	ErrVolumeInUse = errors.New("volume is in use")
	// ErrNoVolume is returned for a volume that does not exist.
	ErrNoVolume = errors.New("no such volume")
	// ErrVolumeName is returned for a name that the store does not accept.
	ErrVolumeName = errors.New("invalid volume name")
	// ErrVolumeExists is returned by Volumes.Create for a name that is taken.
	ErrVolumeExists = errors.New("volume exists")
)

// DriverError says that a driver cannot make a root file system here.
type DriverError struct {
	// Driver is empty where none of them works.
	Driver string
	Reason string
	// Fix is what the user can do, empty if nothing is known to help.
	Fix string
	Err error
}

func (e *DriverError) Error() string {
	s := fmt.Sprintf("storage driver %q cannot be used: %s", e.Driver, e.Reason)
	if e.Driver == "" {
		s = "no storage driver works here: " + e.Reason
	}
	if e.Fix != "" {
		s += "; " + e.Fix
	}
	return s
}

func (e *DriverError) Unwrap() error { return e.Err }

// As gives errors.As the form that crosses processes, so that wire.ToError keeps
// the fix.
func (e *DriverError) As(target any) bool {
	w, ok := target.(**wire.Error)
	if ok {
		*w = &wire.Error{Code: CodeDriver, Step: "storage driver " + e.Driver, Msg: e.Reason, Fix: e.Fix}
		if e.Driver == "" {
			(*w).Step = "choose a storage driver"
		}
	}
	return ok
}

// ParseError says what is wrong with a mount that the user wrote.
type ParseError struct {
	// Flag is the option it came from, e.g. "--volume".
	Flag  string
	Input string
	Msg   string
}

func (e *ParseError) Error() string {
	return fmt.Sprintf("invalid value %q for %s: %s", e.Input, e.Flag, e.Msg)
}

// fail makes an error that can cross processes. A *wire.Error further down keeps
// its own, more exact step.
func fail(step, path string, err error) error {
	if err == nil {
		return nil
	}
	var we *wire.Error
	if errors.As(err, &we) {
		return err
	}
	w := &wire.Error{Step: step, Path: path}
	if errors.As(err, &w.Errno) {
		if err != error(w.Errno) {
			w.Msg = trimErrno(err.Error(), w.Errno)
		}
	} else {
		w.Msg = err.Error()
	}
	return w
}

func failf(code, step, path, fix, format string, args ...any) error {
	return &wire.Error{Code: code, Step: step, Path: path, Msg: fmt.Sprintf(format, args...), Fix: fix}
}

func trimErrno(s string, e syscall.Errno) string {
	t := e.Error()
	if s == t {
		return ""
	}
	if n := len(s) - len(t) - 2; n > 0 && s[n:] == ": "+t {
		return s[:n]
	}
	return s
}
