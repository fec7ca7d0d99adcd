package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxdir"
	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
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
// killed, processes included, unless they are to be kept: the record of one that
// ran is made true. It returns how many it removed or repaired.
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

// sweepOne removes or repairs one sandbox if it has no owner any more.
func (e *Engine) sweepOne(ctx context.Context, id string) (bool, error) {
	// Most are at rest, and neither locked nor owned.
	if record.AtRest(filepath.Join(e.containers(), id)) {
		return false, nil
	}
	return e.repair(ctx, id)
}

// repair removes what is left of a sandbox without an owner, or, if it is to be
// kept, ends what runs of it and writes down that its monitor was killed. It
// returns false if there was nothing to do.
func (e *Engine) repair(ctx context.Context, id string) (bool, error) {
	d, err := boxdir.Claim(ctx, e.containers(), id)
	if d == nil {
		return false, err
	}
	defer d.Release()
	name, _ := boxdir.Name(e.containers(), id) // only for what is said about it
	st, err := record.ReadState(d.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, e.removeDead(ctx, d, name)
	case err != nil:
		return false, err
	case !st.Alive():
		return false, nil // somebody was faster
	}
	rec, err := record.ReadConfig(d.Path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !rec.Start.Life.Keep {
		return true, e.removeDead(ctx, d, name)
	}
	if err != nil {
		return false, err
	}
	if err := boxdir.Kill(ctx, d.Path); err != nil {
		return false, err
	}
	st.Status, st.ExitCode, st.Error, st.FinishedAt = record.Exited, 137, "the monitor was killed", time.Now().UTC()
	st.Started, st.MonitorPID, st.Health = proto.Started{}, 0, nil
	e.boxEvent(events.Die, id, name, rec, "exitCode", strconv.Itoa(st.ExitCode))
	e.log.Warn("the sandbox has ended: its monitor was killed, or the machine was restarted", "name", name, "id", id[:12])
	return true, errors.Join(clearGroups(ctx, id),
		os.RemoveAll(proto.BuiltinDir(e.runtimeDir, id)), removeFile(proto.BoxSocket(e.runtimeDir, id)),
		record.WriteState(d.Path, st))
}

// removeDead removes a sandbox that is not to be kept.
func (e *Engine) removeDead(ctx context.Context, d *boxdir.Dir, name string) error {
	rec, rerr := record.ReadConfig(d.Path) // without it, it was never one
	if err := e.removeBox(ctx, d); err != nil {
		return err
	}
	if rerr == nil {
		e.boxEvent(events.Destroy, d.ID(), name, rec)
	}
	return nil
}

func removeFile(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
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
	return errors.Join(e.removeAnonymous(ctx, d.ID()), e.removeBoxOnly(ctx, d))
}

// removeBoxOnly leaves the volumes.
func (e *Engine) removeBoxOnly(ctx context.Context, d *boxdir.Dir) error {
	errs := []error{clearGroups(ctx, d.ID()), os.RemoveAll(proto.BuiltinDir(e.runtimeDir, d.ID())), removeFile(proto.BoxSocket(e.runtimeDir, d.ID()))}
	// What is half removed is a killed create's.
	errs = append(errs, record.Forget(d.Path))
	err := boxdir.Remove(ctx, d.Path)
	if errors.Is(err, fs.ErrPermission) { // files of subordinate ids
		err = e.inWorker(ctx, proto.MsgRemoveBox, proto.Path{Path: d.Path}, nil)
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
