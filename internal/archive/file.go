package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/rootless-sbx/sbx/internal/inroot"
	"golang.org/x/sys/unix"
)

// file makes a regular file: without a name where the file system can, so that it
// appears when it is complete, and nothing is left of one that was begun.
func (u *unpacker) file(dir int, base, name string, h *tar.Header, body io.Reader) error {
	var st unix.Stat_t
	err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return bad(ErrKind, name, "cannot overwrite a directory with a non-directory")
	}
	if !u.noTmpfile {
		fd, err := unix.Openat(dir, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err == nil {
			return u.nameless(os.NewFile(uintptr(fd), name), dir, base, name, h, body)
		}
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EROFS) {
			return failed(name, "make a file", err)
		}
		u.noTmpfile = errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR)
	}
	return u.renamed(dir, base, name, h, body)
}

// renamed is for file systems that cannot make a nameless file, as overlay before 6.2
// for an ordinary user: the file has another name until it is complete.
func (u *unpacker) renamed(dir int, base, name string, h *tar.Header, body io.Reader) error {
	if u.mountPoint(dir, base) {
		return u.inPlace(dir, base, name, h, body)
	}
	tmp := fmt.Sprintf(".sbx-%016x", rand.Uint64())
	fd, err := unix.Openat(dir, tmp, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return failed(name, "make a file", err)
	}
	f := os.NewFile(uintptr(fd), name)
	err = u.fill(f, name, h, body)
	if err == nil {
		err = closed(f, name)
	} else {
		f.Close()
	}
	if err == nil {
		if err = u.clear(dir, base, name); err == nil {
			if err = unix.Renameat(dir, tmp, dir, base); err == nil {
				return nil
			}
			err = failed(name, "give the file its name", err)
		}
	}
	if uerr := unix.Unlinkat(dir, tmp, 0); uerr != nil && !errors.Is(uerr, unix.ENOENT) { // no half of it stays
		err = errors.Join(err, failed(name, "remove the incomplete file", uerr))
	}
	return err
}

func (u *unpacker) nameless(f *os.File, dir int, base, name string, h *tar.Header, body io.Reader) error {
	defer f.Close()
	// In the place of a mount point no other file can be put.
	if u.mountPoint(dir, base) {
		return u.inPlace(dir, base, name, h, body)
	}
	if err := u.fill(f, name, h, body); err != nil {
		return err
	}
	for range 16 {
		if err := u.clear(dir, base, name); err != nil {
			return err
		}
		err := unix.Linkat(unix.AT_FDCWD, inroot.FdPath(int(f.Fd())), dir, base, unix.AT_SYMLINK_FOLLOW)
		if err == nil {
			return closed(f, name)
		}
		if !errors.Is(err, unix.EEXIST) {
			return failed(name, "give the file its name", err)
		}
	}
	return failed(name, "give the file its name", unix.EEXIST) // somebody makes it again and again
}

// mountPoint says whether a file is one that is mounted over its directory's.
func (u *unpacker) mountPoint(dir int, base string) bool {
	var a, b unix.Statx_t
	const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if unix.Statx(dir, base, flags, unix.STATX_MNT_ID, &a) != nil || unix.Statx(dir, "", flags|unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &b) != nil {
		return false
	}
	return a.Mnt_id != b.Mnt_id
}

// inPlace writes into a file that is a mount point: a bind mount of one file, such as
// /etc/hosts.
func (u *unpacker) inPlace(dir int, base, name string, h *tar.Header, body io.Reader) error {
	fd, err := unix.Openat(dir, base, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed(name, "write to the file that is mounted there", err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if m, err := inroot.Mode(fd); err != nil || m&unix.S_IFMT != unix.S_IFREG {
		return bad(ErrKind, name, "what is mounted there is no file")
	}
	if err := f.Truncate(0); err != nil {
		return failed(name, "write to the file that is mounted there", err)
	}
	if err := u.fill(f, name, h, body); err != nil {
		return err
	}
	return closed(f, name)
}

func closed(f *os.File, name string) error {
	if err := f.Close(); err != nil { // over a network this may be the first to hear of a full disk
		return failed(name, "write", err)
	}
	return nil
}

// fill writes the content and sets the attributes, in this order: a change of owner
// clears capabilities and set-id bits, and writing does too.
func (u *unpacker) fill(f *os.File, name string, h *tar.Header, body io.Reader) error {
	if err := WriteSparse(f, body, h.Size, u.buf); err != nil {
		var se *SourceError
		if errors.As(err, &se) {
			return &EntryError{Name: name, Kind: ErrDamaged, Msg: "the archive ends in the middle of it", Err: se.Err}
		}
		return failed(name, "write", err)
	}
	u.Bytes += h.Size
	fd := int(f.Fd())
	mode, err := u.own(fd, "", name, h)
	if err != nil {
		return err
	}
	if err := u.xattrs(fd, name, h, false); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		return failed(name, "set its mode", err)
	}
	if err := u.xattrs(fd, name, h, true); err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, inroot.FdPath(fd), Times(h), 0); err != nil {
		return failed(name, "set its time", err)
	}
	return nil
}

