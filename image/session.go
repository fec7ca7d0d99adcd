package image

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/rootless-sbx/sbx/internal/flock"
	"golang.org/x/sys/unix"
)

// A session is a directory below tmp/ that a running operation owns, by a flock
// on the directory itself. When its process dies, the next sweep removes it.
//
// Its file "pins" names the blobs that the operation counts on although no
// image refers to them yet; GC leaves those alone. Pins are written and GC runs
// under the index lock: a blob seen after pinning it stays.
type session struct {
	s   *Store
	dir string
	f   *os.File
}

const pinsFile = "pins"

func (s *Store) newSession(kind string) (*session, error) {
	for {
		dir := filepath.Join(s.root, "tmp", kind+"-"+randomName())
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, classify("make", dir, err)
		}
		f, err := os.Open(dir)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue // swept before it was locked
			}
			return nil, classify("open", dir, err)
		}
		if flock.Try(f, unix.LOCK_EX) == nil && flock.AtPath(f, dir) {
			return &session{s: s, dir: dir, f: f}, nil
		}
		f.Close()
	}
}

func randomName() string {
	var b [8]byte
	rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

func (x *session) path(name string) string { return filepath.Join(x.dir, name) }

// pin keeps GC away from the blobs until the session ends. It writes the whole
// list; earlier pins stay.
func (x *session) pin(ctx context.Context, digests ...string) error {
	l, err := x.s.lockIndex(ctx)
	if err != nil {
		return err
	}
	defer l.unlock()
	f, err := os.OpenFile(x.path(pinsFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return classify("pin blobs in", x.dir, err)
	}
	_, err = f.WriteString(strings.Join(digests, "\n") + "\n")
	return classify("pin blobs in", x.dir, errors.Join(err, f.Close()))
}

// close removes the directory and what is still in it.
func (x *session) close(ctx context.Context) error {
	err := x.s.removeTree(context.WithoutCancel(ctx), x.dir)
	return errors.Join(err, x.f.Close())
}

// sweep removes the sessions of dead processes, adding up the pins of living
// ones. It returns how many it removed.
func (s *Store) sweep(ctx context.Context) (pins map[string]bool, swept int, err error) {
	tmp := filepath.Join(s.root, "tmp")
	entries, err := os.ReadDir(tmp)
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", tmp, err)
	}
	pins = map[string]bool{}
	var errs []error
	for _, e := range entries {
		dir := filepath.Join(tmp, e.Name())
		f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if flock.Try(f, unix.LOCK_EX) == nil {
			if err := s.removeTree(ctx, dir); err != nil {
				errs = append(errs, fmt.Errorf("remove left-over %s: %w", dir, err))
			} else {
				swept++
			}
		} else if b, err := os.ReadFile(filepath.Join(dir, pinsFile)); err == nil {
			for _, d := range strings.Fields(string(b)) {
				pins[d] = true
			}
		}
		f.Close()
	}
	return pins, swept, errors.Join(errs...)
}
