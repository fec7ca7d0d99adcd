package fsoverlay

import (
	"errors"
	"io/fs"
	"path"
	"strings"

	"github.com/rootless-sbx/sbx/internal/inroot"
	"golang.org/x/sys/unix"
)

// opaqueXattr on a directory hides what lower layers have below it.
const opaqueXattr = "user.overlay.opaque"

// The marks as files, for a file system that takes no device 0:0 or no user.*
// attributes: ".wh.NAME" hides NAME, ".wh..wh..opq" what is below its directory.
// No file of an image can have such a name, since that is what they mean in its
// layers. A mark speaks of the layers below its own only: NAME beside it stays,
// but does not merge. (fuse-overlayfs hides that too: an unpacker must not leave
// both.)
const (
	whPrefix = ".wh."
	whOpaque = ".wh..wh..opq"
)

// stack is the merged view of layer directories, read without mounting them. A
// layer that somebody writes to meanwhile is read as far as that goes: what has gone
// is an error, and no link leads out of it. One goroutine at a time.
type stack struct {
	roots []int // top first
	// plain: one directory that is no layer, where no name has a meaning.
	plain bool
	// deviceMarks: the top layer is written to by the kernel's overlay, for which
	// no name has a meaning either.
	deviceMarks bool

	dirs []openDir // by layer: the directory used last
}

type openDir struct {
	path string
	fd   int
}

// node is one name in the merged view.
type node struct {
	rel string
	// layers that it comes from, top first: one, or for a directory all that merge.
	layers []int
	st     unix.Stat_t // of the top one
}

func (n *node) isDir() bool  { return n.st.Mode&unix.S_IFMT == unix.S_IFDIR }
func (n *node) isLink() bool { return n.st.Mode&unix.S_IFMT == unix.S_IFLNK }

func openStack(lowers []string) (*stack, error) {
	fds, err := openLowers(&RootSpec{Lowers: lowers})
	if err != nil {
		return nil, err
	}
	return &stack{roots: fds}, nil
}

func (s *stack) close() {
	closeAll(s.roots)
	s.forget()
}

// forget closes the directories that are kept open.
func (s *stack) forget() {
	for _, d := range s.dirs {
		if d.path != "" {
			unix.Close(d.fd)
		}
	}
	s.dirs = nil
}

// at returns the directory of rel in a layer, good until the next call, and rel's
// last name.
func (s *stack) at(layer int, rel string) (dir int, base string, err error) {
	parent := path.Dir(rel)
	if parent == "." {
		return s.roots[layer], rel, nil
	}
	if s.dirs == nil {
		s.dirs = make([]openDir, len(s.roots))
	}
	d := &s.dirs[layer]
	if d.path != parent {
		fd, err := inroot.Open(s.roots[layer], parent, inroot.Lookup{NoLinks: true})
		if err != nil {
			return -1, "", err
		}
		if d.path != "" {
			unix.Close(d.fd)
		}
		*d = openDir{parent, fd}
	}
	return d.fd, path.Base(rel), nil
}

func (s *stack) stat(layer int, rel string) (st unix.Stat_t, err error) {
	dir, base, err := s.at(layer, rel)
	if err == nil {
		err = unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	return st, err
}

// openAt opens rel of a layer for reading. It never blocks on a fifo.
func (s *stack) openAt(layer int, rel string, flags int) (int, error) {
	dir, base, err := s.at(layer, rel)
	if err != nil {
		return -1, err
	}
	return unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC|flags, 0)
}

// root is the top directory. One layer may hide all below it.
func (s *stack) root() (node, error) { return s.merge(".", s.all()) }

func (s *stack) all() []int {
	out := make([]int, len(s.roots))
	for i := range out {
		out[i] = i
	}
	return out
}

// lookup finds name in dir, or fs.ErrNotExist. A link is not followed.
func (s *stack) lookup(dir node, name string) (node, error) {
	return s.merge(path.Join(dir.rel, name), dir.layers)
}

