package image

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Lease is an image in use: its layers stay until Close.
type Lease struct {
	// Image as it was acquired.
	Image *Image
	// Layers are the unpacked trees, the top one first. Never empty.
	Layers []string
	// WhiteoutFiles: see UnpackResult. The native overlay cannot be used.
	WhiteoutFiles bool
	// Notes of all layers.
	Notes []string

	mu   sync.Mutex
	lock *fileLock // guarded by mu; nil after Close and on a read-only store
}

// Close gives the image free. It may be called more than once.
func (l *Lease) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lock == nil {
		return nil
	}
	err := l.lock.unlock()
	l.lock = nil
	return err
}

// leaseName is the lock file of an image: shared while it is in use.
func leaseName(id string) string { return "image-" + strings.TrimPrefix(id, "sha256:") }

// Acquire makes sure that the image's layers are unpacked for the id map of
// that key, and keeps the image from being removed until the lease is closed.
func (s *Store) Acquire(ctx context.Context, img *Image, mapKey string) (_ *Lease, err error) {
	if !validMapKey(mapKey) {
		return nil, fmt.Errorf("acquire image: bad map key %q", mapKey)
	}
	l := &Lease{Image: img}
	l.lock, err = waitLock(ctx, s.lockPath(leaseName(img.ID)), unix.LOCK_SH)
	if err != nil && !errors.Is(err, unix.EROFS) { // nobody removes from there
		return nil, classify("use image", img.ID, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	x, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	rec := x.Images[img.ID]
	if rec == nil {
		if l.lock != nil {
			err = l.lock.drop()
			l.lock = nil
		}
		return nil, errors.Join(notHere(img.ID), err)
	}
	layers, err := s.unpackAll(ctx, places(rec.Layers), mapKey)
	if err != nil {
		return nil, err
	}
	for _, u := range stack(layers) {
		l.Layers = append(l.Layers, u.tree)
		l.Notes = append(l.Notes, u.meta.Notes...)
		l.WhiteoutFiles = l.WhiteoutFiles || u.meta.WhiteoutFiles
	}
	return l, nil
}
