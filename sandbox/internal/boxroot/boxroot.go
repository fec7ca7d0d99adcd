// Package boxroot makes what the root file system of a sandbox stands on: its
// directories, its volumes, the init layer and the storage driver. The monitor does
// that for a start, a worker for those who copy files of a sandbox that does not run.
package boxroot

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/internal/rmtree"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

// Root is one that can be mounted.
type Root struct {
	Spec    fsoverlay.RootSpec
	Storage *fsoverlay.Prepared
	// Mounts are the user's, with their volumes resolved.
	Mounts []fsoverlay.Mount
	// Volumes are the anonymous ones by their mount point.
	Volumes map[string]string

	hold *fsoverlay.Hold // keeps the volumes
}

// Prepare makes the directories and the init layer and starts the storage driver.
// known are the anonymous volumes of before. Also if it fails, Volumes says which there
// are: the others carry the sandbox's label.
func Prepare(ctx context.Context, s *proto.Start, vols *fsoverlay.Volumes, known map[string]string, log *slog.Logger) (r *Root, err error) {
	r = &Root{Volumes: known}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	dirs := map[string]string{}
	for _, d := range []string{"upper", "work", "merged", "init"} {
		dirs[d] = filepath.Join(s.Dir, d)
		err := os.Mkdir(dirs[d], 0o755)
		if errors.Is(err, fs.ErrExist) { // started again
			err = nil
			if d == "init" {
				err = rmtree.Remove(dirs[d])
			}
		}
		if err != nil {
			return r, err
		}
	}
	if err := r.resolveVolumes(ctx, s, vols); err != nil {
		return r, err
	}
	if err := fsoverlay.BuildInitLayer(dirs["init"], fsoverlay.InitLayerConfig{Lowers: s.Lowers, Mounts: r.Mounts}); err != nil {
		return r, err
	}
	driver, err := fsoverlay.NewDriver(s.Driver, log)
	if err != nil {
		return r, err
	}
	r.Spec = fsoverlay.RootSpec{
		Driver: s.Driver,
		Lowers: append([]string{dirs["init"]}, s.Lowers...),
		Upper:  dirs["upper"], Work: dirs["work"], Merged: dirs["merged"],
		// Not if it outlives this mount.
		Volatile: !s.Life.Keep && (s.Life.Restart.Name == "" || s.Life.Restart.Name == "no"),
	}
	r.Storage, err = driver.Prepare(ctx, r.Spec)
	return r, err
}

// resolveVolumes turns named and anonymous volumes into directories. The anonymous
// ones of the first time are those of every other.
func (r *Root) resolveVolumes(ctx context.Context, s *proto.Start, vols *fsoverlay.Volumes) error {
	mounts := append([]fsoverlay.Mount(nil), s.Mounts...)
	names := map[string]string{}
	for i := range mounts {
		v := &mounts[i]
		if v.Type != fsoverlay.TypeVolume || v.Source != "" && r.Volumes[v.Target] != v.Source {
			continue
		}
		if v.Source = r.Volumes[v.Target]; v.Source == "" {
			// If we are killed, whoever clears up finds the volume by its label.
			labels := map[string]string{proto.LabelSandbox: s.ID}
			maps.Copy(labels, v.Labels)
			v.Labels = labels
		}
		names[v.Target] = ""
	}
	var err error
	if r.Mounts, _, r.hold, err = vols.Resolve(ctx, mounts); err != nil {
		return err
	}
	for _, v := range r.Mounts {
		if _, ok := names[v.Target]; ok && v.Type == fsoverlay.TypeVolume {
			names[v.Target] = v.Source
		}
	}
	r.Volumes = names
	return nil
}

// Close ends the storage driver and lets go of the volumes. What was written stays.
func (r *Root) Close() error {
	if r == nil {
		return nil
	}
	err := errors.Join(r.Storage.Close(), r.hold.Close())
	r.Storage, r.hold = nil, nil
	return err
}