// merge applies the overlay's rules to rel in the given layers. Every component
// of rel but the last is known to be a directory in each of them.
func (s *stack) merge(rel string, layers []int) (node, error) {
	n := node{rel: rel}
	if !s.plain && strings.HasPrefix(path.Base(rel), whPrefix) {
		if !s.deviceMarks || len(layers) == 0 || layers[0] != 0 {
			layers = nil // a mark is no file
		} else {
			layers = layers[:1]
		}
	}
	for _, i := range layers {
		st, err := s.stat(i, rel)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return n, &fs.PathError{Op: "stat", Path: rel, Err: err}
		}
		if err == nil {
			kind := st.Mode & unix.S_IFMT
			if kind == unix.S_IFCHR && st.Rdev == 0 {
				break // whiteout
			}
			if kind != unix.S_IFDIR {
				if len(n.layers) == 0 {
					n.layers, n.st = []int{i}, st
				}
				break
			}
			if len(n.layers) == 0 {
				n.st = st
			}
			n.layers = append(n.layers, i)
		}
		hides, err := s.hides(i, rel, err == nil)
		if err != nil {
			return n, err
		}
		if hides {
			break
		}
	}
	if len(n.layers) == 0 {
		return n, &fs.PathError{Op: "lookup", Path: rel, Err: unix.ENOENT}
	}
	return n, nil
}

// hides says whether a layer ends the view of rel, where it has a directory or
// nothing.
func (s *stack) hides(layer int, rel string, dir bool) (bool, error) {
	if layer == len(s.roots)-1 {
		return false, nil // nothing below to hide
	}
	fileMarks := !s.deviceMarks || layer > 0
	if rel != "." && fileMarks {
		whiteout, err := s.exists(layer, path.Join(path.Dir(rel), whPrefix+path.Base(rel)))
		if err != nil || whiteout {
			return whiteout, err
		}
	}
	if !dir {
		return false, nil
	}
	fd, err := s.openAt(layer, rel, unix.O_DIRECTORY)
	if err != nil {
		return false, &fs.PathError{Op: "open", Path: rel, Err: err}
	}
	defer unix.Close(fd)
	if fileMarks {
		var st unix.Stat_t
		err := unix.Fstatat(fd, whOpaque, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err == nil, err
		}
	}
	var b [4]byte
	n, err := unix.Fgetxattr(fd, opaqueXattr, b[:])
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	return n == 1 && b[0] == 'y', err
}

// exists looks for a mark. A name so long that a mark for it cannot exist has none.
func (s *stack) exists(layer int, rel string) (bool, error) {
	_, err := s.stat(layer, rel)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENAMETOOLONG) {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "stat", Path: rel, Err: err}
	}
	return true, nil
}

// list returns the names that the layers of dir have, without repetition. Some
// may turn out not to exist, by a whiteout.
func (s *stack) list(dir node) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	for _, i := range dir.layers {
		parent, base, err := s.at(i, dir.rel)
		var names []string
		if err == nil {
			names, err = inroot.Names(parent, base)
		}
		if err != nil {
			return nil, &fs.PathError{Op: "list", Path: dir.rel, Err: err}
		}
		if len(dir.layers) == 1 {
			return names, nil
		}
		for _, n := range names {
			if !seen[n] {
				seen[n] = true
				out = append(out, n)
			}
		}
	}
	return out, nil
}

// open opens what n shows, for reading.
func (s *stack) open(n node) (int, error) { return s.openAt(n.layers[0], n.rel, 0) }

func (s *stack) readlink(n node) (string, error) {
	dir, base, err := s.at(n.layers[0], n.rel)
	if err != nil {
		return "", err
	}
	return inroot.ReadlinkAt(dir, base)
}

// resolve follows p inside the view as a process with this root would. It
// returns the directories passed, the last of which exists, and the names that
// are missing after it; none if p exists, which is then the last of found.
func (s *stack) resolve(p string) (found []node, missing []string, err error) {
	top, err := s.root()
	if err != nil {
		return nil, nil, err
	}
	found = []node{top}
	todo := inroot.Split(p)
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		if name == ".." {
			if len(missing) > 0 {
				return nil, nil, unix.ENOENT
			}
			if len(found) > 1 {
				found = found[:len(found)-1]
			}
			continue
		}
		if len(missing) > 0 {
			missing = append(missing, name)
			continue
		}
		cur := found[len(found)-1]
		if !cur.isDir() {
			return nil, nil, unix.ENOTDIR
		}
		n, err := s.lookup(cur, name)
		if errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, name)
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if n.isLink() {
			if links++; links > inroot.MaxLinks {
				return nil, nil, unix.ELOOP
			}
			target, err := s.readlink(n)
			if err != nil {
				return nil, nil, err
			}
			if path.IsAbs(target) {
				found = found[:1]
			}
			todo = append(inroot.Split(target), todo...)
			if len(todo) > 2*inroot.MaxDepth {
				return nil, nil, unix.ENAMETOOLONG
			}
			continue
		}
		found = append(found, n)
	}
	return found, missing, nil
}
