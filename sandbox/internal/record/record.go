package record

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/rootless-sbx/sbx/cgroup"
	"github.com/rootless-sbx/sbx/internal/atomicfile"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/userns"
	"golang.org/x/sys/unix"
)

// Version is that of the files. An older sbx refuses a newer one's.
const Version = 1

// Names of the files.
const (
	configName = "config.json"
	stateName  = "state.json"
)

const maxFile = 16 << 20

// Config is what was asked for and resolved.
type Config struct {
	Version int       `json:"version"`
	Created time.Time `json:"created"`
	// Image as it was named, and what that was; both empty with a RootFS.
	Image    string      `json:"image,omitempty"`
	ImageID  string      `json:"imageID,omitempty"`
	RootFS   string      `json:"rootfs,omitempty"`
	Platform string      `json:"platform,omitempty"`
	UserNS   userns.Mode `json:"userns"`
	// StorageDriver that was asked for; Start has the one that was chosen.
	StorageDriver string `json:"storageDriver,omitempty"`
	// Entrypoint and Cmd are the two parts of the command.
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	Exposed    []string `json:"exposed,omitempty"`
	// Resources are the limits.
	Resources cgroup.Limits `json:"resources,omitzero"`
	// Attached streams: those the sandbox was made for.
	AttachStdin  bool `json:"attachStdin,omitempty"`
	AttachStdout bool `json:"attachStdout,omitempty"`
	AttachStderr bool `json:"attachStderr,omitempty"`
	// Start is the monitor's order. Its Name is that of the creation: the
	// directory knows the present one.
	Start proto.Start `json:"start"`
}

// ImageName is what the sandbox was made of, as it was named.
func (c *Config) ImageName() string { return cmp.Or(c.Image, c.RootFS) }

// Statuses of a sandbox, Docker's.
const (
	Created    = "created"
	Running    = "running"
	Paused     = "paused"
	Restarting = "restarting"
	Removing   = "removing"
	Exited     = "exited"
	Dead       = "dead"
)

// State is what has become of it.
type State struct {
	Version    int       `json:"version"`
	Status     string    `json:"status"`
	MonitorPID int       `json:"monitorPID,omitempty"`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	FinishedAt time.Time `json:"finishedAt,omitzero"`
	ExitCode   int       `json:"exitCode,omitempty"`
	OOMKilled  bool      `json:"oomKilled,omitempty"`
	Error      string    `json:"error,omitempty"`
	// Restarts counts those of the restart policy.
	Restarts int `json:"restarts,omitempty"`
	// Stopped by somebody, so that it is not started again by itself.
	Stopped bool          `json:"stopped,omitempty"`
	Health  *proto.Health `json:"health,omitempty"`
	// Kept are the rights that the monitor has not shed, by the name of the stage, and why.
	Kept map[string]string `json:"kept,omitempty"`
	// LogLost counts the bytes of output that could not be logged.
	LogLost int64 `json:"logLost,omitempty"`
	// Volumes are the anonymous ones by their mount point.
	Volumes map[string]string `json:"volumes,omitempty"`
	proto.Started
}

// Alive says that there should be a monitor.
func (s *State) Alive() bool {
	return s.Status == Running || s.Status == Paused || s.Status == Restarting
}

// VersionError is that of a file that a newer sbx has written.
type VersionError struct {
	Path    string
	Version int
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s is of version %d, and this sbx knows %d: use the newer sbx", e.Path, e.Version, Version)
}

// WriteConfig writes config.json.
func WriteConfig(dir string, c *Config) error {
	c.Version = Version
	return write(dir, configName, c)
}

// ReadConfig reads it; fs.ErrNotExist if there is none.
func ReadConfig(dir string) (*Config, error) {
	c := &Config{}
	return c, read(dir, configName, c, &c.Version)
}

// UpdateConfig changes it. The caller is the owner of the directory, and does so one
// at a time.
func UpdateConfig(dir string, change func(*Config) error) error {
	c, err := ReadConfig(dir)
	if err == nil {
		err = change(c)
	}
	if err != nil {
		return err
	}
	return WriteConfig(dir, c)
}

// Change is what an update does to a record.
func (c *Config) Change(u proto.Update) (err error) {
	if !u.Limits.Zero() {
		if c.Resources, err = c.Resources.With(u.Limits); err != nil {
			return err
		}
	}
	if u.Restart != nil {
		c.Start.Life.Restart = *u.Restart
	}
	return nil
}

// WriteState writes state.json, also on a full disk. The caller is an owner of the
// directory.
func WriteState(dir string, s *State) error {
	s.Version = Version
	err := write(dir, stateName, s)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		if overwrite(dir, stateName, s) == nil {
			return nil
		}
	}
	return err
}

// overwrite changes a file in the room that it has, in one piece: on a full disk a sandbox
// that has ended must not be said to run, and must be removable.
func overwrite(dir, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if rest := int(fi.Size()) - len(b); rest > 0 {
		b = append(b, bytes.Repeat([]byte{' '}, rest)...)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	return f.Close() // some file systems say only now that there was no room
}

// ReadState reads it; fs.ErrNotExist if there is none.
func ReadState(dir string) (*State, error) {
	s := &State{}
	return s, read(dir, stateName, s, &s.Version)
}

// AtRest says whether a sandbox certainly does not run: its state begins with saying
// so. It is for who goes through hundreds.
func AtRest(dir string) bool {
	b, err := atomicfile.Read(filepath.Join(dir, stateName), 64)
	if err != nil {
		return false
	}
	for _, status := range []string{Exited, Created} {
		if bytes.HasPrefix(b, fmt.Appendf(nil, `{"version":%d,"status":%q,`, Version, status)) {
			return true
		}
	}
	return false
}

// Exists says whether the directory has a record, whatever its version.
func Exists(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, stateName))
	return err == nil
}

// Starting says whether the directory is that of a sandbox that is being started for
// the first time, whose start is being undone, or that is being removed.
func Starting(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, configName))
	return err == nil && !Exists(dir)
}

// Forget makes a directory one that has no record, before it is removed.
func Forget(dir string) error {
	if err := os.Remove(filepath.Join(dir, stateName)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func write(dir, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return atomicfile.Write(filepath.Join(dir, name), b)
}

func read(dir, name string, v any, version *int) error {
	path := filepath.Join(dir, name)
	b, err := atomicfile.Read(path, maxFile)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if *version > Version || *version < 1 {
		return &VersionError{Path: path, Version: *version}
	}
	return nil
}
