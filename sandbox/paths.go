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

// dataDir finds and makes the directory for what lasts, which belongs to the user.
func dataDir(dir string) (string, error) {
	const env = "XDG_DATA_HOME"
	if dir == "" {
		if x := os.Getenv(env); filepath.IsAbs(x) {
			dir = filepath.Join(x, "sbx")
		} else {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", fmt.Errorf("find the data directory: %w; set %s", err, env)
			}
			dir = filepath.Join(home, ".local", "share", "sbx")
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return "", &DirError{Dir: dir, Env: env, Err: err}
	}
	real, err := ownDir(dir)
	if err == nil {
		// A read-only home shows here and not in the middle of a pull.
		err = syscall.Access(real, 0x2|0x1)
	}
	if err != nil {
		return "", &DirError{Dir: dir, Env: env, Err: err}
	}
	return real, nil
}

// ownDir makes a directory if there is none, makes sure that it is the user's, takes the
// rights of others from it, and returns its real name, as overlay options and
// /proc/self/mountinfo want it. It may be a link, of the user's or root's: in /tmp anybody
// can make one to a directory of the user's, which the kernel may not follow either.
func ownDir(dir string) (string, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	fi, err := os.Lstat(dir)
	if err != nil {
		return "", err
	}
	if uid := fi.Sys().(*syscall.Stat_t).Uid; fi.Mode()&fs.ModeSymlink != 0 && uid != 0 && int(uid) != os.Geteuid() {
		return "", fmt.Errorf("it is a link made by user %d, and you are user %d", uid, os.Geteuid())
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", err
	}
	if fi, err = os.Lstat(real); err != nil {
		return "", err
	}
	switch uid := fi.Sys().(*syscall.Stat_t).Uid; {
	case int(uid) != os.Geteuid():
		return "", fmt.Errorf("it belongs to user %d, and you are user %d", uid, os.Geteuid())
	case !fi.IsDir():
		return "", syscall.ENOTDIR
	case fi.Mode().Perm()&0o077 != 0:
		return real, os.Chmod(real, 0o700)
	}
	return real, nil
}

// DirError says that one of the engine's directories cannot be used.
type DirError struct {
	Dir string
	Env string // the variable that names another
	Err error
}

func (e *DirError) Error() string { return e.what() + "; " + e.fix() }

func (e *DirError) what() string { return fmt.Sprintf("directory %s cannot be used: %v", e.Dir, e.Err) }

func (e *DirError) fix() string {
	return fmt.Sprintf("set %s to a directory of your own that you can write to", e.Env)
}

func (e *DirError) Unwrap() error { return e.Err }

// runtimeDir finds and makes the directory for sockets. Without XDG_RUNTIME_DIR it is one
// below /tmp whose name anybody can guess, and make before us.
func runtimeDir(dir string) (string, error) {
	const env = "XDG_RUNTIME_DIR"
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
	real, err := ownDir(dir)
	if err != nil {
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
