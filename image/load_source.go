package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// dirSource is an OCI layout directory. Nothing outside of it is reached, also
// not through links.
type dirSource struct{ root *os.Root }

func (d *dirSource) open(name string) (io.ReadCloser, int64, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

func (d *dirSource) where(name string) string { return path.Join(d.root.Name(), name) }

// tarSource is an uncompressed archive, whose directory is read once.
type tarSource struct {
	f     *os.File
	files map[string]tarFile
}

type tarFile struct {
	off, size int64
	link      string // a symlink, as old docker-archives have for equal layers
}

func newTarSource(ctx context.Context, name string, f *os.File, maxEntries int) (*tarSource, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", name, err)
	}
	t := &tarSource{f: f, files: map[string]tarFile{}}
	// A tar.Reader does not read ahead: the section's offset after Next is
	// where the content begins.
	sec := io.NewSectionReader(f, 0, fi.Size())
	tr := tar.NewReader(sec)
	for n := 0; ; n++ {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		h, err := tr.Next()
		off, serr := sec.Seek(0, io.SeekCurrent)
		if serr != nil {
			return nil, fmt.Errorf("load %s: %w", name, serr)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return nil, archiveError("load", name, off, err)
		}
		if n >= maxEntries {
			return nil, &LimitError{What: "ArchiveEntries", Limit: int64(maxEntries), Got: -1, Path: name}
		}
		clean := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		switch {
		case sparse(h):
			return nil, archiveError("load", name, off, fmt.Errorf("%q is stored as a sparse file", h.Name))
		case h.Typeflag == tar.TypeReg:
			if off+h.Size > fi.Size() {
				return nil, archiveError("load", name, fi.Size(), fmt.Errorf("%q: %w", h.Name, io.ErrUnexpectedEOF))
			}
			t.files[clean] = tarFile{off: off, size: h.Size}
		case h.Typeflag == tar.TypeSymlink, h.Typeflag == tar.TypeLink:
			link := h.Linkname
			if h.Typeflag == tar.TypeSymlink {
				link = path.Join(path.Dir(clean), link)
			}
			t.files[clean] = tarFile{link: strings.TrimPrefix(path.Clean("/"+link), "/")}
		}
	}
	return t, nil
}

func sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func (t *tarSource) find(name string) (tarFile, bool) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	for range 8 {
		e, ok := t.files[name]
		if !ok || e.link == "" {
			return e, ok
		}
		name = e.link
	}
	return tarFile{}, false
}

func (t *tarSource) open(name string) (io.ReadCloser, int64, error) {
	e, ok := t.find(name)
	if !ok {
		return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(io.NewSectionReader(t.f, e.off, e.size)), e.size, nil
}

func (t *tarSource) where(name string) string {
	e, ok := t.find(name)
	if !ok {
		return name
	}
	return fmt.Sprintf("%s (bytes %d to %d of the archive)", name, e.off, e.off+e.size)
}
