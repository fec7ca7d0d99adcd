package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxdir"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

// sweepEvery is how often Create looks for what killed processes left. A name
// that only a dead sandbox has is freed at once.
const sweepEvery = 10 * time.Second

func (e *Engine) containers() string { return filepath.Join(e.dataDir, "containers") }

// sweepNow and then, on behalf of Create.
func (e *Engine) sweepNow(ctx context.Context) {
	e.mu.Lock()
	due := time.Since(e.swept) >= sweepEvery
	if due {
		e.swept = time.Now()
	}
	e.mu.Unlock()
	if !due {
		return
	}
	if _, err := e.Sweep(ctx); err != nil {
		e.log.Warn("left-over sandboxes could not be removed", "err", err)
	}
}

// Sweep removes what is left of sandboxes whose monitor and caller were both
// killed, processes included. It returns how many it removed.
func (e *Engine) Sweep(ctx context.Context) (int, error) {
	ids, err := boxdir.List(e.containers())
	if err != nil {
		return 0, err
	}
	n := 0
	var errs []error
	for _, id := range ids {
		if ctx.Err() != nil {
			return n, context.Cause(ctx)
		}
		swept, err := e.sweepOne(ctx, id)
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep %s: %w", filepath.Join(e.containers(), id), err))
		} else if swept {
			n++
		}
	}
	return n, errors.Join(errs...)
}

// sweepOne removes one sandbox if it has no owner any more.
func (e *Engine) sweepOne(ctx context.Context, id string) (bool, error) {
	d, err := boxdir.Claim(ctx, e.containers(), id)
	if d == nil {
		return false, err
	}
	defer d.Release()
	return true, e.removeBox(ctx, d)
}

// removeBox ends what still runs of a sandbox and removes everything that it has
// outside of its namespaces. This process is the owner. Normally the monitor has
// done it all, and there is nothing to do.
func (e *Engine) removeBox(ctx context.Context, d *boxdir.Dir) error {
	if _, err := os.Lstat(d.Path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := boxdir.Kill(ctx, d.Path); err != nil {
		return err // what runs in the directory would be pulled from under it
	}
	errs := []error{clearGroups(ctx, d.ID()), os.RemoveAll(proto.BuiltinDir(e.runtimeDir, d.ID())), e.removeAnonymous(ctx, d.ID())}
	err := boxdir.Remove(ctx, d.Path)
	if errors.Is(err, fs.ErrPermission) { // files of subordinate ids
		err = e.inWorker(ctx, proto.MsgRemoveBox, proto.Path{Path: d.Path})
	}
	return errors.Join(append(errs, err)...)
}

// removeAnonymous removes the anonymous volumes of a sandbox.
func (e *Engine) removeAnonymous(ctx context.Context, id string) error {
	vols := e.Volumes()
	list, err := vols.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, v := range list {
		if v.Anonymous && v.Labels[proto.LabelSandbox] == id {
			if err := vols.Remove(ctx, v.Name); err != nil && !errors.Is(err, fsoverlay.ErrNoVolume) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
