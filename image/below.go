package image

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// below is what the layers under the one being unpacked show together: the
// directories that the overlay would merge, down to a whiteout, an opaque
// directory, or something else of that name. The zero value has no layers.
//
// The trees were made by Unpack and nobody changes them. Still no link in them is
// followed: one is only ever reported, by its path.
type below struct {
	roots     []int // O_PATH, the top layer first
	noOpenat2 bool
	// The directory looked at last, for neighbours are asked for one after the
	// other: at[k] lists the layers that have a share in names[:k].
	names []string
	at    [][]int
}

func openBelow(lowers []string, noOpenat2 bool) (below, error) {
	b := below{noOpenat2: noOpenat2}
	all := make([]int, len(lowers))
	for i, path := range lowers {
		fd, err := unix.Open(path, dirFlags, 0)
		if err != nil {
			b.close()
			return below{}, &os.PathError{Op: "open", Path: path, Err: err}
		}
		b.roots = append(b.roots, fd)
		all[i] = i
	}
	b.at = [][]int{all}
	return b, nil
}

func (b *below) close() {
	for _, fd := range b.roots {
		unix.Close(fd)
	}
}

// look says what path is: S_IFDIR with the layers that have a share in the
// directory, S_IFLNK with the layer of the link, anything else for nothing that
// matters. No component before the last may be a link: whoever asks has come
// that way.
func (b *below) look(path string) (typ uint32, layers []int, err error) {
	if len(b.roots) == 0 {
		return 0, nil, nil
	}
	parts := strings.Split(path, "/")
	n := 0
	for n < len(b.names) && n < len(parts)-1 && b.names[n] == parts[n] {
		n++
	}
	b.names, b.at = b.names[:n], b.at[:n+1]
	for ; n < len(parts); n++ {
		typ, layers, err = b.merge(b.at[n], strings.Join(parts[:n], "/"), parts[n])
		if err != nil || typ != unix.S_IFDIR {
			break
		}
		b.names, b.at = append(b.names, parts[n]), append(b.at, layers)
	}
	if err != nil || n < len(parts)-1 {
		return 0, nil, err
	}
	return typ, layers, nil
}

// merge goes down the layers that have a share in dir.
func (b *below) merge(shares []int, dir, name string) (typ uint32, layers []int, err error) {
	for _, i := range shares {
		t, opaque, err := b.peek(i, dir, name)
		switch {
		case err != nil:
			return 0, nil, err
		case t == 0:
			continue
		case t == unix.S_IFDIR:
			layers = append(layers, i)
		case len(layers) == 0:
			return t, []int{i}, nil
		}
		if t != unix.S_IFDIR || opaque {
			break
		}
	}
	if len(layers) > 0 {
		typ = unix.S_IFDIR
	}
	return typ, layers, nil
}

// peek looks at one layer's own entry. Whiteouts count as S_IFCHR, also the ones
// that are files.
func (b *below) peek(layer int, dir, name string) (typ uint32, opaque bool, err error) {
	dirfd, err := b.openDir(layer, dir)
	if err != nil {
		return 0, false, err
	}
	defer unix.Close(dirfd)
	st, ok, err := lstatAt(dirfd, name)
	if err != nil {
		return 0, false, err
	}
	if !ok {
		_, hidden, err := lstatAt(dirfd, whPrefix+name)
		if errors.Is(err, unix.ENAMETOOLONG) {
			return 0, false, nil
		}
		if hidden {
			typ = unix.S_IFCHR
		}
		return typ, false, err
	}
	if typ = st.Mode & unix.S_IFMT; typ != unix.S_IFDIR {
		return typ, false, nil
	}
	fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, false, &os.PathError{Op: "open", Path: dir + "/" + name, Err: err}
	}
	defer unix.Close(fd)
	var mark [2]byte
	if n, err := unix.Fgetxattr(fd, xattrOpaque, mark[:]); err == nil && string(mark[:n]) == "y" {
		return typ, true, nil
	}
	_, opaque, err = lstatAt(fd, whOpaque)
	return typ, opaque, err
}

// link reads the symbolic link that path is.
func (b *below) link(layer int, path string) (string, error) {
	dir, base := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, base = path[:i], path[i+1:]
	}
	dirfd, err := b.openDir(layer, dir)
	if err != nil {
		return "", err
	}
	defer unix.Close(dirfd)
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dirfd, base, buf)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: path, Err: err}
	}
	return string(buf[:n]), nil
}

// openDir opens a directory of one layer, O_PATH, without following links.
func (b *below) openDir(layer int, path string) (int, error) {
	root := b.roots[layer]
	if !b.noOpenat2 {
		fd, err := unix.Openat2(root, "./"+path, &unix.OpenHow{
			Flags:   dirFlags,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		switch err {
		case nil:
			return fd, nil
		case unix.ENOSYS, unix.EPERM:
			b.noOpenat2 = true
		case unix.ENAMETOOLONG: // links can lead deeper than one call can say
		default:
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
	fd, err := unix.Openat(root, ".", dirFlags, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	for c := range strings.SplitSeq(path, "/") {
		if c == "" {
			continue
		}
		next, err := unix.Openat(fd, c, dirFlags, 0)
		unix.Close(fd)
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
		fd = next
	}
	return fd, nil
}
