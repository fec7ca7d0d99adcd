package fsoverlay

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/rootless-sbx/sbx/internal/inroot"
	"golang.org/x/sys/unix"
)

// applier executes a plan. It lives in init, on one thread.
type applier struct {
	root    int   // O_PATH, -1 until KindRoot
	sources []int // detached trees of the binds by index of the operation, -1 where none
	notes   []string
	// noSetattr takes the path of kernels before 5.12.
	noSetattr bool
}

// Apply executes the plan. It must run in init: in a mount namespace of its own,
// with all capabilities in the user namespace. It ends with the working
// directory "/" in the new root. The notes say what could not be had and was not
// essential. After an error the process cannot go on; its namespace takes
// everything along when it ends.
func (p Plan) Apply() (notes []string, err error) { return p.apply(&applier{root: -1}) }

func (p Plan) apply(a *applier) ([]string, error) {
	defer a.close()
	if err := a.openSources(p); err != nil {
		return a.notes, err
	}
	for i, op := range p {
		if err := a.do(op, a.sources[i]); err != nil {
			return a.notes, err
		}
	}
	return a.notes, nil
}

func (a *applier) close() {
	for i, fd := range a.sources {
		if fd >= 0 {
			unix.Close(fd)
			a.sources[i] = -1
		}
	}
	if a.root >= 0 {
		unix.Close(a.root)
		a.root = -1
	}
}

// openSources clones the trees to bind before the first mount is made, so that
// `-v /:/host` does not show the sandbox inside itself. The clones also see
// nothing of later mounts. Propagation is stopped before: a clone of a shared
// mount would be shared too.
func (a *applier) openSources(p Plan) error {
	a.sources = make([]int, len(p))
	for i := range a.sources {
		a.sources[i] = -1
	}
	if len(p) > 0 && p[0].Kind == KindSlave {
		if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
			return fail("stop mount propagation", "/", err)
		}
	}
	for i, op := range p {
		if op.Kind != KindBind || !op.User {
			continue
		}
		fd, err := openSource(op)
		if err != nil {
			return err
		}
		a.sources[i] = fd
	}
	return nil
}

func openSource(op Op) (int, error) {
	const step = "open the source of a mount"
	wrap := func(err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return failf(CodeSource, step, op.Source, "create it first", "it does not exist (for %s)", op.Target)
		}
		return fail(step, op.Source, err)
	}
	if op.Subpath == "" {
		fd, err := cloneTree(unix.AT_FDCWD, op.Source, !op.TopOnly)
		if op.TopOnly && errors.Is(err, unix.EINVAL) {
			return -1, failf(CodeSource, step, op.Source, "leave bind-recursive=disabled out",
				"the mounts below it belong to the host and cannot be left out in a user namespace")
		}
		return fd, wrap(err)
	}
	dir, err := inroot.OpenDir(op.Source)
	if err != nil {
		return -1, wrap(err)
	}
	defer unix.Close(dir)
	sub, err := inroot.Open(dir, op.Subpath, inroot.Lookup{}) // the volume's contents are a guest's
	if err != nil {
		return -1, wrap(fmt.Errorf("subpath %s: %w", op.Subpath, err))
	}
	defer unix.Close(sub)
	fd, err := cloneTree(sub, "", !op.TopOnly)
	return fd, wrap(err)
}

// do executes one operation and deals with its failure.
func (a *applier) do(op Op, source int) error {
	err := a.exec(op, source)
	if err == nil || op.IfExists && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if op.Else != nil {
		first := err
		if err = a.exec(*op.Else, -1); err == nil {
			a.note(op.Else.Optional, first)
			return nil
		}
		err = fmt.Errorf("%w (and before: %w)", err, first)
	}
	err = fail(string(op.Kind), op.Target, err)
	if op.Optional != "" {
		a.note(op.Optional, err)
		return nil
	}
	return err
}

func (a *applier) note(text string, err error) {
	a.notes = append(a.notes, fmt.Sprintf("%s (%v)", text, err))
}