// special gives a link or fifo its owner, mode and times.
func (u *unpacker) special(dir int, base, name string, h *tar.Header) error {
	mode, err := u.own(dir, base, name, h)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeFifo {
		if err := unix.Fchmodat(dir, base, mode, 0); err != nil {
			return failed(name, "set its mode", err)
		}
	}
	if err := unix.UtimesNanoAt(dir, base, Times(h), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return failed(name, "set its time", err)
	}
	return nil
}

// own gives the file of dir and base, or dir itself, its owner, and returns the mode
// that goes with that: if the owner is not the one of the stream, no program may run
// with his rights.
func (u *unpacker) own(dir int, base, name string, h *tar.Header) (mode uint32, err error) {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if base == "" {
		flags = unix.AT_EMPTY_PATH
	}
	if !u.t.NoChown {
		uid, gid := u.t.UID, u.t.GID
		if u.t.Owners {
			uid, gid = h.Uid, h.Gid
		}
		err = chown(dir, base, uid, gid, flags)
		if u.t.Owners && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOVERFLOW) || errors.Is(err, unix.EPERM)) {
			u.Note(name, "owner %d:%d is no id here, now %d:%d", uid, gid, u.t.UID, u.t.GID)
			err = chown(dir, base, u.t.UID, u.t.GID, flags)
		}
		if err != nil {
			return 0, failed(name, "set its owner", err)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, flags); err != nil {
		return 0, failed(name, "look at it", err)
	}
	mode = Mode(h)
	if h.Typeflag != tar.TypeDir && (int64(st.Uid) != int64(h.Uid) || int64(st.Gid) != int64(h.Gid)) {
		mode &^= unix.S_ISUID | unix.S_ISGID
	}
	return mode, nil
}

func chown(dir int, base string, uid, gid, flags int) error {
	const most = 1<<32 - 2 // the last one means "unchanged"
	if uid < 0 || gid < 0 || uid > most || gid > most {
		return unix.EINVAL
	}
	return unix.Fchownat(dir, base, uid, gid, flags)
}

// xattrs sets those of the header: file capabilities in a late call, as chmod and
// chown clear them.
func (u *unpacker) xattrs(fd int, name string, h *tar.Header, late bool) error {
	for key, val := range h.PAXRecords {
		attr, ok := strings.CutPrefix(key, paxXattr)
		if !ok || (attr == "security.capability") != late || attr == "" || strings.IndexByte(attr, 0) >= 0 {
			continue
		}
		if ReservedXattr(attr) {
			u.Note(name, "attribute %s left out: it would steer the overlay", attr)
			continue
		}
		err := unix.Fsetxattr(fd, attr, []byte(val), 0)
		if errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EIO) {
			return failed(name, "set attribute "+attr, err)
		}
		if err != nil {
			u.Note(name, "attribute %s not kept: %v", attr, err)
		}
	}
	return nil
}

// Mode and Times are those of a header. The kernel clamps times that the file system
// cannot hold.
func Mode(h *tar.Header) uint32 { return uint32(h.Mode) & 0o7777 }

// Times are the access and modification time.
func Times(h *tar.Header) []unix.Timespec {
	conv := func(t time.Time) unix.Timespec {
		return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
	}
	m := conv(h.ModTime)
	a := m
	if !h.AccessTime.IsZero() {
		a = conv(h.AccessTime)
	}
	return []unix.Timespec{a, m}
}

// SourceError is a failure to read a stream, not to write the tree.
type SourceError struct{ Err error }

func (e *SourceError) Error() string { return e.Err.Error() }
func (e *SourceError) Unwrap() error { return e.Err }

const holeSize = 4096

var zeros [holeSize]byte

// WriteSparse writes size bytes of r to an empty file, leaving holes for blocks of
// zeros.
func WriteSparse(f *os.File, r io.Reader, size int64, buf []byte) error {
	if size > 0 {
		// A size that the file system cannot have shows now and not after hours.
		if err := f.Truncate(size); err != nil {
			return fmt.Errorf("%d bytes: %w", size, err)
		}
	}
	for off := int64(0); off < size; {
		n, err := io.ReadFull(r, buf[:min(int64(len(buf)), size-off)])
		if err != nil {
			return &SourceError{err}
		}
		for b := buf[:n]; len(b) > 0; {
			if run := dataRun(b); run > 0 {
				if _, err := f.WriteAt(b[:run], off); err != nil {
					return err
				}
				b, off = b[run:], off+int64(run)
			}
			if hole := min(len(b), holeSize); hole > 0 {
				b, off = b[hole:], off+int64(hole)
			}
		}
	}
	return nil
}

// dataRun is how much of b comes before its first block of zeros.
func dataRun(b []byte) int {
	for i := 0; i < len(b); i += holeSize {
		blk := b[i:min(i+holeSize, len(b))]
		if bytes.Equal(blk, zeros[:len(blk)]) {
			return i
		}
	}
	return len(b)
}
