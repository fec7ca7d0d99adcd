package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxLinks   = 1 << 20
	bufferSize = 256 << 10
	paxXattr   = "SCHILY.xattr."
)

// Packer writes a tar stream.
type Packer struct {
	// Sparse leaves large holes out, in a format that GNU tar, libarchive and Go
	// read.
	Sparse bool
	Stats

	w     io.Writer
	tw    *tar.Writer
	links map[inode]*linked
	buf   []byte
}

// Stats is what was done.
type Stats struct {
	// Entries, and Bytes of the files, holes included.
	Entries, Bytes int64
	// Notes are what could not be kept, at most 100; MoreNotes counts the rest.
	Notes     []string `json:",omitempty"`
	MoreNotes int      `json:",omitempty"`
}

const maxNotes = 100

// Note adds to the notes.
func (s *Stats) Note(name, format string, args ...any) {
	if len(s.Notes) >= maxNotes {
		s.MoreNotes++
		return
	}
	s.Notes = append(s.Notes, fmt.Sprintf("%q: ", name)+fmt.Sprintf(format, args...))
}

type inode struct {
	tree     int
	dev, ino uint64
}

// linked is a file with several names.
type linked struct {
	name string // the first
	left uint64 // names still to come
}

// NewPacker writes to w.
func NewPacker(w io.Writer) *Packer {
	return &Packer{w: w, tw: tar.NewWriter(w), links: map[inode]*linked{}, buf: make([]byte, bufferSize)}
}

// File is something to pack. Its name is where it is in the stream.
type File struct {
	Name string
	Stat unix.Stat_t
	// Tree tells files apart that have the same number in different file trees.
	Tree int
	// Open opens it for reading, Readlink says where it leads.
	Open     func() (int, error)
	Readlink func() (string, error)
}

// Add writes one entry. What has gone meanwhile is left out.
func (p *Packer) Add(ctx context.Context, f File) error {
	h := header(&f)
	switch f.Stat.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		p.Note(f.Name, "a socket, left out")
		return nil
	case unix.S_IFLNK:
		target, err := f.Readlink()
		if err != nil {
			return gone(err)
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if f.Stat.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(f.Stat.Rdev)), int64(unix.Minor(f.Stat.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
		return p.opened(ctx, h, &f)
	case unix.S_IFREG:
		if first := p.linkedTo(&f); first != "" {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			break
		}
		h.Typeflag = tar.TypeReg
		return p.opened(ctx, h, &f)
	}
	return p.write(h)
}

func header(f *File) *tar.Header {
	st := &f.Stat
	return &tar.Header{
		Format: tar.FormatPAX, Name: f.Name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()),
	}
}

// linkedTo returns the name under which the file has been packed already.
func (p *Packer) linkedTo(f *File) string {
	if f.Stat.Nlink < 2 {
		return ""
	}
	key := inode{f.Tree, f.Stat.Dev, f.Stat.Ino}
	l := p.links[key]
	if l == nil {
		if len(p.links) < maxLinks {
			p.links[key] = &linked{f.Name, uint64(f.Stat.Nlink) - 1}
		}
		return ""
	}
	if l.left--; l.left == 0 {
		delete(p.links, key)
	}
	return l.name
}

// opened packs a file or directory, which has attributes and content.
func (p *Packer) opened(ctx context.Context, h *tar.Header, f *File) error {
	fd, err := f.Open()
	if err != nil {
		p.forget(f)
		return gone(err)
	}
	file := os.NewFile(uintptr(fd), f.Name)
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != f.Stat.Mode&unix.S_IFMT {
		p.forget(f)
		return nil // another one has taken its place
	}
	if err := p.xattrs(fd, h); err != nil {
		return fmt.Errorf("%q: %w", f.Name, err)
	}
	if h.Typeflag == tar.TypeDir {
		return p.write(h)
	}
	h.Size = st.Size
	if p.Sparse {
		if data := extents(fd, &st); data != nil {
			return p.sparse(ctx, h, file, data)
		}
	}
	if err := p.write(h); err != nil {
		return err
	}
	return p.content(ctx, p.tw, file, f.Name, 0, h.Size)
}

func (p *Packer) forget(f *File) {
	key := inode{f.Tree, f.Stat.Dev, f.Stat.Ino}
	if l := p.links[key]; l != nil && l.name == f.Name {
		delete(p.links, key)
	}
}

func (p *Packer) write(h *tar.Header) error {
	p.Entries++
	if err := p.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("%q: %w", h.Name, err)
	}
	return nil
}

// content writes size bytes of the file from off on. One that has become shorter is
// filled with zeros: its entry has said how long it is.
func (p *Packer) content(ctx context.Context, w io.Writer, f *os.File, name string, off, size int64) error {
	p.Bytes += size
	for size > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		b := p.buf[:min(int64(len(p.buf)), size)]
		n, err := f.ReadAt(b, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if n < len(b) {
			p.Note(name, "it became shorter while it was read")
			clear(b[n:])
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		off, size = off+int64(len(b)), size-int64(len(b))
	}
	return nil
}

// xattrs adds the extended attributes that mean something elsewhere.
func (p *Packer) xattrs(fd int, h *tar.Header) error {
	names, err := ListXattrs(fd)
	if err != nil {
		return err
	}
	for _, name := range names {
		if ReservedXattr(name) || strings.ContainsRune(name, '=') {
			continue
		}
		val, err := GetXattr(fd, name)
		switch {
		case err == nil:
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords[paxXattr+name] = string(val)
		case errors.Is(err, unix.ENODATA):
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EOVERFLOW):
			p.Note(h.Name, "attribute %s cannot be read: %v", name, err)
		default:
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}

// Whiteout writes the entry that hides a name of the layers below.
func (p *Packer) Whiteout(name string) error {
	return p.write(&tar.Header{Format: tar.FormatPAX, Name: name, Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0)})
}

// Close ends the stream. It does not close the writer.
func (p *Packer) Close() error { return p.tw.Close() }

// gone says nothing of what somebody has removed meanwhile.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENXIO) {
		return nil
	}
	return err
}
