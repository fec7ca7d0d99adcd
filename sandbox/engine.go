package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/userns"
)

// Engine runs the sandboxes of one user. Any number of engines, in any number of
// processes, may share the directories.
type Engine struct {
	dataDir    string
	runtimeDir string
	initPath   string
	linger     string
	log        *slog.Logger

	mu     sync.Mutex // guards stores
	stores map[string]*image.Store
}

// NewEngine checks the directories and removes what killed processes left in them.
func NewEngine(opts Options) (*Engine, error) {
	e := &Engine{log: opts.Logger, linger: opts.NetdLinger, stores: map[string]*image.Store{}}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if e.linger == "" {
		e.linger = os.Getenv("SBX_NETD_LINGER")
	}
	var err error
	if e.initPath, err = opts.initPath(); err != nil {
		return nil, err
	}
	if e.dataDir, err = dataDir(opts.DataDir); err != nil {
		return nil, err
	}
	if e.runtimeDir, err = runtimeDir(opts.RuntimeDir); err != nil {
		return nil, err
	}
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
	return &fsoverlay.Volumes{Root: filepath.Join(e.dataDir, "volumes")}
}

// Images opens the image store. Layers are unpacked and removed by a worker inside
// a user namespace with the mapping of mode, "" meaning userns.ModeAuto.
func (e *Engine) Images(mode userns.Mode) (*image.Store, *userns.Mapping, error) {
	m, err := userns.ResolveMapping(userns.MappingConfig{Mode: mode})
	if err != nil {
		return nil, nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.stores[m.Key()]; s != nil {
		return s, m, nil
	}
	s, err := image.Open(image.Config{
		Root:   filepath.Join(e.dataDir, "images"),
		Logger: e.log,
		Unpack: func(ctx context.Context, job image.UnpackJob) (image.UnpackResult, error) {
			job.Single = m.Mode == userns.ModeSingle
			return e.unpack(ctx, m, job)
		},
		Remover: e.removeTree,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("open the image store: %w", err)
	}
	e.stores[m.Key()] = s
	return s, m, nil
}
