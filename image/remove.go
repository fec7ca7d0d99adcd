package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/rootless-sbx/sbx/internal/flock"
	"golang.org/x/sys/unix"
)

// Remove takes a name away, or with its last name the image; by id, the image
// with all its names, for which force is needed if those are of several
// repositories. An image in use stays (ErrInUse), force or not. It returns what
// it did in Docker's words: "Untagged: NAME", "Deleted: ID".
func (s *Store) Remove(ctx context.Context, ref string, force bool) ([]string, error) {
	var done []string
	err := s.change(ctx, func(x *index) error {
		rec, name, err := x.find(ref)
		if err != nil {
			return err
		}
		names := x.names(rec.ID)
		if name != "" && len(names) > 1 {
			delete(x.Refs, name)
			x.tell("untag", rec.ID, familiar(name))
			done = append(done, "Untagged: "+familiar(name))
			return nil
		}
		if repos := repositories(names); name == "" && len(repos) > 1 && !force {
			return &Error{Kind: ErrConflict, Op: "remove image", Subject: ref,
				Msg: "it is known as " + strings.Join(repos, ", "), Fix: "remove it by name, or use force"}
		}
		deleted, err := s.deleteRecord(ctx, x, rec)
		done = append(done, deleted...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return done, nil
}

// Prune removes the images that match, nil is all of them, and that are not in use.
func (s *Store) Prune(ctx context.Context, match func(*Image) bool) ([]string, error) {
	var done []string
	err := s.change(ctx, func(x *index) error {
		for _, rec := range x.Images {
			if match != nil && !match(s.image(x, rec)) {
				continue
			}
			deleted, err := s.deleteRecord(ctx, x, rec)
			if errors.Is(err, ErrInUse) {
				continue
			}
			if err != nil {
				return err
			}
			done = append(done, deleted...)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return done, nil
}

// GC removes what no image needs: blobs, layers for all id maps, the remains of
// processes that died. What running pulls and loads count on stays. Removing an
// image includes it.
func (s *Store) GC(ctx context.Context) error {
	return s.change(ctx, nil)
}

func repositories(names []string) []string {
	var out []string
	seen := map[string]bool{}
	for _, n := range names {
		r, err := ParseReference(n)
		if err == nil && !seen[r.Repository()] {
			seen[r.Repository()] = true
			out = append(out, familiarRepo(r.Repository()))
		}
	}
	return out
}

// deleteRecord takes the image out of the index. Its lock file goes at the next
// collection; until the index is written nobody can get a lease, because the
// lock taken here is held until after that: see change.
func (s *Store) deleteRecord(ctx context.Context, x *index, rec *record) ([]string, error) {
	l, err := tryLock(s.lockPath(leaseName(rec.ID)), unix.LOCK_EX)
	if errors.Is(err, flock.ErrLocked) {
		return nil, &Error{Kind: ErrInUse, Op: "remove image", Subject: rec.ID, Fix: "stop the sandboxes that use it first"}
	}
	if err != nil {
		return nil, classify("remove image", rec.ID, err)
	}
	// After the lock: who lets go of a lease is counted among the users by then.
	if err := s.checkUsers(ctx, rec.ID); err != nil {
		return nil, errors.Join(err, l.unlock())
	}
	x.held = append(x.held, l)
	var done []string
	for _, n := range x.names(rec.ID) {
		done = append(done, "Untagged: "+familiar(n))
		x.tell("untag", rec.ID, familiar(n))
		delete(x.Refs, n)
	}
	for _, d := range rec.Digests {
		done = append(done, "Untagged: "+familiar(d))
	}
	x.tell("delete", rec.ID, rec.ID)
	delete(x.Images, rec.ID)
	return append(done, "Deleted: "+rec.ID), nil
}

// checkUsers refuses to remove what somebody uses without a lease.
func (s *Store) checkUsers(ctx context.Context, id string) error {
	if s.cfg.Users == nil {
		return nil
	}
	users, err := s.cfg.Users(ctx)
	if err != nil {
		return fmt.Errorf("find what uses the image: %w", err)
	}
	if who := users[id]; who != "" {
		return &Error{Kind: ErrInUse, Op: "remove image", Subject: id, Msg: "image is in use by sandbox " + who, Fix: "remove that first: sbx rm " + who}
	}
	return nil
}

// change applies fn to the index, if fn is not nil, and then collects garbage.
// What goes is first moved into a session, under the index lock, and removed
// after it is released: a large layer takes its time.
func (s *Store) change(ctx context.Context, fn func(*index) error) (err error) {
	lock, err := s.lockIndex(ctx)
	if err != nil {
		return err
	}
	locked := true
	unlock := func() error {
		if !locked {
			return nil
		}
		locked = false
		return lock.unlock()
	}
	defer func() { err = errors.Join(err, unlock()) }()
	x, err := s.readIndex()
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range x.held {
			err = errors.Join(err, l.discard())
		}
	}()
	if fn != nil {
		if err := fn(x); err != nil {
			return err
		}
		if err := s.writeIndex(x); err != nil {
			return err
		}
	}
	sess, err := s.newSession("gc")
	if err != nil {
		return err
	}
	err = errors.Join(s.collect(ctx, x, sess), unlock())
	return errors.Join(err, sess.close(ctx))
}

// collect moves everything that the index does not name into the session.
func (s *Store) collect(ctx context.Context, x *index, sess *session) error {
	keep, _, err := s.sweep(ctx)
	if err != nil {
		s.log.Warn("could not clean up", "store", s.root, "err", err)
	}
	if keep == nil {
		return err // without the pins nothing may be judged
	}
	layers := map[string]bool{}
	keepLayers := func(list []Layer) {
		for _, p := range places(list) {
			layers[p.shared()], layers[p.chained()] = true, true
		}
	}
	keepLayers(nil)
	for _, r := range x.Images {
		for _, d := range r.blobs() {
			keep[d] = true
		}
		keepLayers(r.Layers)
	}
	var errs []error
	move := func(path string) {
		if err := os.Rename(path, sess.path("old-"+randomName())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, classify("remove", path, err))
		}
	}
	blobs := filepath.Join(s.root, "blobs", "sha256")
	if err := eachName(blobs, func(n string) {
		if !keep["sha256:"+n] {
			move(filepath.Join(blobs, n))
		}
	}); err != nil {
		errs = append(errs, err)
	}
	base := filepath.Join(s.root, "layers")
	var keys []string
	if err := eachName(base, func(key string) { keys = append(keys, filepath.Join(base, key)) }); err != nil {
		errs = append(errs, err)
	}
	for _, dir := range keys {
		if err := eachName(dir, func(n string) {
			if !layers[n] {
				move(filepath.Join(dir, n))
			}
		}); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, s.collectLocks(x))
	return errors.Join(errs...)
}

// collectLocks removes lock files that dead processes have left. Those of
// images that exist stay, for they may be about to be used.
func (s *Store) collectLocks(x *index) error {
	mine := map[string]bool{}
	for _, l := range x.held {
		mine[filepath.Base(l.path)] = true
	}
	for id := range x.Images {
		mine[leaseName(id)] = true
	}
	var errs []error
	err := eachName(filepath.Join(s.root, "locks"), func(n string) {
		if mine[n] {
			return
		}
		l, err := tryLock(s.lockPath(n), unix.LOCK_EX)
		if err == nil {
			err = l.discard()
		}
		if err != nil && !errors.Is(err, flock.ErrLocked) && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	})
	return errors.Join(append(errs, err)...)
}

func eachName(dir string, fn func(name string)) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	for _, e := range entries {
		fn(e.Name())
	}
	return nil
}
