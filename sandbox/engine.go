package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/userns"
)

// Engine runs the sandboxes of one user. Any number of engines, in any number of
// processes, may share the directories.
type Engine struct {
	dataDir    string
	runtimeDir string
	initPath   string
	linger     time.Duration
	log        *slog.Logger
	events     *events.Journal

	mu       sync.Mutex // guards what follows
	store    *image.Store
	swept    time.Time                  // when Create last looked for left-overs
	mappings map[string]*userns.Mapping // by key
}

// NewEngine finds the directories and checks them. What killed processes left there
// is removed by Create and Sweep.
func NewEngine(opts Options) (*Engine, error) {
	e := &Engine{log: opts.Logger, linger: opts.NetdLinger, mappings: map[string]*userns.Mapping{}}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if v := os.Getenv("SBX_NETD_LINGER"); e.linger == 0 && v != "" {
		if e.linger, err = time.ParseDuration(v); err != nil || e.linger < 0 {
			return nil, fmt.Errorf("SBX_NETD_LINGER=%q is not a duration such as 3s", v)
		}
	}
	if e.initPath, err = opts.initPath(); err != nil {
		return nil, err
	}
	if e.dataDir, err = dataDir(opts.DataDir); err != nil {
		return nil, err
	}
	if e.runtimeDir, err = runtimeDir(opts.RuntimeDir); err != nil {
		return nil, err
	}
	e.events = &events.Journal{Dir: eventsDir(e.dataDir), Logger: e.log}
	for _, d := range []string{"containers", "volumes"} {
		if err := os.MkdirAll(filepath.Join(e.dataDir, d), 0o711); err != nil {
			return nil, &DirError{Dir: e.dataDir, Env: "XDG_DATA_HOME", Err: err}
		}
	}
	return e, nil
}

// DataDir is where images, volumes and sandboxes are kept.
func (e *Engine) DataDir() string { return e.dataDir }

// RuntimeDir is where sockets and locks are kept.
func (e *Engine) RuntimeDir() string { return e.runtimeDir }

// Volumes are the user's named volumes.
func (e *Engine) Volumes() *fsoverlay.Volumes {
	return &fsoverlay.Volumes{Root: filepath.Join(e.dataDir, "volumes"), RemoveTree: e.removeTree, Logger: e.log, Event: e.volumeEvent}
}

// Images opens the image store. Layers are unpacked and removed by workers inside
// the user namespaces that they are for.
func (e *Engine) Images() (*image.Store, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.store != nil {
		return e.store, nil
	}
	s, err := image.Open(image.Config{
		Root:   filepath.Join(e.dataDir, "images"),
		Logger: e.log,
		Unpack: func(ctx context.Context, job image.UnpackJob) (image.UnpackResult, error) {
			e.mu.Lock()
			m := e.mappings[job.MapKey]
			e.mu.Unlock()
			if m == nil {
				return image.UnpackResult{}, fmt.Errorf("unpack for the unknown id mapping %s", job.MapKey)
			}
			job.Single = m.Mode == userns.ModeSingle
			return e.unpack(ctx, m, job)
		},
		Remover: e.removeTree,
		Users:   e.imageUsers,
		Event:   e.imageEvent,
	})
	if err != nil {
		return nil, fmt.Errorf("open the image store: %w", err)
	}
	e.store = s
	return s, nil
}

// platform is what a sandbox stands on: its ids and the storage drivers that work
// with them.
type platform struct {
	mapping *userns.Mapping
	storage []fsoverlay.ProbeResult
}

// resolve goes down the ladder of id mappings. That newuidmap is there does not
// mean that it may do its work (no_new_privs, a container's seccomp filter), so
// the first rung counts only when a process has stood on it: the storage probe's.
func (e *Engine) resolve(ctx context.Context, mode userns.Mode) (*platform, error) {
	m, err := userns.ResolveMapping(userns.MappingConfig{Mode: mode})
	if err != nil {
		return nil, err
	}
	results, err := e.storageProbe(ctx, m)
	if errors.Is(err, userns.ErrMap) && m.Mode == userns.ModeAuto {
		failed := err
		if m, err = userns.ResolveMapping(userns.MappingConfig{Mode: userns.ModeSingle}); err != nil {
			return nil, err
		}
		m.Reason = fmt.Sprintf("one id instead of a range: %v", failed)
		results, err = e.storageProbe(ctx, m)
	}
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mappings[m.Key()] = m
	return &platform{mapping: m, storage: results}, nil
}
