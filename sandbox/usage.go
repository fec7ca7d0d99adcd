package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

// DiskUsage is what is on the disk, and what of it would come back. Sizes are in
// bytes, as the file system counts them.
type DiskUsage struct {
	Images    []ImageUsage
	Sandboxes []SandboxUsage
	Volumes   []VolumeUsage

	sizes map[string]int64
}

// ImageUsage is an image's part.
type ImageUsage struct {
	image.Usage
	// Size is Shared, with other images, and what is its own.
	Size, Shared int64
	// Sandboxes that are made of it.
	Sandboxes int
}

// SandboxUsage is that of a sandbox: its writable layer and its log.
type SandboxUsage struct {
	Inspection
	Size int64
}

// VolumeUsage is a volume's.
type VolumeUsage struct {
	*fsoverlay.Volume
	Size int64
	// Links are the sandboxes that have it.
	Links int
}

// DiskUsage measures. It reads every directory, which takes its time.
func (e *Engine) DiskUsage(ctx context.Context) (*DiskUsage, error) {
	u := &DiskUsage{sizes: map[string]int64{}}
	store, err := e.Images()
	if err != nil {
		return nil, err
	}
	images, err := store.Usage(ctx)
	if err != nil {
		return nil, err
	}
	boxes, err := e.List(ctx, Filter{All: true})
	if err != nil {
		return nil, err
	}
	volumes, err := e.Volumes().List()
	if err != nil {
		return nil, err
	}
	if err := u.measure(ctx, e, images, boxes, volumes); err != nil {
		return nil, err
	}
	users, links := map[string]int{}, map[string]int{}
	for _, b := range boxes {
		u.Sandboxes = append(u.Sandboxes, SandboxUsage{b, u.sizes[e.boxPath(b.ID)]})
		users[b.Image]++
		for _, m := range b.Mounts {
			if m.Type == fsoverlay.TypeVolume {
				links[m.Name]++
			}
		}
	}
	owners := map[string]int{}
	for _, img := range images {
		for _, p := range img.Paths {
			owners[p]++
		}
	}
	for _, img := range images {
		x := ImageUsage{Usage: img, Sandboxes: users[img.ID]}
		for _, p := range img.Paths {
			x.Size += u.sizes[p]
			if owners[p] > 1 {
				x.Shared += u.sizes[p]
			}
		}
		u.Images = append(u.Images, x)
	}
	for _, v := range volumes {
		u.Volumes = append(u.Volumes, VolumeUsage{v, u.sizes[filepath.Dir(v.DataDir)], links[v.Name]})
	}
	return u, nil
}

func (e *Engine) boxPath(id string) string { return filepath.Join(e.containers(), id) }

// measure asks a worker, since files and directories belong to subordinate ids.
func (u *DiskUsage) measure(ctx context.Context, e *Engine, images []image.Usage, boxes []Inspection, volumes []*fsoverlay.Volume) error {
	for _, img := range images {
		for _, p := range img.Paths {
			u.sizes[p] = 0
		}
	}
	for _, b := range boxes {
		u.sizes[e.boxPath(b.ID)] = 0
	}
	for _, v := range volumes {
		u.sizes[filepath.Dir(v.DataDir)] = 0
	}
	paths := slices.Sorted(maps.Keys(u.sizes))
	var sizes []int64
	if err := e.inWorker(ctx, proto.MsgUsage, proto.Paths{Paths: paths}, &sizes); err != nil {
		return err
	}
	for i, p := range paths {
		u.sizes[p] = sizes[i]
	}
	return nil
}

// Of is what a sandbox takes alone, and with its image.
func (u *DiskUsage) Of(in *Inspection) (own, all int64) {
	for _, b := range u.Sandboxes {
		if b.ID == in.ID {
			own = b.Size
		}
	}
	all = own
	for _, img := range u.Images {
		if img.ID == in.Image {
			all += img.Size
		}
	}
	return own, all
}

// ImageSize is what all images take, and unused what those take that no sandbox is
// made of.
func (u *DiskUsage) ImageSize() (all, unused int64) {
	used := map[string]bool{}
	for _, img := range u.Images {
		for _, p := range img.Paths {
			used[p] = used[p] || img.Sandboxes > 0
		}
	}
	for p, inUse := range used {
		all += u.sizes[p]
		if !inUse {
			unused += u.sizes[p]
		}
	}
	return all, unused
}

// Reclaimed is what has gone since it was measured.
func (u *DiskUsage) Reclaimed() (n int64) {
	for p, size := range u.sizes {
		if _, err := os.Lstat(p); errors.Is(err, fs.ErrNotExist) {
			n += size
		}
	}
	return n
}