func (a *applier) exec(op Op, source int) error {
	switch op.Kind {
	case KindSlave:
		return nil // openSources did it
	case KindRoot:
		return fail("take the root file system", op.Source, a.takeRoot(op.Source))
	case KindMount:
		return fail("mount "+op.Type, op.Target, a.mountFS(op))
	case KindBind:
		if err := a.bind(op, source); err != nil || !op.Outer {
			return fail("bind mount", op.Target, err)
		}
		return fail("hide the surrounding container", op.Target, a.hideOuter(op.Target))
	case KindDevice:
		return fail("bind device", op.Target, a.device(op))
	case KindSymlink:
		return fail("make a link", op.Target, a.symlink(op))
	case KindFile:
		fd, err := inroot.Open(a.root, op.Target, inroot.Lookup{Create: inroot.File, NoLinks: op.NoLinks})
		if err == nil {
			unix.Close(fd)
		}
		return fail("make a mount point", op.Target, err)
	case KindCopyUp:
		return fail("fill the volume from", op.Target, a.copyUp(op))
	case KindReadonly:
		return fail("make read-only", op.Target, a.readonly(op))
	case KindMask:
		return fail("mask", op.Target, a.mask(op))
	case KindPivot:
		return fail("pivot_root", "", a.pivot())
	}
	return failf(CodeInvalid, "mount plan", op.Target, "", "unknown operation %q", op.Kind)
}

// takeRoot binds the root on itself, since pivot_root wants a mount point and
// the copy driver makes a plain directory.
func (a *applier) takeRoot(dir string) error {
	target, err := inroot.OpenDir(dir)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	tree, err := cloneTree(target, "", true)
	if err != nil {
		return err
	}
	if err := a.finish(tree, target, 0, unix.MS_PRIVATE, true); err != nil {
		unix.Close(tree)
		return err
	}
	a.root = tree
	return nil
}

// finish restricts a detached tree and mounts it on target. On kernels before
// 5.12 it is restricted after it was attached; nobody else is in this namespace.
func (a *applier) finish(tree, target int, attrs Attr, propagation uint64, attrsAll bool) error {
	set := func(f func(int, Attr, uint64, bool) error) error {
		if attrsAll {
			return f(tree, attrs, propagation, true)
		}
		if err := f(tree, 0, propagation, true); err != nil {
			return err
		}
		return f(tree, attrs, 0, false)
	}
	old := a.noSetattr
	if !old {
		err := set(setAttr)
		if old = errors.Is(err, unix.ENOSYS); err != nil && !old {
			return err
		}
	}
	if err := attach(tree, target); err != nil {
		return err
	}
	if old {
		return set(remount)
	}
	return nil
}

// target opens the place of a mount, making it if it is missing.
func (a *applier) target(op Op, create inroot.Kind) (int, error) {
	if op.IfExists {
		create = inroot.Nothing
	}
	fd, err := inroot.Open(a.root, op.Target, inroot.Lookup{Create: create, NoLinks: op.NoLinks})
	if err != nil {
		switch {
		case errors.Is(err, unix.ELOOP) && op.NoLinks:
			return -1, failf(CodeTarget, "mount", op.Target, "", "it is a link in the image, a real directory is needed")
		case errors.Is(err, unix.ELOOP):
			return -1, failf(CodeTarget, "mount", op.Target, "", "the path leads through a loop of links or through /proc in the image")
		case errors.Is(err, unix.ENOTDIR):
			return -1, failf(CodeTarget, "mount", op.Target, "", "part of the path is a file in the image")
		}
		return -1, err
	}
	if op.User {
		if err := a.refuseKernelFS(fd, op.Target); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// refuseKernelFS keeps user mounts away from procfs and sysfs, whatever link of
// the image leads there: a process that trusts /proc/self/attr or a masked path
// would be lied to.
func (a *applier) refuseKernelFS(fd int, target string) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return err
	}
	if st.Type != unix.PROC_SUPER_MAGIC && (st.Type != unix.SYSFS_MAGIC || strings.HasPrefix(target, "/sys/")) {
		return nil
	}
	return failf(CodeTarget, "mount", target, "choose another target", "in this image the path leads into /proc or /sys")
}

