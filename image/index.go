package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// index.json says which images exist and what they are called. It is only ever
// replaced as a whole, under the lock index.lock: each change of the store, such
// as moving a tag, is one rename. Readers need no lock.

const (
	indexVersion = 1
	maxIndex     = 64 << 20
)

type index struct {
	Version int `json:"version"`
	// Images by id.
	Images map[string]*record `json:"images"`
	// Refs are the full names with tags, and the id each means.
	Refs map[string]string `json:"refs"`

	// held are the leases that a removal has taken, until it is written.
	held []*fileLock
	// changes are told when they are written.
	changes []change
}

// change is one for Config.Event.
type change struct{ action, id, name string }

func (x *index) tell(action, id, name string) {
	x.changes = append(x.changes, change{action, id, name})
}

// record is an image as the index keeps it.
type record struct {
	ID       string     `json:"id"`
	Manifest Descriptor `json:"manifest"`
	// Index is the manifest list through which it came, if any.
	Index *Descriptor `json:"index,omitempty"`
	// Config is the configuration blob; its digest is the id.
	Config Descriptor `json:"config"`
	// Layers from the bottom up.
	Layers []Layer `json:"layers"`
	// Digests are the names with digest under which it was pulled.
	Digests []string  `json:"digests,omitempty"`
	Added   time.Time `json:"added"`
	// Binary is set for the demo image.
	Binary *fileStamp `json:"binary,omitempty"`
}

// Descriptor names a blob.
type Descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

// Layer of an image.
type Layer struct {
	Descriptor
	// DiffID is the digest of the uncompressed layer.
	DiffID string `json:"diffID"`
}

func (r *record) blobs() []string {
	out := []string{r.Manifest.Digest, r.Config.Digest}
	if r.Index != nil {
		out = append(out, r.Index.Digest)
	}
	for _, l := range r.Layers {
		out = append(out, l.Digest)
	}
	return out
}

func (x *index) names(id string) []string {
	var out []string
	for n, i := range x.Refs {
		if i == id {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

func (s *Store) indexPath() string { return filepath.Join(s.root, "index.json") }

func (s *Store) readIndex() (*index, error) {
	x := &index{Version: indexVersion, Images: map[string]*record{}, Refs: map[string]string{}}
	f, err := os.Open(s.indexPath())
	if errors.Is(err, fs.ErrNotExist) {
		return x, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the image store: %w", err)
	}
	defer f.Close()
	b, err := readLimited(f, maxIndex)
	if err == nil {
		err = json.Unmarshal(b, x)
	}
	if err == nil {
		err = x.check()
	}
	if err != nil {
		return nil, &Error{Op: "read", Subject: s.indexPath(), Err: err,
			Fix: "move the file away to start with an empty store; images must then be pulled again"}
	}
	return x, nil
}

func (x *index) check() error {
	if x.Version != indexVersion {
		return fmt.Errorf("version %d, this program knows %d", x.Version, indexVersion)
	}
	for id, r := range x.Images {
		if r == nil || r.ID != id {
			return fmt.Errorf("entry %q is damaged", id)
		}
		for _, d := range r.blobs() {
			if !validDigest(d) {
				return fmt.Errorf("image %s: bad digest %q", id, d)
			}
		}
		for _, l := range r.Layers {
			if !validDigest(l.DiffID) {
				return fmt.Errorf("image %s: bad digest %q", id, l.DiffID)
			}
		}
	}
	for n, id := range x.Refs {
		if x.Images[id] == nil {
			return fmt.Errorf("%s names the unknown image %s", n, id)
		}
	}
	if x.Refs == nil {
		x.Refs = map[string]string{}
	}
	if x.Images == nil {
		x.Images = map[string]*record{}
	}
	return nil
}

func (s *Store) lockIndex(ctx context.Context) (*fileLock, error) {
	l, err := waitLock(ctx, filepath.Join(s.root, "index.lock"), unix.LOCK_EX)
	if err != nil {
		return nil, classify("lock image store", s.root, err)
	}
	return l, nil
}

// update changes the index under its lock. Nothing is written if fn fails.
func (s *Store) update(ctx context.Context, fn func(*index) error) error {
	l, err := s.lockIndex(ctx)
	if err != nil {
		return err
	}
	defer l.unlock()
	x, err := s.readIndex()
	if err != nil {
		return err
	}
	if err := fn(x); err != nil {
		return err
	}
	return s.writeIndex(x)
}

// writeIndex replaces the index. The caller holds its lock.
func (s *Store) writeIndex(x *index) (err error) {
	b, err := json.MarshalIndent(x, "", " ")
	if err != nil {
		return fmt.Errorf("write the image store: %w", err)
	}
	tmp := s.indexPath() + ".new"
	defer func() {
		if err != nil {
			err = classify("write", s.indexPath(), err)
			if rerr := os.Remove(tmp); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				err = errors.Join(err, rerr)
			}
		}
	}()
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(append(b, '\n')); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(tmp, s.indexPath()); err != nil {
		return err
	}
	if s.cfg.Event != nil {
		for _, c := range x.changes {
			s.cfg.Event(c.action, c.id, c.name)
		}
	}
	return syncDir(s.root)
}
