package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"golang.org/x/sys/unix"
)

// Config of a Store. Only Root is needed.
type Config struct {
	// Root is the store's directory. It is made if missing, with mode 0700:
	// layers contain set-user-id files that belong to the user.
	Root string
	// Unpack runs image.Unpack on the job in a process inside the user
	// namespace that the job's MapKey stands for. Nil: in this process, with
	// Single unless it is root.
	Unpack Unpacker
	// Remover removes a directory below Root whose files belong to subordinate
	// ids, from inside a user namespace with those. It is asked only for what
	// this process may not remove. Nil: such directories stay, and
	// the operation fails.
	Remover func(ctx context.Context, path string) error
	// Users says what else uses images though nobody holds a lease: by the id of the
	// image, a name for a message. Such an image is not removed. Nil: nothing does.
	Users func(ctx context.Context) (map[string]string, error)
	// Event is told of each change: the action is pull, load, tag, untag or delete, the
	// name as the user writes it. Nil: nobody is.
	Event func(action, id, name string)
	// Logger: nil discards.
	Logger *slog.Logger
	// Keychain has the credentials of registries. Nil: those of Docker and
	// Podman, from their files and credential helpers.
	Keychain authn.Keychain
	// Insecure lists registries (host or host:port) that may be asked by plain
	// HTTP or with a certificate that does not verify. Loopback registries may
	// be asked by plain HTTP anyway.
	Insecure []string
	// TLS is used towards registries. Nil: the system's roots.
	TLS *tls.Config
	// Limits bound what is accepted; zero fields mean their defaults.
	Limits Limits
	// Downloads is how many layers are fetched at once. Zero: 3.
	Downloads int
	// Retries is how often a failed request is repeated. Zero: 4; negative: never.
	Retries int
	// Backoff is the wait before the first repetition; it doubles each time.
	// Zero: 500 ms.
	Backoff time.Duration
	// StallTimeout ends a download from which no byte comes. Zero: 60 s.
	StallTimeout time.Duration
}

// Store holds images. Its methods may be called from several goroutines, and
// several processes may have the same store open.
type Store struct {
	cfg     Config
	root    string
	log     *slog.Logger
	limits  Limits
	unpack  Unpacker
	remover func(ctx context.Context, path string) error
}

// Open opens the store and makes it if needed. It removes what processes that
// died have left unfinished. There is nothing to close.
func Open(cfg Config) (*Store, error) {
	if cfg.Root == "" {
		return nil, errors.New("image store: Root is not set")
	}
	root, err := filepath.Abs(cfg.Root)
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	if cfg.Downloads <= 0 {
		cfg.Downloads = 3
	}
	switch {
	case cfg.Retries == 0:
		cfg.Retries = 4
	case cfg.Retries < 0:
		cfg.Retries = 0
	}
	if cfg.Backoff <= 0 {
		cfg.Backoff = 500 * time.Millisecond
	}
	if cfg.StallTimeout <= 0 {
		cfg.StallTimeout = time.Minute
	}
	if cfg.Keychain == nil {
		cfg.Keychain = authn.DefaultKeychain
	}
	s := &Store{cfg: cfg, root: root, log: cfg.Logger, limits: cfg.Limits.withDefaults(), unpack: cfg.Unpack, remover: cfg.Remover}
	if s.log == nil {
		s.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if s.unpack == nil {
		s.unpack = unpackHere
	}
	if err := s.makeDirs(); err != nil {
		return nil, err
	}
	if _, err := s.readIndex(); err != nil {
		return nil, err
	}
	_, swept, err := s.sweep(context.Background())
	if swept > 0 {
		s.log.Info("removed what dead processes had left unfinished", "count", swept, "store", root)
	}
	if err != nil && !errors.Is(err, unix.EROFS) {
		s.log.Warn("could not clean up the image store", "store", root, "err", err)
	}
	return s, nil
}

// makeDirs makes the store's directories. On a read-only file system an
// existing store can still be read.
func (s *Store) makeDirs() error {
	if err := os.MkdirAll(s.root, 0o700); err != nil {
		return classify("make image store", s.root, err)
	}
	for _, d := range []string{"", "blobs", "blobs/sha256", "layers", "locks", "tmp"} {
		p := filepath.Join(s.root, d)
		if d != "" {
			if err := os.Mkdir(p, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return classify("make image store", p, err)
			}
		}
		fi, err := os.Stat(p)
		if err != nil {
			return classify("open image store", p, err)
		}
		if fi.Mode().Perm()&0o077 != 0 {
			if err := os.Chmod(p, 0o700); err != nil && !errors.Is(err, unix.EROFS) {
				return &Error{Op: "open image store", Subject: p, Err: err,
					Fix: "other users must not get into it: run chmod 700 " + p + " as its owner"}
			}
		}
	}
	return nil
}

// Root is the store's directory.
func (s *Store) Root() string { return s.root }

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
