package image

import (
	"context"
	"path/filepath"
)

// Usage is an image and what it has on the disk: blobs, and layers unpacked for each
// map of ids. Images that share one have the same path.
type Usage struct {
	*Image
	Paths []string
}

// Usage returns all images with what they have.
func (s *Store) Usage(ctx context.Context) ([]Usage, error) {
	list, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	var keys []string
	if err := eachName(filepath.Join(s.root, "layers"), func(key string) { keys = append(keys, key) }); err != nil {
		return nil, err
	}
	x, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	var out []Usage
	for _, img := range list {
		rec := x.Images[img.ID]
		if rec == nil {
			continue // removed meanwhile
		}
		u := Usage{Image: img}
		for _, d := range rec.blobs() {
			u.Paths = append(u.Paths, s.blobPath(d))
		}
		for _, p := range places(rec.Layers) {
			for _, key := range keys {
				u.Paths = append(u.Paths, s.layerDir(key, p.shared()), s.layerDir(key, p.chained()))
			}
		}
		out = append(out, u)
	}
	return out, nil
}
