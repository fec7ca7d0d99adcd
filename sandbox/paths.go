package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Options are an Engine's directories. The zero value uses the user's own, by the
// XDG base directory specification.
type Options struct {
	// DataDir holds images, volumes and the sandboxes' files; empty means
	// $XDG_DATA_HOME/sbx, else ~/.local/share/sbx.
	DataDir string
	// RuntimeDir holds sockets and locks; empty means $XDG_RUNTIME_DIR/sbx, else
	// a private directory below /tmp.
	RuntimeDir string
	// InitPath is the binary that the processes of a sandbox are started from;
	// empty means $SBX_INIT, else this program if it called MaybeInit.
	InitPath string
	// NetdLinger is how long a network's process stays after its last sandbox;
	// zero means $SBX_NETD_LINGER, else 3 s.
	NetdLinger time.Duration
	// Logger receives what is not an error; nil discards.
	Logger *slog.Logger
}

// ErrNoInit is returned when no binary is known to start a sandbox's processes from.
var ErrNoInit = errors.New("no init binary: call sandbox.MaybeInit first in main, or set Options.InitPath or SBX_INIT to the sbx binary")

func dataDir(dir string) (string, error) {
	if dir == "" {
		if x := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(x) {
			dir = filepath.Join(x, "sbx")
		} else {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", fmt.Errorf("find the data directory: %w; set XDG_DATA_HOME", err)
			}
			dir = filepath.Join(home, ".local", "share", "sbx")
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", &DirError{Dir: dir, Env: "XDG_DATA_HOME", Err: err}
	}
	// A read-only home shows here and not in the middle of a pull.
	if err := syscall.Access(dir, 0x2|0x1); err != nil {
		return "", &DirError{Dir: dir, Env: "XDG_DATA_HOME", Err: err}
	}
	// overlay options and /proc/self/mountinfo want the real name.
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", &DirError{Dir: dir, Env: "XDG_DATA_HOME", Err: err}
	}
	if err := closeToOthers(real); err != nil {
		return "", &DirError{Dir: dir, Env: "XDG_DATA_HOME", Err: err}
	}
	return real, nil
}

// closeToOthers takes the rights of other users from a directory of the user's that was
// made by hand, or under another umask.
func closeToOthers(dir string) error {
	fi, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if st := fi.Sys().(*syscall.Stat_t); int(st.Uid) != os.Geteuid() || fi.Mode().Perm()&0o077 == 0 {
		return nil
	}
	return os.Chmod(dir, 0o700)
}

// DirError says that one of the engine's directories cannot be used.
type DirError struct {
	Dir string
	Env string // the variable that names another
	Err error
}

func (e *DirError) Error() string {
	return fmt.Sprintf("directory %s cannot be used: %v; set %s to a directory that you can write to", e.Dir, e.Err, e.Env)
}

func (e *DirError) Unwrap() error { return e.Err }

// runtimeDir finds the directory for sockets: it must belong to the user and be
// closed to others, and may be a symlink. Without XDG_RUNTIME_DIR it is a
// directory below /tmp whose name anybody can guess, so its owner is checked.
func runtimeDir(dir string) (string, error) {
	env := "XDG_RUNTIME_DIR"
	if dir == "" {
		if x := os.Getenv(env); x != "" {
			dir = filepath.Join(x, "sbx")
		} else {
			dir = filepath.Join(os.TempDir(), "sbx-"+strconv.Itoa(os.Geteuid()))
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", &DirError{Dir: dir, Env: env, Err: err}
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", &DirError{Dir: dir, Env: env, Err: err}
	}
	fi, err := os.Lstat(real)
	if err != nil {
		return "", &DirError{Dir: dir, Env: env, Err: err}
	}
	if st := fi.Sys().(*syscall.Stat_t); int(st.Uid) != os.Geteuid() {
		return "", &DirError{Dir: dir, Env: env, Err: fmt.Errorf("it belongs to user %d", st.Uid)}
	}
	if err := closeToOthers(real); err != nil {
		return "", &DirError{Dir: dir, Env: env, Err: err}
	}
	return real, nil
}

func (o Options) initPath() (string, error) {
	p := o.InitPath
	if p == "" {
		p = os.Getenv("SBX_INIT")
	}
	if p != "" {
		p, err := filepath.Abs(p)
		if err != nil {
			return "", err
		}
		if err := syscall.Access(p, 0x1); err != nil {
			return "", &fs.PathError{Op: "init binary", Path: p, Err: err}
		}
		return p, nil
	}
	if !maybeInitCalled {
		return "", ErrNoInit
	}
	return "/proc/self/exe", nil
}
