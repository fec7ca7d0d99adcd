package fsoverlay

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rootless-sbx/sbx/internal/flock"
	"github.com/rootless-sbx/sbx/internal/rmtree"
	"golang.org/x/sys/unix"
)

const (
	volumeData  = "_data"
	volumeMeta  = "volume.json"
	volumeUse   = "use.lock" // shared by sandboxes that mount the volume
	storeLock   = ".lock"    // held while the set of volumes changes
	trashPrefix = ".trash-"
	newPrefix   = ".new-"
)

// Volumes is the store of volumes in one directory. The zero values of all but
// Root work. Several processes may use one Root.
//
//	Root/.lock             exclusive while a volume is made or removed
//	Root/NAME/volume.json  name, time, labels
//	Root/NAME/use.lock     shared lock of each Hold; removal wants it exclusively
//	Root/NAME/_data        the contents
//	Root/NAME/fill.*       see fillVolume
type Volumes struct {
	Root string
	// RemoveTree removes a directory whose files may belong to subordinate ids, in
	// the user namespace. Nil means to remove it in this process.
	RemoveTree func(ctx context.Context, path string) error
	// Event is told that a volume was made or removed ("create", "destroy"); nil: nobody.
	Event func(action, name string)
	// Logger; nil discards.
	Logger *slog.Logger
}

func (v *Volumes) event(action, name string) {
	if v.Event != nil {
		v.Event(action, name)
	}
}

// Volume is one of them.
type Volume struct {
	Name      string            `json:"name"`
	Created   time.Time         `json:"created"`
	Labels    map[string]string `json:"labels,omitempty"`
	Anonymous bool              `json:"anonymous,omitempty"`
	// DataDir holds the contents.
	DataDir string `json:"-"`
}

// ValidVolumeName says whether the store takes the name: [a-zA-Z0-9][a-zA-Z0-9_.-]*,
// two to 255 bytes, as with Docker.
func ValidVolumeName(s string) bool {
	if len(s) < 2 || len(s) > 255 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("_.-", rune(c))) {
			return false
		}
	}
	return true
}

// Create makes a volume. An empty name makes an anonymous one with a random
// name. ErrVolumeExists comes with the volume that has the name.
func (v *Volumes) Create(ctx context.Context, name string, labels map[string]string) (*Volume, error) {
	vol := Volume{Name: name, Created: time.Now().UTC(), Labels: labels}
	if name == "" {
		vol.Anonymous, vol.Name = true, randomName()
	}
	if !ValidVolumeName(vol.Name) {
		return nil, fmt.Errorf("%w %q: use letters, digits, '_', '.' and '-', at least two", ErrVolumeName, name)
	}
	unlock, err := v.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if old, err := v.Get(vol.Name); err == nil {
		return old, fmt.Errorf("%w: %s", ErrVolumeExists, name)
	} else if !errors.Is(err, ErrNoVolume) {
		return nil, err
	}
	tmp, err := os.MkdirTemp(v.Root, newPrefix)
	if err != nil {
		return nil, fmt.Errorf("create volume %s: %w", vol.Name, err)
	}
	err = func() error {
		if err := os.Chmod(tmp, 0o755); err != nil { // sandbox ids must get through
			return err
		}
		b, err := json.Marshal(vol)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(tmp, volumeMeta), b, 0o644); err != nil {
			return err
		}
		// The locks belong to the user, whatever id makes use of them later.
		for _, f := range []string{volumeUse, fillLock} {
			if err := os.WriteFile(filepath.Join(tmp, f), nil, 0o600); err != nil {
				return err
			}
		}
		data := filepath.Join(tmp, volumeData)
		if err := os.Mkdir(data, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(data, 0o755); err != nil { // whatever the umask
			return err
		}
		return os.Rename(tmp, filepath.Join(v.Root, vol.Name))
	}()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create volume %s: %w", vol.Name, err), rmtree.Remove(tmp))
	}
	vol.DataDir = v.data(vol.Name)
	v.event("create", vol.Name)
	return &vol, nil
}

// Get returns the volume name, or ErrNoVolume.
func (v *Volumes) Get(name string) (*Volume, error) {
	if !ValidVolumeName(name) {
		return nil, fmt.Errorf("%w %q", ErrVolumeName, name)
	}
	b, err := os.ReadFile(filepath.Join(v.Root, name, volumeMeta))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNoVolume, name)
	}
	if err != nil {
		return nil, fmt.Errorf("read volume %s: %w", name, err)
	}
	vol := Volume{}
	if err := json.Unmarshal(b, &vol); err != nil {
		return nil, fmt.Errorf("read volume %s: %w", name, err)
	}
	vol.Name, vol.DataDir = name, v.data(name)
	return &vol, nil
}

// List returns all volumes by name.
func (v *Volumes) List() ([]*Volume, error) {
	es, err := os.ReadDir(v.Root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	var out []*Volume
	for _, e := range es {
		if !ValidVolumeName(e.Name()) {
			continue
		}
		vol, err := v.Get(e.Name())
		if errors.Is(err, ErrNoVolume) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, vol)
	}
	return out, nil
}