func (a *applier) mountFS(op Op) error {
	keep := op.KeepMode
	target, err := a.target(op, inroot.Nothing)
	if errors.Is(err, fs.ErrNotExist) && !op.IfExists {
		keep = false
		target, err = a.target(op, inroot.Dir)
	}
	if err != nil {
		return err
	}
	defer unix.Close(target)
	dir, err := inroot.IsDir(target)
	if err != nil {
		return err
	}
	if !dir {
		return failf(CodeTarget, "mount "+op.Type, op.Target, "", "it is not a directory in the image")
	}
	opts := op.Options
	if keep {
		var mode uint32
		if mode, err = inroot.Mode(target); err != nil {
			return err
		}
		opts = append([]string{fmt.Sprintf("mode=%04o", mode&0o7777)}, opts...)
	}
	tree, err := newFS(op.Type, op.Attrs, opts)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return a.finish(tree, target, 0, propagationFlag(op.Propagation), true)
}

func (a *applier) bind(op Op, tree int) error {
	if tree < 0 {
		fd, err := openSource(op)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		tree = fd
	}
	dir, err := inroot.IsDir(tree)
	if err != nil {
		return err
	}
	create := inroot.File
	if dir {
		create = inroot.Dir
	}
	target, err := a.target(op, create)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	tdir, err := inroot.IsDir(target)
	if err != nil {
		return err
	}
	if dir != tdir {
		kind := map[bool]string{true: "a directory", false: "a file"}
		return failf(CodeTarget, "bind mount", op.Target, "", "%s is %s and the target is %s", op.Source, kind[dir], kind[tdir])
	}
	return a.finish(tree, target, op.Attrs, propagationFlag(op.Propagation), !op.AttrsTopOnly)
}

func propagationFlag(p string) uint64 {
	switch strings.TrimPrefix(p, "r") {
	case "slave":
		return unix.MS_SLAVE
	case "shared":
		return unix.MS_SHARED
	}
	return unix.MS_PRIVATE
}

// device binds one device file of the host: a user namespace cannot make any.
func (a *applier) device(op Op) error {
	tree, err := openDevice(op.Source, op.Device)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	target, err := a.target(op, inroot.File)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return a.finish(tree, target, op.Attrs, unix.MS_PRIVATE, true)
}

func openDevice(source, number string) (int, error) {
	tree, err := cloneTree(unix.AT_FDCWD, source, false)
	if err != nil {
		return -1, fail("open device", source, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		unix.Close(tree)
		return -1, fail("open device", source, err)
	}
	got := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || got != number {
		unix.Close(tree)
		return -1, failf(CodeSource, "open device", source, "", "it is not the character device %s", number)
	}
	return tree, nil
}

// symlink makes a link in a directory of ours (/dev is a fresh tmpfs).
func (a *applier) symlink(op Op) error {
	dir, err := inroot.Open(a.root, path.Dir(op.Target), inroot.Lookup{NoLinks: true})
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return unix.Symlinkat(op.Source, dir, path.Base(op.Target))
}

func (a *applier) readonly(op Op) error {
	if op.Target == "/" {
		if !a.noSetattr {
			if err := setAttr(a.root, ReadOnly, 0, false); !errors.Is(err, unix.ENOSYS) {
				return err
			}
		}
		return remount(a.root, ReadOnly, 0, false)
	}
	target, err := a.target(op, inroot.Nothing)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	tree, err := cloneTree(target, "", true)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return a.finish(tree, target, ReadOnly, unix.MS_PRIVATE, true)
}

// mask hides a file behind /dev/null and a directory behind an empty tmpfs.
func (a *applier) mask(op Op) error {
	target, err := a.target(op, inroot.Nothing)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	dir, err := inroot.IsDir(target)
	if err != nil {
		return err
	}
	var tree int
	if dir {
		tree, err = emptyDir()
	} else {
		tree, err = openDevice("/dev/null", "1:3")
	}
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return a.finish(tree, target, 0, unix.MS_PRIVATE, true)
}

// pivot makes the root "/" and drops the host's tree. "." as both arguments
// stacks the old root on the new one, so no directory is needed for it.
func (a *applier) pivot() error {
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the old root: %w", err)
	}
	defer unix.Close(old)
	if err := unix.Fchdir(a.root); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Fchdir(old); err != nil {
		return fmt.Errorf("enter the old root: %w", err)
	}
	// Slave, or taking it away would take it away for the monitor too.
	if err := unix.Mount("", ".", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("stop propagation of the old root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	return nil
}
