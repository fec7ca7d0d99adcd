package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// unpacked is a layer that is there.
type unpacked struct {
	tree string
	meta *UnpackResult
}

// stack turns layers, the lowest first, into what an overlay takes: the top one
// first; each tree once, since its topmost place already shows everything that a
// lower one could; nothing below an opaque root.
func stack(layers []*unpacked) []*unpacked {
	seen := map[string]bool{}
	var out []*unpacked
	for i := len(layers) - 1; i >= 0; i-- {
		u := layers[i]
		if seen[u.tree] {
			continue
		}
		seen[u.tree] = true
		out = append(out, u)
		if u.meta.OpaqueRoot {
			break
		}
	}
	return out
}

// unpackAll unpacks what is missing, in two rounds. In the first, several layers
// at once, each by itself unless all below it are there already. In the second,
// one after the other from below, those that turned out to need the others. The
// first failure ends it.
func (s *Store) unpackAll(ctx context.Context, layers []place, mapKey string) ([]*unpacked, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := make([]*unpacked, len(layers))
	slots := make(chan struct{}, parallelUnpack)
	var wg sync.WaitGroup
	complete := true // below the layer at hand
	for i, p := range layers {
		found, dependent := s.findLayer(mapKey, p)
		if found != nil {
			out[i] = found
			continue
		}
		job := UnpackJob{MapKey: mapKey, Alone: !complete}
		if complete {
			job.Lowers = lowersOf(out[:i])
		}
		complete = false
		if job.Alone && dependent {
			continue
		}
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			u, err := s.unpackLayer(ctx, p, job)
			if err != nil {
				cancel(err)
			}
			out[i] = u
		})
	}
	wg.Wait()
	for i, p := range layers {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if out[i] != nil {
			continue
		}
		u, err := s.unpackLayer(ctx, p, UnpackJob{MapKey: mapKey, Lowers: lowersOf(out[:i])})
		if err != nil {
			return nil, err
		}
		out[i] = u
	}
	return out, nil
}

func lowersOf(layers []*unpacked) []string {
	var out []string
	for _, u := range stack(layers) {
		out = append(out, u.tree)
	}
	return out
}

// unpackLayer unpacks one layer, unless another process is faster. For an Alone
// job it returns nil if the layer needs those below. The lock is of the DiffID,
// so it covers both names; nobody who holds it waits for another layer.
func (s *Store) unpackLayer(ctx context.Context, p place, job UnpackJob) (_ *unpacked, err error) {
	lock, err := waitLock(ctx, s.lockPath("layer-"+job.MapKey+"-"+p.shared()), unix.LOCK_EX)
	if err != nil {
		return nil, classify("unpack layer", p.DiffID, err)
	}
	defer func() { err = errors.Join(err, lock.discard()) }()
	found, dependent := s.findLayer(job.MapKey, p)
	if found != nil || job.Alone && dependent {
		return found, nil
	}
	blob, err := s.layerBlob(ctx, p.Layer)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	sess, err := s.newSession("unpack-" + job.MapKey)
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
	s.log.Debug("unpack layer", "diffID", p.DiffID, "map", job.MapKey, "lowers", len(job.Lowers), "alone", job.Alone)
	job.Blob, job.MediaType, job.DiffID, job.Dest, job.Limits = blob, p.MediaType, p.DiffID, sess.path(layerTree), s.limits
	res, err := s.unpack(ctx, job)
	if err != nil {
		return nil, s.explainUnpack(ctx, p.Layer, err)
	}
	for _, n := range res.Notes {
		s.log.Info("unpacking a layer", "diffID", p.DiffID, "note", n)
	}
	name := p.shared()
	if res.NeedsLowers && !job.Alone {
		name = p.chained()
	}
	dir, err := s.publishLayer(sess, job.MapKey, name, &res)
	if err != nil {
		return nil, classify("unpack layer", p.DiffID, err)
	}
	moved = true
	if res.NeedsLowers && job.Alone {
		return nil, nil
	}
	return &unpacked{tree: filepath.Join(dir, layerTree), meta: &res}, nil
}

// publishLayer brings the layer to disk and gives it its name.
func (s *Store) publishLayer(sess *session, mapKey, name string, res *UnpackResult) (dir string, err error) {
	b, err := json.Marshal(res)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(sess.path(layerMeta), b, 0o600); err != nil {
		return "", err
	}
	// A layer has too many files for one fsync each.
	if err := unix.Syncfs(int(sess.f.Fd())); err != nil {
		return "", os.NewSyscallError("syncfs", err)
	}
	dir = s.layerDir(mapKey, name)
	parent := filepath.Dir(dir)
	if err := os.Mkdir(parent, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	// What is in the way has no layer.json, hence does not come from here, or
	// only says that the layer needs lower ones, which its blob did not prove.
	if err := s.removeTree(context.Background(), dir); err != nil {
		return "", err
	}
	if err := os.Rename(sess.dir, dir); err != nil {
		return "", err
	}
	return dir, syncDir(parent)
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
