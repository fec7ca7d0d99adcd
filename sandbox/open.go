package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxdir"
	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
	"github.com/rootless-sbx/sbx/userns"
)

// claimPatience is how long a sandbox may be held by a command that works on it, or
// by one that is on its way out.
const claimPatience = 5 * time.Second

// Save leaves the sandbox to others, as it is: created. It is theirs to start, and
// stays when this process ends. The handle is from now on as one of Open.
func (s *Sandbox) Save(ctx context.Context) error {
	s.awaitSweep()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != created || s.remote {
		return ErrStarted
	}
	err := record.WriteConfig(s.dir.Path, s.record())
	if err == nil {
		err = record.WriteState(s.dir.Path, &record.State{Status: record.Created})
	}
	if err != nil {
		return fmt.Errorf("record the sandbox: %w", err)
	}
	s.stdio.close()
	if s.lease != nil {
		s.lease.Close()
	}
	s.remote, s.recorded, s.stdio, s.lease = true, true, nil, nil
	return s.dir.Release()
}

// Open finds a sandbox by its name, its id, or the unique beginning of its id.
func (e *Engine) Open(ctx context.Context, ref string) (*Sandbox, error) {
	id, err := e.find(ref)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(e.containers(), id)
	rec, err := record.ReadConfig(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noSandbox(ref)
	}
	if err != nil {
		return nil, err
	}
	name, err := boxdir.Name(e.containers(), id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noSandbox(ref) // it is being removed
	}
	if err != nil {
		return nil, err
	}
	s := &Sandbox{
		e: e, id: id, name: name, rec: rec, start: rec.Start, imageID: rec.ImageID, stopSignal: rec.Start.Life.StopSignal,
		recorded: true, remote: true, done: make(chan struct{}), marks: newTimings(),
	}
	s.cfg = Config{
		Name: name, Image: rec.Image, RootFS: rec.RootFS, UserNS: rec.UserNS, TTY: rec.Start.TTY, Detach: true, Keep: rec.Start.Life.Keep,
		OpenStdin: rec.Start.Life.OpenStdin, StopTimeout: rec.Start.Life.StopTimeout, Networks: networksOf(&rec.Start.Network),
		Resources: rec.Resources,
	}
	return s, nil
}

func noSandbox(ref string) error {
	return &StateError{Kind: ErrNoSandbox, Name: ref, Msg: fmt.Sprintf("no such sandbox: %s", ref), Fix: "sbx ps -a shows all"}
}

// find resolves what a user typed. A whole id comes first, then a name, as with
// Docker.
func (e *Engine) find(ref string) (string, error) {
	ids, err := boxdir.List(e.containers())
	if err != nil {
		return "", err
	}
	if ref == "" {
		return "", noSandbox(ref)
	}
	var byPrefix []string
	for _, id := range ids {
		if strings.HasPrefix(id, ref) && record.Exists(filepath.Join(e.containers(), id)) {
			byPrefix = append(byPrefix, id)
		}
	}
	if slices.Contains(byPrefix, ref) {
		return ref, nil
	}
	want := strings.TrimPrefix(ref, "/")
	for _, id := range ids {
		if name, err := boxdir.Name(e.containers(), id); err == nil && name == want && record.Exists(filepath.Join(e.containers(), id)) {
			return id, nil
		}
	}
	switch len(byPrefix) {
	case 0:
		return "", noSandbox(ref)
	case 1:
		return byPrefix[0], nil
	}
	return "", &StateError{Kind: ErrAmbiguous, Name: ref, Msg: fmt.Sprintf("%s is the beginning of %d ids", ref, len(byPrefix)), Fix: "give more digits of the id, or the name"}
}

// Connect has Start connect these streams to the workload; without it they are left
// to Attach and the log.
func (s *Sandbox) Connect(streams Streams, rows, cols uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cfg.Stdin, s.cfg.Stdout, s.cfg.Stderr, s.cfg.Rows, s.cfg.Cols = streams.Stdin, streams.Stdout, streams.Stderr, rows, cols
}

