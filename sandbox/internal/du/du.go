// Package du measures what trees take on the disk.
package du

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// blockSize is the unit of st_blocks, whatever the file system's.
const blockSize = 512

// Sizes are what the trees at the paths take, in bytes. A file that has several names
// counts once, in the first tree that has it; what is not there, 0.
func Sizes(ctx context.Context, paths []string) ([]int64, error) {
	seen := map[inode]bool{}
	out := make([]int64, len(paths))
	for i, p := range paths {
		n, err := size(ctx, p, seen)
		if err != nil {
			return nil, err
		}
		out[i] = n
	}
	return out, nil
}

type inode struct{ dev, ino uint64 }

// size walks one tree. A guest may be changing it: no link is followed out of it, and
// what vanishes meanwhile is passed over.
func size(ctx context.Context, path string, seen map[inode]bool) (int64, error) {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	total := blocks(fi, seen)
	if !fi.IsDir() {
		return total, nil
	}
	root, err := os.OpenRoot(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(_ string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return skip(err)
		}
		fi, err := d.Info()
		if err != nil {
			return skip(err)
		}
		total += blocks(fi, seen)
		return nil
	})
	return total, err
}

// skip passes over what is not there any more, and what is no directory any more.
func skip(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
		return nil
	}
	return err
}

func blocks(fi fs.FileInfo, seen map[inode]bool) int64 {
	st := fi.Sys().(*syscall.Stat_t)
	if st.Nlink > 1 || fi.IsDir() {
		id := inode{uint64(st.Dev), st.Ino}
		if seen[id] {
			return 0
		}
		seen[id] = true
	}
	return int64(st.Blocks) * blockSize
}
