package fsoverlay

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/rootless-sbx/sbx/internal/archive"
	"github.com/rootless-sbx/sbx/internal/inroot"
	"golang.org/x/sys/unix"
)

// View is a root file system, or any directory, that is read without being mounted,
// also while somebody writes to it. It has no proc, no volume and no other mount of
// the sandbox in it. It must be used where the owners of the files are mapped, by one
// goroutine at a time.
type View struct {
	now    *stack
	before *stack // the lowers alone
	top    bool   // there is a writable layer
	plain  bool   // which is the whole tree
}

// ViewSpec says what to look at. All paths are absolute.
type ViewSpec struct {
	Driver string   `json:"driver"`
	Lowers []string `json:"lowers"` // top first
	// Upper is the writable directory. While it does not exist, and before its
	// driver has filled it, nothing has been written.
	Upper string `json:"upper,omitempty"`
}

// OpenView opens a root file system as RootSpec has it.
func OpenView(s ViewSpec) (*View, error) {
	before, err := openStack(s.Lowers)
	if err != nil {
		return nil, err
	}
	v := &View{before: before, now: before}
	upper, err := openStack([]string{s.Upper})
	var names []string
	if err == nil && s.Driver == DriverCopy {
		if names, err = inroot.Names(upper.roots[0], "."); len(names) == 0 {
			upper.close()
			return v, err
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	if err != nil {
		before.close()
		return nil, err
	}
	v.top, v.plain, v.now = true, s.Driver == DriverCopy, upper
	upper.plain, upper.deviceMarks = v.plain, s.Driver == DriverNative
	if !v.plain {
		upper.roots = append(upper.roots, before.roots...)
	}
	return v, nil
}

// DirView is the tree below a directory, whose descriptor stays the caller's.
func DirView(fd int) *View { return &View{now: &stack{roots: []int{fd}, plain: true}} }

// Close closes what OpenView opened.
func (v *View) Close() {
	v.now.forget()
	if v.top && v.now != v.before {
		closeAll(v.now.roots[:1]) // the others are those of before
	}
	if v.before != nil {
		v.before.close()
	}
}

// Pack writes what name, in the top directory, or all for ".", is and has below it, as
// the entry as.
func (v *View) Pack(ctx context.Context, p *archive.Packer, name, as string) error {
	top, err := v.now.root()
	if err == nil && name != "." {
		top, err = v.now.lookup(top, name)
	}
	if err != nil {
		return err
	}
	return v.pack(ctx, p, top, as)
}

func (v *View) pack(ctx context.Context, p *archive.Packer, n node, as string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := p.Add(ctx, v.file(n, as)); err != nil || !n.isDir() {
		return err
	}
	names, err := v.list(v.now, n)
	if err != nil {
		return err
	}
	for _, name := range names {
		sub, err := v.now.lookup(n, name)
		if vanished(err) {
			continue
		}
		if err == nil {
			err = v.pack(ctx, p, sub, path.Join(as, name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (v *View) file(n node, as string) archive.File {
	return archive.File{
		Name: as, Stat: n.st, Tree: n.layers[0],
		Open:     func() (int, error) { return v.now.open(n) },
		Readlink: func() (string, error) { return v.now.readlink(n) },
	}
}

// list returns the names in a directory, sorted; none if it has gone meanwhile.
func (v *View) list(s *stack, n node) ([]string, error) {
	names, err := s.list(n)
	if vanished(err) {
		return nil, nil
	}
	slices.Sort(names)
	return names, err
}

// vanished says that somebody has taken away what was there a moment ago.
func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ESTALE)
}

// Change is a file that is not as in the lowers.
type Change struct {
	Path string // absolute
	Kind ChangeKind
}

// ChangeKind has Docker's numbers.
type ChangeKind int

// Kinds of changes.
const (
	Changed ChangeKind = iota
	Added
	Deleted
)

func (k ChangeKind) String() string { return "CAD"[k : k+1] }

// Changes tells yield of every change, a directory before what is in it; its error
// ends the walk. As with Docker a directory counts as changed if something in it is,
// and a file if its mode, owner, size, time of change or capabilities are others.
func (v *View) Changes(ctx context.Context, yield func(Change) error) error {
	return v.walk(ctx, func(c Change, _ node) error { return yield(c) })
}

// PackChanges writes the changes as a layer of an image.
func (v *View) PackChanges(ctx context.Context, p *archive.Packer) error {
	return v.walk(ctx, func(c Change, n node) error {
		name := strings.TrimPrefix(c.Path, "/")
		base := path.Base(name)
		switch {
		case strings.HasPrefix(base, whPrefix):
			p.Note(name, "a name that hides another in a layer, left out")
			return nil
		case c.Kind == Deleted:
			return p.Whiteout(path.Join(path.Dir(name), whPrefix+base))
		}
		return p.Add(ctx, v.file(n, name))
	})
}

// walk compares the tree with the lowers.
func (v *View) walk(ctx context.Context, yield func(Change, node) error) error {
	if !v.top {
		return nil
	}
	now, err := v.now.root()
	if err != nil {
		return err
	}
	old, err := v.before.root()
	if err != nil {
		return err
	}
	w := &walker{v: v, ctx: ctx, yield: yield}
	return w.dir(now, &old)
}

type walker struct {
	v     *View
	ctx   context.Context
	yield func(Change, node) error
	// open are the directories on the way that have not been told of yet.
	open []node
}

// tell yields a change, and before it the directories that it is in.
func (w *walker) tell(kind ChangeKind, rel string, n node) error {
	for _, d := range w.open {
		if d.rel != "." {
			if err := w.yield(Change{"/" + d.rel, Changed}, d); err != nil {
				return err
			}
		}
	}
	w.open = w.open[:0]
	return w.yield(Change{"/" + rel, kind}, n)
}

// dir compares what is in a directory; old is nil if it is new.
func (w *walker) dir(n node, old *node) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	names, err := w.names(n, old)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := w.entry(n, old, name); err != nil {
			return err
		}
	}
	return nil
}

// names are those that may have changed: of an overlay's directory, those in the
// writable layer, unless it hides what is below.
func (w *walker) names(n node, old *node) ([]string, error) {
	v := w.v
	top := n
	if !v.plain && len(n.layers) > 1 {
		top.layers = n.layers[:1]
	}
	names, err := v.list(v.now, top)
	if err != nil || old == nil || !v.plain && len(n.layers) > 1 {
		return v.unmarked(names), err
	}
	below, err := v.list(v.before, *old)
	names = append(v.unmarked(names), below...)
	slices.Sort(names)
	return slices.Compact(names), err
}

// unmarked replaces marks that are files by the names that they are about.
func (v *View) unmarked(names []string) []string {
	if v.plain || v.now.deviceMarks {
		return names
	}
	for i, n := range names {
		if n != whOpaque && strings.HasPrefix(n, whPrefix) {
			names[i] = n[len(whPrefix):]
		}
	}
	slices.Sort(names)
	return slices.Compact(slices.DeleteFunc(names, func(n string) bool { return n == whOpaque }))
}

func (w *walker) entry(dir node, oldDir *node, name string) error {
	v := w.v
	var before *node
	if oldDir != nil {
		b, err := v.before.lookup(*oldDir, name)
		if err == nil {
			before = &b
		} else if !vanished(err) {
			return err
		}
	}
	n, err := v.now.lookup(dir, name)
	switch {
	case vanished(err) && before != nil:
		return w.tell(Deleted, path.Join(dir.rel, name), n)
	case vanished(err):
		return nil
	case err != nil:
		return err
	case !v.plain && n.layers[0] != 0: // not of the writable layer
		return nil
	case before == nil:
		err = w.tell(Added, n.rel, n)
	default:
		differs, derr := v.differs(n, *before)
		if derr != nil {
			return derr
		}
		if differs {
			err = w.tell(Changed, n.rel, n)
		} else if n.isDir() {
			return w.same(n, before)
		}
	}
	if err != nil || !n.isDir() {
		return err
	}
	if before != nil && !before.isDir() {
		before = nil
	}
	return w.dir(n, before)
}

// same goes into a directory that is as it was itself.
func (w *walker) same(n node, before *node) error {
	w.open = append(w.open, n)
	err := w.dir(n, before)
	if k := len(w.open); k > 0 && w.open[k-1].rel == n.rel {
		w.open = w.open[:k-1] // nothing in it has changed
	}
	return err
}

// differs says whether two files are not the same, by what can be seen from outside.
func (v *View) differs(n, old node) (bool, error) {
	a, b := &n.st, &old.st
	if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev {
		return true, nil
	}
	if n.isDir() {
		return false, nil
	}
	if a.Size != b.Size || a.Mtim != b.Mtim {
		return true, nil
	}
	if a.Mode&unix.S_IFMT != unix.S_IFREG || a.Mode&0o111 == 0 {
		return false, nil
	}
	x, err := capabilities(v.now, n)
	if vanished(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	y, err := capabilities(v.before, old)
	return !bytes.Equal(x, y), err
}

func capabilities(s *stack, n node) ([]byte, error) {
	fd, err := s.open(n)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	val, err := archive.GetXattr(fd, "security.capability")
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EOVERFLOW) {
		return nil, nil
	}
	return val, err
}
