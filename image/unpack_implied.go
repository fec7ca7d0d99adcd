package image

import (
	"errors"
	"os"
	"strings"

	"github.com/rootless-sbx/sbx/internal/archive"
	"golang.org/x/sys/unix"
)

// Directories that a layer needs but does not list. Layers are made to be put on
// top of others: there "tmp/x" goes into the /tmp that is already there, and
// "bin/x" to usr/bin if /bin is a link to it. Unpacked into a tree of its own, a
// layer gets the same result by asking those below (UnpackJob.Lowers) wherever
// it has no directory itself:
//
//   - a directory there: one is made here with its attributes, at the end, when
//     all whiteouts of this layer are known;
//   - a symbolic link: it is followed, not hidden;
//   - nothing, or some other file, which then is hidden: mode 0755, root's.
//
// What a layer lists comes from the layer alone: "bin/" as an entry replaces the
// link. An entry that comes before its directory's meets what is below, as it
// would there, so such a layer depends on those below as well.

// errNeedsLowers ends the unpacking of an Alone job.
var errNeedsLowers = errors.New("the layer needs those below it")

// missing is asked about a directory that the layer does not have (yet). It
// returns the target of the link that has its place below, or "".
func (u *unpacker) missing(path string) (target string, err error) {
	if u.hidden(path) {
		return "", nil
	}
	u.res.NeedsLowers = true
	if u.job.Alone {
		return "", errNeedsLowers
	}
	typ, layers, err := u.below.look(path)
	if err != nil || typ != unix.S_IFLNK {
		return "", err
	}
	return u.below.link(layers[0], path)
}

// hide notes that the layer hides what lower ones have in the directory path,
// and with itself the directory too.
func (u *unpacker) hide(path string, itself bool) {
	if u.hides == nil {
		u.hides = map[string]bool{}
	}
	u.hides[path] = u.hides[path] || itself
}

// hidden: this layer's whiteouts hide what lower ones have at path.
func (u *unpacker) hidden(path string) bool {
	if len(u.hides) == 0 {
		return false
	}
	if u.hides[path] {
		return true
	}
	for i := len(path); i > 0; {
		i = max(strings.LastIndexByte(path[:i], '/'), 0)
		if _, ok := u.hides[path[:i]]; ok {
			return true
		}
	}
	return false
}

// inherit gives an implied directory the owner and xattrs of the one below, and
// m its mode and times. Without one below, m stays as it is.
func (u *unpacker) inherit(fd int, m *dirMeta) error {
	if u.hidden(m.path) {
		return nil
	}
	typ, layers, err := u.below.look(m.path)
	if err != nil || typ != unix.S_IFDIR {
		return err
	}
	pfd, err := u.below.openDir(layers[0], m.path)
	if err != nil {
		return err
	}
	defer unix.Close(pfd)
	from, err := unix.Openat(pfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: m.path, Err: err}
	}
	defer unix.Close(from)
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if !u.job.Single {
		if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
			return &os.PathError{Op: "chown", Path: m.path, Err: err}
		}
	}
	if err := u.copyXattrs(from, fd, m.path); err != nil {
		return err
	}
	m.mode, m.times = st.Mode&0o7777, []unix.Timespec{st.Atim, st.Mtim}
	return nil
}

// copyXattrs copies all but those of the overlay.
func (u *unpacker) copyXattrs(from, to int, name string) error {
	list, err := archive.ListXattrs(from)
	if err != nil {
		return &os.PathError{Op: "listxattr", Path: name, Err: err}
	}
	for _, attr := range list {
		if archive.ReservedXattr(attr) {
			continue
		}
		val, err := archive.GetXattr(from, attr)
		if err != nil {
			return &os.PathError{Op: "getxattr " + attr, Path: name, Err: err}
		}
		if err := u.setXattr(to, name, attr, val); err != nil {
			return err
		}
	}
	return nil
}
