package fsoverlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/rootless-sbx/sbx/internal/inroot"
	"golang.org/x/sys/unix"
)

// InitLayerConfig says what mount points a sandbox needs.
type InitLayerConfig struct {
	// Lowers are the image's layers, top first.
	Lowers []string
	// Mounts are the user's; their mount points are made too, so that they do not
	// appear in the writable layer. The sources of bind mounts are looked at.
	Mounts []Mount
}

// point is a mount point to make.
type point struct {
	path string
	kind inroot.Kind
	mode uint32
	// real must not be reached through a link.
	real bool
	// etc is a file of ours: where a link of the image cannot be followed it is
	// replaced.
	etc bool
}

// BuildInitLayer makes the directory dir, which must not exist or be empty, and in
// it the mount points that the image lacks. What the image has stays as it is:
// directories on the way to a mount point keep the owner, mode and attributes
// that they have in the image. It runs in the monitor, as root of the user
// namespace, once per sandbox.
func BuildInitLayer(dir string, c InitLayerConfig) error {
	const step = "make the init layer"
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fail(step, dir, err)
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(step, dir, err)
	}
	defer unix.Close(fd)
	if names, err := inroot.Names(fd, "."); err != nil {
		return fail(step, dir, err)
	} else if len(names) > 0 {
		return fail(step, dir, unix.ENOTEMPTY)
	}
	// The layer looks at the image through itself, to see what it made before.
	image, err := openStack(append([]string{dir}, c.Lowers...))
	if err != nil {
		return err
	}
	defer image.close()
	l := &initLayer{view: image, dir: fd, image: &stack{roots: image.roots[1:]}}
	defer l.image.forget()
	if len(c.Lowers) > 0 {
		top, err := l.image.root()
		if err == nil {
			err = l.like(fd, l.image, top)
		}
		if err != nil {
			return fail(step, dir, err)
		}
	}
	for _, p := range initPoints(c) {
		if err := l.make(p); err != nil {
			return fail(step, p.path, err)
		}
	}
	return fail(step, "/etc/mtab", l.mtab())
}

func initPoints(c InitLayerConfig) []point {
	ps := []point{
		{path: "/proc", kind: inroot.Dir, real: true}, {path: "/sys", kind: inroot.Dir, real: true}, {path: "/dev", kind: inroot.Dir, real: true},
		{path: "/dev/pts", kind: inroot.Dir, real: true}, {path: "/dev/shm", kind: inroot.Dir, real: true}, {path: "/dev/mqueue", kind: inroot.Dir, real: true},
		{path: "/etc", kind: inroot.Dir},
		{path: "/etc/hosts", kind: inroot.File, etc: true}, {path: "/etc/hostname", kind: inroot.File, etc: true},
		{path: "/etc/resolv.conf", kind: inroot.File, etc: true},
	}
	covered := []string{"/proc", "/sys", "/dev"} // their contents are not the image's
	for _, m := range byDepth(c.Mounts) {
		t := path.Clean(m.Target)
		p := point{path: t, kind: inroot.Dir}
		if m.Type == TypeTmpfs {
			p.mode = 0o1777
		}
		if m.Type == TypeBind {
			if st, err := os.Stat(m.Source); err == nil && !st.IsDir() {
				p.kind = inroot.File
			}
		}
		if !slices.ContainsFunc(covered, func(c string) bool { return strings.HasPrefix(t, c+"/") }) {
			ps = append(ps, p)
		}
		covered = append(covered, t)
	}
	return ps
}

type initLayer struct {
	view  *stack // the layer itself over the image
	image *stack
	dir   int
}

