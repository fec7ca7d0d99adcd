package image

import (
	"context"
	"errors"

	"github.com/rootless-sbx/sbx/internal/rmtree"
	"golang.org/x/sys/unix"
)

// removeTree removes a directory of the store, which may hold files of
// subordinate ids: first by itself, then through Config.Remover.
func (s *Store) removeTree(ctx context.Context, path string) error {
	err := rmtree.Remove(path)
	if err == nil || s.remover == nil || !isPermission(err) {
		return err
	}
	return s.remover(ctx, path)
}

func isPermission(err error) bool {
	return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)
}
