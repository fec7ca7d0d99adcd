package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/internal/rmtree"
	"golang.org/x/sys/unix"
)

// stackJob is for a child that is root of its user namespace and has a mount
// namespace: it unpacks layers on top of each other and looks at them through the
// kernel's overlay.
type stackJob struct {
	Dir   string
	Cases []stackCase
}

type stackCase struct {
	// Tars are layers to unpack, the lowest first.
	Tars [][]byte
	// Layers are trees that exist, the top one first, if there are no Tars.
	Layers []string
	// Walk: without openat2.
	Walk bool
}

// stackReply has what was seen: path -> entry, see describe.
type stackReply struct {
	Overlay map[string]string
	Results []UnpackResult
	// Err is why a layer could not be unpacked.
	Err string
	// Plain is the same after extracting all layers into one directory, as
	// Docker does on file systems without layers; PlainErr if that fails.
	Plain    map[string]string
	PlainErr string
}

// runStacks runs cases in a user namespace.
func runStacks(t *testing.T, cases ...stackCase) []stackReply {
	t.Helper()
	b := mustJSON(t, stackJob{Dir: t.TempDir(), Cases: cases})
	reply, err := inUserns(context.Background(), "stack", string(b), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	return reply.Stacks
}

func (j stackJob) run() (out []stackReply, err error) {
	// For real root the mounts are shared with the host's.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	for i, c := range j.Cases {
		dir := filepath.Join(j.Dir, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
		r, err := c.run(dir)
		if err := errors.Join(err, rmtree.Remove(dir)); err != nil {
			return nil, fmt.Errorf("case %d: %w", i, err)
		}
		out = append(out, r)
	}
	return out, nil
}

func (c stackCase) run(dir string) (r stackReply, err error) {
	lowers := c.Layers
	for i, b := range c.Tars {
		f, err := os.Create(filepath.Join(dir, "blob"))
		if err != nil {
			return r, err
		}
		if _, err = f.Write(b); err == nil {
			var res UnpackResult
			dest := filepath.Join(dir, fmt.Sprint("layer", i))
			res, err = Unpack(context.Background(), UnpackJob{Blob: f, DiffID: digestOf(b), Dest: dest, Lowers: lowers, noOpenat2: c.Walk})
			lowers = append([]string{dest}, lowers...)
			r.Results = append(r.Results, res)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			r.Err = err.Error()
			break
		}
	}
	if r.Err == "" {
		if r.Overlay, err = viewOverlay(dir, lowers); err != nil {
			return r, err
		}
	}
	plain := filepath.Join(dir, "plain")
	if err := os.Mkdir(plain, 0o755); err != nil {
		return r, err
	}
	err = inChroot(plain, func() error {
		for _, b := range c.Tars {
			if err := extract(b); err != nil {
				r.PlainErr = err.Error()
				return nil
			}
		}
		r.Plain, err = describeTree("/")
		return err
	})
	return r, err
}

// viewOverlay mounts the layers and describes what shows.
func viewOverlay(dir string, layers []string) (map[string]string, error) {
	mnt, empty := filepath.Join(dir, "mnt"), filepath.Join(dir, "empty")
	if err := errors.Join(os.Mkdir(mnt, 0o755), os.Mkdir(empty, 0o755)); err != nil {
		return nil, err
	}
	// An overlay without a writable layer wants two.
	opts := "userxattr,lowerdir=" + strings.Join(append(slices.Clone(layers), empty), ":")
	if err := unix.Mount("overlay", mnt, "overlay", 0, opts); err != nil {
		return nil, fmt.Errorf("mount overlay: %w", err)
	}
	view, err := describeTree(mnt)
	return view, errors.Join(err, unix.Unmount(mnt, 0))
}

func describeTree(root string) (map[string]string, error) {
	out := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		switch what, err := describe(p); {
		case errors.Is(err, unix.ENOENT):
			// The kernel lists whiteouts in a directory that only one layer has.
		case err != nil:
			return fmt.Errorf("%s: %w", rel, err)
		default:
			out[rel] = what
		}
		return nil
	})
	return out, err
}

// describe gives "dir 1777 0:0 XATTR", "file 644 0:0 CONTENT" or "link TARGET",
// where XATTR is the value of user.k.
func describe(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", err
	}
	what := fmt.Sprintf("%o %d:%d ", st.Mode&0o7777, st.Uid, st.Gid)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		to, err := os.Readlink(path)
		return "link " + to, err
	case unix.S_IFREG:
		b, err := os.ReadFile(path)
		return "file " + what + string(b), err
	}
	b := make([]byte, 64)
	n, err := unix.Lgetxattr(path, "user.k", b)
	if err != nil && err != unix.ENODATA {
		return "", err
	}
	return "dir " + what + string(b[:max(n, 0)]), nil
}

func inChroot(dir string, fn func() error) error {
	old, err := os.Open("/")
	if err != nil {
		return err
	}
	defer old.Close()
	if err := errors.Join(os.Chdir(dir), unix.Chroot(".")); err != nil {
		return err
	}
	err = fn()
	return errors.Join(err, old.Chdir(), unix.Chroot("."))
}

// extract puts a layer on top of what is in "/", in the simplest way.
func extract(b []byte) error {
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		p := "/" + h.Name
		if err := os.MkdirAll(filepath.Dir(filepath.Clean(p)), 0o755); err != nil {
			return err
		}
		dir, base := filepath.Split(filepath.Clean(p))
		if dir, err = filepath.EvalSymlinks(dir); err != nil {
			return err
		}
		dir += "/"
		if base == whOpaque {
			old, err := os.ReadDir(dir)
			for _, e := range old {
				err = errors.Join(err, os.RemoveAll(dir+e.Name()))
			}
			if err != nil {
				return err
			}
			continue
		}
		if hidden, ok := strings.CutPrefix(base, whPrefix); ok {
			if err := os.RemoveAll(dir + hidden); err != nil {
				return err
			}
			continue
		}
		fi, err := os.Lstat(dir + base)
		isDir := err == nil && fi.IsDir()
		if err == nil && !(isDir && h.Typeflag == tar.TypeDir) {
			if err := os.RemoveAll(dir + base); err != nil {
				return err
			}
			isDir = false
		}
		switch h.Typeflag {
		case tar.TypeDir:
			if !isDir {
				err = os.Mkdir(p, 0o755)
			} else {
				err = nil
			}
		case tar.TypeSymlink:
			err = os.Symlink(h.Linkname, p)
		case tar.TypeLink:
			err = os.Link("/"+h.Linkname, p)
		default:
			var body []byte
			if body, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(p, body, 0o644)
			}
		}
		if err == nil && h.Typeflag != tar.TypeSymlink && h.Typeflag != tar.TypeLink {
			err = errors.Join(os.Chown(p, h.Uid, h.Gid), unix.Chmod(p, uint32(h.Mode)))
			if k, ok := h.PAXRecords[paxXattr+"user.k"]; ok {
				err = errors.Join(err, unix.Setxattr(p, "user.k", []byte(k), 0))
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