// make makes one mount point.
func (l *initLayer) make(p point) error {
	found, missing, err := l.view.resolve(p.path)
	if p.etc && (err != nil || l.astray(found, missing)) {
		return l.replace(p)
	}
	if err != nil {
		if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, fs.ErrNotExist) {
			return nil // Plan.Apply says why it cannot be mounted there
		}
		return err
	}
	if len(missing) == 0 {
		return nil
	}
	parent := found[len(found)-1]
	if !parent.isDir() || p.real && len(found)-1+len(missing) != strings.Count(p.path, "/") {
		return nil
	}
	if err := l.copyUp(found); err != nil {
		return err
	}
	at := parent.rel
	for i, name := range missing {
		kind, mode := inroot.Dir, uint32(0o755)
		if i == len(missing)-1 {
			if kind = p.kind; kind == inroot.File {
				mode = 0o644
			}
			if p.mode != 0 {
				mode = p.mode
			}
		}
		at = path.Join(at, name)
		if err := l.node(at, kind, mode); err != nil {
			return err
		}
	}
	return nil
}

// astray says that the links of the image lead a file of /etc into what will be
// covered by other file systems, or to something that is not a file.
func (l *initLayer) astray(found []node, missing []string) bool {
	last := found[len(found)-1]
	if len(missing) == 0 && last.st.Mode&unix.S_IFMT != unix.S_IFREG {
		return true
	}
	full := path.Join(append([]string{last.rel}, missing...)...)
	first, _, _ := strings.Cut(full, "/")
	return first == "proc" || first == "sys" || first == "dev"
}

// replace puts an empty file in the place of a link that cannot be used.
func (l *initLayer) replace(p point) error {
	found, missing, err := l.view.resolve(path.Dir(p.path))
	if err != nil || len(missing) > 0 {
		return errors.Join(err, fs.ErrNotExist)
	}
	if err := l.copyUp(found); err != nil {
		return err
	}
	return l.node(path.Join(found[len(found)-1].rel, path.Base(p.path)), inroot.File, 0o644)
}

// mtab makes /etc/mtab, as Docker does, where the image has none.
func (l *initLayer) mtab() error {
	found, missing, err := l.view.resolve("/etc")
	if err != nil || len(missing) > 0 || !found[len(found)-1].isDir() {
		return nil // an image whose /etc is unusable gets none
	}
	etc := found[len(found)-1]
	if _, err := l.view.lookup(etc, "mtab"); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := l.copyUp(found); err != nil {
		return err
	}
	return l.change(etc.rel, func(dir int) error { return unix.Symlinkat("/proc/mounts", dir, "mtab") })
}

// copyUp makes the directories of the image that lead to a mount point, with
// what the image says of them: a directory of the upper layer gives the merged
// one its attributes.
func (l *initLayer) copyUp(dirs []node) error {
	for _, n := range dirs[1:] {
		if n.layers[0] == 0 {
			continue // made before
		}
		if err := l.node(n.rel, inroot.Dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		p, err := inroot.Open(l.dir, n.rel, inroot.Lookup{NoLinks: true})
		if err != nil {
			return err
		}
		defer unix.Close(p)
		fd, err := unix.Openat(p, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := l.like(fd, l.view, n); err != nil {
			return err
		}
	}
	return nil
}

// like gives the directory fd the attributes that n has.
func (l *initLayer) like(fd int, s *stack, n node) error {
	src, err := s.open(n)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	c := treeCopy{skipped: map[string]int{}}
	return c.attributes(n, src, fd)
}

// node makes one file or directory of the layer, whose parent is there.
func (l *initLayer) node(rel string, kind inroot.Kind, mode uint32) error {
	name := path.Base(rel)
	return l.change(path.Dir(rel), func(dir int) error {
		if kind == inroot.Dir {
			if err := unix.Mkdirat(dir, name, 0o700); err != nil {
				return err
			}
			return inroot.ChmodDir(dir, name, mode)
		}
		fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Fchmod(fd, mode)
	})
}

// change makes a name in a directory of the layer and keeps the directory's
// times, which are the image's.
func (l *initLayer) change(rel string, f func(dir int) error) error {
	dir, err := inroot.Open(l.dir, rel, inroot.Lookup{NoLinks: true})
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return err
	}
	if err := f(dir); err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, inroot.FdPath(dir), []unix.Timespec{st.Atim, st.Mtim}, 0); err != nil {
		return fmt.Errorf("keep the time of %s: %w", rel, err)
	}
	return nil
}
