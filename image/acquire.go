package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Layers lie in layers/MAPKEY/HEX, where HEX is the DiffID: fs/ is the tree,
// layer.json the result of unpacking it. Such a directory is filled in a session,
// brought to disk, and renamed to its name: where it exists, it is complete.

const (
	layerMeta = "layer.json"
	layerTree = "fs"
	// parallelUnpack is how many layers are unpacked at once.
	parallelUnpack = 2
)

// emptyDiffID is the DiffID of an archive without entries. An image without
// layers gets it, since an overlay needs at least one.
const emptyDiffID = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"

var reMapKey = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)

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
	if !reMapKey.MatchString(mapKey) {
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
	layers := stack(rec.Layers)
	metas, err := s.unpackAll(ctx, layers, mapKey)
	if err != nil {
		return nil, err
	}
	for i, m := range metas {
		l.Layers = append(l.Layers, filepath.Join(s.layerDir(mapKey, layers[i].DiffID), layerTree))
		l.Notes = append(l.Notes, m.Notes...)
		l.WhiteoutFiles = l.WhiteoutFiles || m.WhiteoutFiles
		if m.OpaqueRoot {
			break // hides all below
		}
	}
	return l, nil
}

// stack turns the layers top first and drops repetitions: the topmost of equal
// layers already shows everything that a lower one could.
func stack(layers []Layer) []Layer {
	seen := map[string]bool{}
	var out []Layer
	for i := len(layers) - 1; i >= 0; i-- {
		if !seen[layers[i].DiffID] {
			seen[layers[i].DiffID] = true
			out = append(out, layers[i])
		}
	}
	if len(out) == 0 {
		out = []Layer{{DiffID: emptyDiffID}}
	}
	return out
}

func (s *Store) layerDir(mapKey, diffID string) string {
	return filepath.Join(s.root, "layers", mapKey, strings.TrimPrefix(diffID, "sha256:"))
}

// unpackAll unpacks what is missing. The first failure ends it.
func (s *Store) unpackAll(ctx context.Context, layers []Layer, mapKey string) ([]*UnpackResult, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := make([]*UnpackResult, len(layers))
	slots := make(chan struct{}, parallelUnpack)
	var wg sync.WaitGroup
	for i := len(layers) - 1; i >= 0; i-- {
		m, err := s.layerMeta(mapKey, layers[i].DiffID)
		if err == nil {
			out[i] = m
			continue
		}
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			m, err := s.unpackLayer(ctx, layers[i], mapKey)
			if err != nil {
				cancel(err)
			}
			out[i] = m
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return out, nil
}

// layerMeta reads what is known of an unpacked layer; fs.ErrNotExist if there is none.
func (s *Store) layerMeta(mapKey, diffID string) (*UnpackResult, error) {
	b, err := os.ReadFile(filepath.Join(s.layerDir(mapKey, diffID), layerMeta))
	if err != nil {
		return nil, err
	}
	m := &UnpackResult{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("layer %s: %w", diffID, err)
	}
	return m, nil
}

// unpackLayer unpacks one layer, unless another process is faster.
func (s *Store) unpackLayer(ctx context.Context, l Layer, mapKey string) (_ *UnpackResult, err error) {
	hex := strings.TrimPrefix(l.DiffID, "sha256:")
	lock, err := waitLock(ctx, s.lockPath("layer-"+mapKey+"-"+hex), unix.LOCK_EX)
	if err != nil {
		return nil, classify("unpack layer", l.DiffID, err)
	}
	defer func() { err = errors.Join(err, lock.discard()) }()
	if m, err := s.layerMeta(mapKey, l.DiffID); err == nil {
		return m, nil
	}
	blob, err := s.layerBlob(ctx, l)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	sess, err := s.newSession("unpack-" + mapKey)
	if err != nil {
		return nil, err
	}
	moved := false
	defer func() {
		if moved {
			err = errors.Join(err, sess.f.Close())
		} else {
			err = errors.Join(err, sess.close(ctx))
		}
	}()
	s.log.Debug("unpack layer", "diffID", l.DiffID, "map", mapKey)
	res, err := s.unpack(ctx, UnpackJob{Blob: blob, MediaType: l.MediaType, DiffID: l.DiffID,
		Dest: sess.path(layerTree), MapKey: mapKey, Limits: s.limits})
	if err != nil {
		return nil, s.explainUnpack(ctx, l, err)
	}
	for _, n := range res.Notes {
		s.log.Info("unpacking a layer", "diffID", l.DiffID, "note", n)
	}
	if err := s.publishLayer(sess, mapKey, hex, &res); err != nil {
		return nil, classify("unpack layer", l.DiffID, err)
	}
	moved = true
	return &res, nil
}

// publishLayer brings the layer to disk and gives it its name.
func (s *Store) publishLayer(sess *session, mapKey, hex string, res *UnpackResult) error {
	b, err := json.Marshal(res)
	if err != nil {
		return err
	}
	if err := os.WriteFile(sess.path(layerMeta), b, 0o600); err != nil {
		return err
	}
	// A layer has too many files for one fsync each.
	if err := unix.Syncfs(int(sess.f.Fd())); err != nil {
		return os.NewSyscallError("syncfs", err)
	}
	dir := filepath.Join(s.root, "layers", mapKey)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	dst := filepath.Join(dir, hex)
	// Without its layer.json it cannot come from here, but then it is in the way.
	if err := s.removeTree(context.Background(), dst); err != nil {
		return err
	}
	if err := os.Rename(sess.dir, dst); err != nil {
		return err
	}
	return syncDir(dir)
}

func (s *Store) layerBlob(ctx context.Context, l Layer) (*os.File, error) {
	if l.Digest == "" {
		return emptyArchive()
	}
	f, err := os.Open(s.blobPath(l.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{Kind: ErrDigest, Op: "unpack layer", Subject: l.Digest, Msg: "its blob is missing from the store", Fix: "pull the image again"}
	}
	return f, err
}

// emptyArchive is the blob of emptyDiffID.
func emptyArchive() (*os.File, error) {
	fd, err := unix.MemfdCreate("sbx-layer", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "sbx-layer")
	if _, err := f.Write(bytes.Repeat([]byte{0}, 1024)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// explainUnpack tells a blob that the disk has damaged from one that was
// published wrong. The former is dropped, so that a pull fetches it again.
func (s *Store) explainUnpack(ctx context.Context, l Layer, err error) error {
	err = classify("unpack layer", l.DiffID, fromWire(err))
	if l.Digest == "" || (!errors.Is(err, ErrDigest) && !errors.Is(err, ErrArchive)) {
		return err
	}
	sound, verr := s.verifyBlob(ctx, l.Descriptor)
	if verr != nil {
		return errors.Join(err, verr)
	}
	if !sound {
		return &Error{Kind: ErrDigest, Op: "unpack layer", Subject: l.Digest, Err: err,
			Msg: "the disk has damaged its blob, which is removed now", Fix: "pull the image again"}
	}
	return err
}