// look reads what has become of the sandbox, and repairs what is not true.
func (s *Sandbox) look(ctx context.Context) (*record.State, error) {
	st, err := s.e.stateOf(ctx, s.id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noSandbox(s.name)
	}
	return st, err
}

func (e *Engine) stateOf(ctx context.Context, id string) (*record.State, error) {
	path := filepath.Join(e.containers(), id)
	st, err := record.ReadState(path)
	if err != nil || !st.Alive() {
		return st, err
	}
	owned, err := boxdir.Owned(ctx, e.containers(), []string{id})
	if err != nil || owned[id] {
		return st, err
	}
	if _, err := e.repair(ctx, id); err != nil {
		return nil, err
	}
	return record.ReadState(path)
}

// reclaim makes this process the owner of a sandbox that does not run, for Start.
func (s *Sandbox) reclaim(ctx context.Context) error {
	dir, err := s.claimStopped(ctx)
	if errors.Is(err, ErrRunning) {
		if st, lerr := s.look(ctx); lerr == nil && st.Status == record.Paused {
			return &StateError{Kind: ErrPaused, Name: s.name, Fix: "sbx unpause " + s.name}
		}
	}
	if err != nil {
		return err
	}
	s.dir = dir
	if err := s.prepareAgain(ctx); err != nil {
		if s.lease != nil {
			s.lease.Close()
		}
		dir.Release()
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remote, s.state = false, created
	return nil
}

// claimStopped makes this process the owner, if nothing runs. It waits for another
// command, and for a monitor that is about to end.
func (s *Sandbox) claimStopped(ctx context.Context) (*boxdir.Dir, error) {
	end := time.Now().Add(claimPatience)
	for {
		st, err := s.look(ctx)
		if err != nil {
			return nil, err
		}
		if st.Alive() {
			return nil, s.running(st)
		}
		dir, err := boxdir.Claim(ctx, s.e.containers(), s.id)
		if err != nil {
			return nil, err
		}
		if dir != nil {
			if st, err = record.ReadState(dir.Path); err == nil && !st.Alive() {
				return dir, nil
			}
			dir.Release()
			continue // it ran and died meanwhile
		}
		if time.Now().After(end) {
			return nil, &StateError{Kind: ErrBusy, Name: s.name, Fix: "try again when that has ended"}
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (s *Sandbox) running(st *record.State) error {
	e := &StateError{Kind: ErrRunning, Name: s.name, Fix: "sbx stop " + s.name}
	if st.Status == record.Paused {
		e.Msg = "the sandbox is paused"
	}
	return e
}

// prepareAgain finds what a sandbox stands on, as Create did.
func (s *Sandbox) prepareAgain(ctx context.Context) error {
	p, err := s.e.resolve(ctx, s.rec.UserNS)
	if err != nil {
		return err
	}
	s.mapping = p.mapping
	// What has been written is in the driver's form.
	if s.driver, err = fsoverlay.Choose(p.storage, s.start.Driver); err != nil {
		return err
	}
	switch {
	case s.rec.ImageID != "":
		if s.lease, err = s.acquire(ctx, s.mapping); err != nil {
			return err
		}
		s.lowers = s.lease.Layers
	default:
		if err := s.openRootFS(); err != nil {
			return err
		}
	}
	if err := fsoverlay.PrepareSources(s.start.Mounts); err != nil {
		return err
	}
	if err := s.e.refresh(s.start.Network.Attachments); err != nil {
		return err
	}
	s.start.Name, s.start.Dir, s.start.RuntimeDir, s.start.DataDir, s.start.VolumesDir = s.name, s.dir.Path, s.e.runtimeDir, s.e.dataDir, s.e.Volumes().Root
	s.start.EventsDir, s.start.Image = s.e.events.Dir, s.rec.ImageName()
	s.start.Driver, s.start.Lowers, s.start.Single = s.driver, s.lowers, s.mapping.Mode == userns.ModeSingle
	s.start.NetdLinger, s.start.Life.Detach = s.e.linger, true
	s.start.TakeStdin = s.cfg.Stdin != nil
	if s.start.Life.Log == nil { // it was made for the foreground
		s.start.Life.Log = &proto.Log{Driver: "json-file"}
	}
	s.stdio, err = newStdio(s.cfg.streams(), s.cfg.TTY, true)
	return err
}

// acquire takes the layers of the sandbox's image.
func (s *Sandbox) acquire(ctx context.Context, m *userns.Mapping) (*image.Lease, error) {
	store, err := s.e.Images()
	if err != nil {
		return nil, err
	}
	img, err := store.Get(ctx, s.rec.ImageID)
	if err != nil {
		return nil, fmt.Errorf("the sandbox's image: %w", err)
	}
	lease, err := store.Acquire(ctx, img, m.Key())
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", s.rec.Image, err)
	}
	return lease, nil
}

// RemoveOptions say what may go.
type RemoveOptions struct {
	Force   bool // also a sandbox that runs, which is killed
	Volumes bool // its anonymous volumes too
}

// RemoveWith removes a sandbox that has been recorded.
func (s *Sandbox) RemoveWith(ctx context.Context, o RemoveOptions) error {
	for {
		dir, err := s.claimStopped(ctx)
		if errors.Is(err, ErrRunning) && o.Force {
			err = s.remoteCall(ctx, proto.MsgStop, proto.Stop{Signal: 9, Timeout: time.Second, Remove: true}, nil)
			if err == nil || errors.Is(err, ErrNotRunning) {
				continue
			}
		}
		if errors.Is(err, ErrNoSandbox) && o.Force && !s.start.Life.Keep {
			return nil // it was to be removed at its end
		}
		if err != nil {
			return err
		}
		defer dir.Release()
		remove := s.e.removeBox
		if !o.Volumes && s.start.Life.Keep {
			remove = s.e.removeBoxOnly
		}
		if err := remove(ctx, dir); err != nil {
			return err
		}
		s.event(events.Destroy)
		return nil
	}
}

// Rename gives the sandbox another name, also in the network that it is in.
func (s *Sandbox) Rename(ctx context.Context, name string) error {
	if !validName(name) {
		return badConfig("name", "%q: only [a-zA-Z0-9][a-zA-Z0-9_.-]* is allowed, at most 128 characters", name)
	}
	err := boxdir.Rename(ctx, s.e.containers(), s.id, func(taken map[string]string) (string, error) {
		if holder := taken[name]; holder != "" {
			return "", nameInUse(name, holder)
		}
		return name, nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return noSandbox(s.name)
	}
	if err != nil {
		return err
	}
	old := s.name
	s.name = name
	s.event(events.Rename, "oldName", "/"+old)
	if err := s.remoteCall(ctx, proto.MsgRenamed, nil, nil); err != nil && !errors.Is(err, ErrNotRunning) && !errors.Is(err, ErrNoSandbox) {
		return fmt.Errorf("the name is %s now, but its network was not told: %w", name, err)
	}
	return nil
}

// imageUsers are the sandboxes that were made of images, by the images' ids.
func (e *Engine) imageUsers(context.Context) (map[string]string, error) {
	ids, err := boxdir.List(e.containers())
	if err != nil {
		return nil, err
	}
	users := map[string]string{}
	for _, id := range ids {
		path := filepath.Join(e.containers(), id)
		if !record.Exists(path) {
			continue // a lease holds its image
		}
		rec, err := record.ReadConfig(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err // it may use any
		}
		if rec.ImageID != "" {
			users[rec.ImageID] = id[:12]
		}
	}
	return users, nil
}

// ParseSignal reads a signal as Docker does: its name, with SIG or without, or number.
func ParseSignal(s string) (int, error) {
	sig, err := workload.ParseSignal(s)
	return int(sig), err
}
