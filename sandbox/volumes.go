package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxdir"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
)

// RemoveVolume removes a named or anonymous volume that no sandbox has, whether it
// runs or not.
func (e *Engine) RemoveVolume(ctx context.Context, name string) error {
	users, err := e.VolumeUsers()
	if err != nil {
		return err
	}
	if id := users[name]; id != "" {
		return &StateError{Kind: fsoverlay.ErrVolumeInUse, Name: name, Msg: fmt.Sprintf("volume %s is in use by sandbox %.12s", name, id), Fix: fmt.Sprintf("remove that first: sbx rm %.12s", id)}
	}
	return e.Volumes().Remove(ctx, name)
}

// PruneVolumes removes the volumes that match and that no sandbox has. It returns the
// names of those that it removed.
func (e *Engine) PruneVolumes(ctx context.Context, match func(*fsoverlay.Volume) bool) ([]string, error) {
	users, err := e.VolumeUsers()
	if err != nil {
		return nil, err
	}
	vols := e.Volumes()
	list, err := vols.List()
	if err != nil {
		return nil, err
	}
	var done []string
	for _, v := range list {
		if users[v.Name] != "" || !match(v) {
			continue
		}
		switch err := vols.Remove(ctx, v.Name); {
		case err == nil:
			done = append(done, v.Name)
		case !errors.Is(err, fsoverlay.ErrVolumeInUse) && !errors.Is(err, fsoverlay.ErrNoVolume):
			return done, err
		}
	}
	return done, nil
}

// VolumeUsers are the sandboxes that have volumes, by the volumes' names.
func (e *Engine) VolumeUsers() (map[string]string, error) {
	ids, err := boxdir.List(e.containers())
	if err != nil {
		return nil, err
	}
	users := map[string]string{}
	for _, id := range ids {
		path := filepath.Join(e.containers(), id)
		st, err := record.ReadState(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // its monitor holds them
		}
		if err != nil {
			return nil, err // it may have any
		}
		rec, err := record.ReadConfig(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, v := range st.Volumes {
			users[v] = id
		}
		for _, m := range rec.Start.Mounts {
			if m.Type == fsoverlay.TypeVolume && m.Source != "" {
				users[m.Source] = id
			}
		}
	}
	return users, nil
}