// Remove removes a volume that no sandbox holds. It is gone at once; its files
// may take longer, and what could not be removed is tried again next time.
func (v *Volumes) Remove(ctx context.Context, name string) error {
	if _, err := v.Get(name); err != nil {
		return err
	}
	unlock, err := v.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	use, err := openLock(filepath.Join(v.Root, name, volumeUse))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNoVolume, name)
	}
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	defer use.Close()
	if err := flock.Try(use, unix.LOCK_EX); errors.Is(err, flock.ErrLocked) {
		return fmt.Errorf("%w: %s", ErrVolumeInUse, name)
	} else if err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	// The lock file goes along, so nobody can hold the volume any more.
	if err := os.Rename(filepath.Join(v.Root, name), filepath.Join(v.Root, trashPrefix+randomName())); err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	v.event("destroy", name)
	trash, err := v.trash()
	unlock()
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	return v.emptyTrash(ctx, trash)
}

// trash lists what removals and crashes left. The caller holds the lock, so what
// looks half made is nobody's.
func (v *Volumes) trash() ([]string, error) {
	es, err := os.ReadDir(v.Root)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range es {
		name := e.Name()
		if strings.HasPrefix(name, newPrefix) {
			name = trashPrefix + randomName()
			if err := os.Rename(filepath.Join(v.Root, e.Name()), filepath.Join(v.Root, name)); err != nil {
				return nil, err
			}
		}
		if strings.HasPrefix(name, trashPrefix) {
			out = append(out, filepath.Join(v.Root, name))
		}
	}
	return out, nil
}

// emptyTrash runs without the lock, since it may take long. Another process may
// be at the same.
func (v *Volumes) emptyTrash(ctx context.Context, trash []string) error {
	remove := v.RemoveTree
	if remove == nil {
		remove = func(_ context.Context, p string) error { return rmtree.Remove(p) }
	}
	var errs []error
	for _, p := range trash {
		if err := remove(ctx, p); err != nil {
			if _, serr := os.Lstat(p); !errors.Is(serr, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("files of a removed volume: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

// Hold keeps volumes from being removed until it is closed or its process ends.
type Hold struct{ files []*os.File }

// Files are the locks themselves, to be handed to another process: the volumes
// stay held until every copy is closed.
func (h *Hold) Files() []*os.File { return h.files }

// Close lets go.
func (h *Hold) Close() error {
	if h == nil {
		return nil
	}
	var errs []error
	for _, f := range h.files {
		errs = append(errs, f.Close())
	}
	h.files = nil
	return errors.Join(errs...)
}

// Resolve prepares the volumes of a sandbox: it makes those that do not exist,
// names the anonymous ones, and fills in DataDir. It returns the mounts, the
// names of anonymous volumes that it made, which go with the sandbox, and a Hold
// for the time the sandbox exists. The mounts that came in are not changed.
func (v *Volumes) Resolve(ctx context.Context, ms []Mount) (out []Mount, made []string, hold *Hold, err error) {
	out, h := slices.Clone(ms), &Hold{}
	var anonymous []string
	defer func() {
		if err == nil {
			return
		}
		err = errors.Join(err, h.Close())
		for _, n := range anonymous {
			err = errors.Join(err, v.Remove(context.WithoutCancel(ctx), n))
		}
	}()
	for i := range out {
		m := &out[i]
		if m.Type != TypeVolume {
			continue
		}
		vol, f, err := v.take(ctx, m)
		if vol != nil && m.Source == "" {
			anonymous = append(anonymous, vol.Name)
		}
		if err != nil {
			return nil, nil, nil, err
		}
		h.files = append(h.files, f)
		m.Source, m.DataDir, m.Anonymous = vol.Name, vol.DataDir, vol.Anonymous
	}
	return out, anonymous, h, nil
}

// take makes or finds the volume of a mount and locks it. A removal may come in
// between, so it tries again.
func (v *Volumes) take(ctx context.Context, m *Mount) (*Volume, *os.File, error) {
	for range 8 {
		vol, err := v.Create(ctx, m.Source, m.Labels)
		if err != nil && !errors.Is(err, ErrVolumeExists) {
			return nil, nil, err
		}
		f, err := openLock(filepath.Join(v.Root, vol.Name, volumeUse))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return vol, nil, fmt.Errorf("hold volume %s: %w", vol.Name, err)
		}
		err = flock.Try(f, unix.LOCK_SH)
		if err == nil && flock.AtPath(f, f.Name()) {
			return vol, f, nil
		}
		f.Close()
		if err != nil && !errors.Is(err, flock.ErrLocked) {
			return vol, nil, fmt.Errorf("hold volume %s: %w", vol.Name, err)
		}
	}
	return nil, nil, fmt.Errorf("hold volume %s: it is being removed: %w", m.Source, unix.EAGAIN)
}

func (v *Volumes) data(name string) string { return filepath.Join(v.Root, name, volumeData) }

// lock makes the store if need be and takes its lock, waiting for as long as the
// context lives.
func (v *Volumes) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(v.Root, 0o755); err != nil {
		return nil, fmt.Errorf("volume store: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(v.Root, storeLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("volume store: %w", err)
	}
	if err := flock.Wait(ctx, f, unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the volume store: %w", err)
	}
	return sync.OnceFunc(func() { f.Close() }), nil
}

func openLock(path string) (*os.File, error) { return os.OpenFile(path, os.O_RDWR, 0) }

func randomName() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
