package fsoverlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"github.com/rootless-sbx/sbx/internal/archive"
	"github.com/rootless-sbx/sbx/internal/inroot"
	"golang.org/x/sys/unix"
)

// treeCopy copies the merged view src into the empty directory dst. A guest may
// have dst mounted (a shared volume) and play with it meanwhile: the copy only
// ever makes new names in directories that it opened without following a link.
type treeCopy struct {
	src *stack
	dst int
	// links maps what has several names to the first of them.
	links map[linkKey]string
	// dirs get their owner, mode and times when all is in them.
	dirs       []node
	cloneFails bool           // the file system has no reflinks
	skipped    map[string]int // what could not be copied, counted by kind
}

type linkKey struct {
	layer    int
	dev, ino uint64
}

// run copies everything, the top directory's own attributes included.
func (c *treeCopy) run(ctx context.Context) error {
	c.links = map[linkKey]string{}
	c.skipped = map[string]int{}
	top, err := c.src.root()
	if err != nil {
		return err
	}
	pending := []node{top}
	for len(pending) > 0 {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		dir := pending[len(pending)-1]
		pending = pending[:len(pending)-1]
		c.dirs = append(c.dirs, dir)
		sub, err := c.dir(ctx, dir)
		if err != nil {
			return err
		}
		pending = append(pending, sub...)
	}
	for i := len(c.dirs) - 1; i >= 0; i-- {
		if err := c.finishDir(c.dirs[i]); err != nil {
			return fmt.Errorf("%s: %w", c.dirs[i].rel, err)
		}
	}
	return nil
}

// notes says what was left out.
func (c *treeCopy) notes() []string {
	var out []string
	for what, n := range c.skipped {
		out = append(out, fmt.Sprintf("%d times while copying: %s", n, what))
	}
	slices.Sort(out)
	return out
}

// dir copies what is in one directory and returns its subdirectories.
func (c *treeCopy) dir(ctx context.Context, dir node) (sub []node, err error) {
	names, err := c.src.list(dir)
	if err != nil {
		return nil, err
	}
	to, err := inroot.Open(c.dst, dir.rel, inroot.Lookup{NoLinks: true})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir.rel, err)
	}
	defer unix.Close(to)
	for _, name := range names {
		n, err := c.src.lookup(dir, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && n.isDir() {
			err = unix.Mkdirat(to, name, 0o700)
			sub = append(sub, n)
		} else if err == nil {
			err = c.entry(ctx, n, to, name)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", n.rel, err)
		}
	}
	return sub, nil
}

// entry copies anything but a directory.
func (c *treeCopy) entry(ctx context.Context, n node, to int, name string) error {
	if n.st.Nlink > 1 {
		key := linkKey{n.layers[0], n.st.Dev, n.st.Ino}
		if first, ok := c.links[key]; ok {
			dir, err := inroot.Open(c.dst, path.Dir(first), inroot.Lookup{NoLinks: true})
			if err != nil {
				return err
			}
			defer unix.Close(dir)
			return unix.Linkat(dir, path.Base(first), to, name, 0)
		}
		c.links[key] = n.rel
	}
	switch n.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.file(ctx, n, to, name)
	case unix.S_IFLNK:
		target, err := c.src.readlink(n)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, to, name); err != nil {
			return err
		}
		return c.special(n, to, name)
	case unix.S_IFIFO, unix.S_IFSOCK:
		if err := unix.Mknodat(to, name, n.st.Mode, 0); err != nil {
			return err
		}
		return c.special(n, to, name)
	}
	// A user namespace cannot make devices.
	c.skipped["device file left out"]++
	delete(c.links, linkKey{n.layers[0], n.st.Dev, n.st.Ino})
	return nil
}

// special sets owner, mode and times of what cannot be opened.
func (c *treeCopy) special(n node, to int, name string) error {
	if err := c.owner(unix.Fchownat(to, name, int(n.st.Uid), int(n.st.Gid), unix.AT_SYMLINK_NOFOLLOW)); err != nil {
		return err
	}
	if !n.isLink() {
		fd, err := unix.Openat(to, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if m, err := inroot.Mode(fd); err != nil || m&unix.S_IFMT != n.st.Mode&unix.S_IFMT {
			return errors.Join(err, unix.EAGAIN)
		}
		if err := unix.Chmod(inroot.FdPath(fd), n.st.Mode&0o7777); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(to, name, []unix.Timespec{n.st.Atim, n.st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func (c *treeCopy) file(ctx context.Context, n node, to int, name string) error {
	src, err := c.src.open(n)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	dst, err := unix.Openat(to, name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	if n.st.Size > 0 {
		if err := c.data(ctx, dst, src, n.st.Size); err != nil {
			return err
		}
	}
	return c.attributes(n, src, dst)
}

// attributes copies owner, extended attributes, mode and times, in this order:
// a change of owner clears file capabilities and the setuid bit.
func (c *treeCopy) attributes(n node, src, dst int) error {
	if err := c.owner(unix.Fchown(dst, int(n.st.Uid), int(n.st.Gid))); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	if err := c.xattrs(src, dst); err != nil {
		return err
	}
	if err := unix.Fchmod(dst, n.st.Mode&0o7777); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, inroot.FdPath(dst), []unix.Timespec{n.st.Atim, n.st.Mtim}, 0)
}

// owner accepts that an id is not mapped here; the file then stays with root.
func (c *treeCopy) owner(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		c.skipped["owner is not mapped, now root"]++
		return nil
	}
	return err
}

func (c *treeCopy) finishDir(n node) error {
	src, err := c.src.open(n)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	p, err := inroot.Open(c.dst, n.rel, inroot.Lookup{NoLinks: true})
	if err != nil {
		return err
	}
	defer unix.Close(p)
	dst, err := unix.Openat(p, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	return c.attributes(n, src, dst)
}

// xattrs copies extended attributes except the overlay's own marks. Those that a
// user namespace may not write are left out and counted.
func (c *treeCopy) xattrs(src, dst int) error {
	names, err := archive.ListXattrs(src)
	if err != nil {
		return err
	}
	for _, name := range names {
		if archive.ReservedXattr(name) {
			continue
		}
		val, err := archive.GetXattr(src, name)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err == nil {
			err = unix.Fsetxattr(dst, name, val, 0)
		}
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
			c.skipped["attribute "+name+" not allowed here"]++
			continue
		}
		if err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}
