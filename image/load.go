package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// LoadOptions of Load.
type LoadOptions struct {
	// Name is given to an image of the archive that has none. Empty: it stays
	// without and is found by its id.
	Name string
	// Platform to choose from images for several, "os/arch[/variant]". Empty:
	// this machine's.
	Platform string
	// Progress is told how far it is. Nil: nobody.
	Progress func(Event)
}

// Load reads images from a file or a directory: what "docker save" and "podman
// save" write (docker-archive), an OCI archive, an OCI layout directory. A file
// may be compressed with gzip or zstd. Either all of its images are loaded or,
// with an error, none.
func (s *Store) Load(ctx context.Context, path string, o LoadOptions) ([]*Image, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("load image: %w", err)
	}
	if fi.IsDir() {
		root, err := os.OpenRoot(path)
		if err != nil {
			return nil, fmt.Errorf("load image: %w", err)
		}
		defer root.Close()
		return s.load(ctx, path, &dirSource{root}, nil, o)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load image: %w", err)
	}
	defer f.Close()
	if !fi.Mode().IsRegular() {
		return s.LoadFrom(ctx, f, o)
	}
	head := make([]byte, 4)
	if _, err := io.ReadFull(f, head); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("load image: %w", err)
	}
	if sniff(head) != plain {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, fmt.Errorf("load image: %w", err)
		}
		return s.LoadFrom(ctx, f, o)
	}
	return s.load(ctx, path, nil, f, o)
}

// LoadFrom does the same from a stream, such as standard input. The stream is
// first put into a temporary file of the store, since its parts are needed in
// another order.
func (s *Store) LoadFrom(ctx context.Context, r io.Reader, o LoadOptions) (_ []*Image, err error) {
	sess, err := s.newSession("spool")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, sess.close(ctx)) }()
	in := &meter{r: ctxReader{ctx, bufio.NewReaderSize(r, 64<<10)}}
	raw, _, free, err := decompress(in)
	if err != nil {
		return nil, archiveError("load", "the stream", in.n, err)
	}
	defer free()
	f, err := os.OpenFile(sess.path("archive"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, classify("load image into", sess.dir, err)
	}
	defer f.Close()
	out := &meter{r: raw, limit: s.limits.Bytes, what: "Bytes", in: in, ratio: s.limits.Ratio}
	src := &sourceReader{r: out}
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, src, make([]byte, 256<<10)); err != nil {
		if src.err != nil {
			return nil, archiveError("load", "the stream", in.n, src.err)
		}
		return nil, classify("load image into", sess.dir, err)
	}
	return s.load(ctx, "the stream", nil, f, o)
}

// sourceReader remembers its error, to tell it from one of the writer.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// archiveError says where an archive is damaged.
func archiveError(op, name string, offset int64, err error) error {
	var e *Error
	var le *LimitError
	switch {
	case errors.As(err, &e) && e.Kind != nil && e.Kind != ErrArchive, errors.As(err, &le),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s %s: %w", op, name, err)
	}
	msg := fmt.Sprintf("damaged near byte %d", offset)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		msg = fmt.Sprintf("cut off at byte %d", offset)
	}
	return &Error{Kind: ErrArchive, Op: op, Subject: name, Msg: msg, Err: err}
}

// source gives random access to the files of an archive or directory.
type source interface {
	// open returns a file and its size; fs.ErrNotExist if it is missing.
	open(name string) (io.ReadCloser, int64, error)
	// where says in which place a file is, for messages.
	where(name string) string
}

// loader collects what one Load brings in.
type loader struct {
	s    *Store
	name string
	src  source
	sess *session
	opts LoadOptions
	want Platform
	prog *progress
	recs []*record
	tags map[string][]string // names by image id
	seen map[string]bool     // blobs stored already
}

func (s *Store) load(ctx context.Context, name string, src source, f *os.File, o LoadOptions) (_ []*Image, err error) {
	l := &loader{s: s, name: name, src: src, opts: o, prog: newProgress(o.Progress), tags: map[string][]string{}, seen: map[string]bool{}}
	if l.want, err = ParsePlatform(o.Platform); err != nil {
		return nil, err
	}
	if o.Name != "" {
		r, err := newName(o.Name)
		if err != nil {
			return nil, err
		}
		l.opts.Name = r.String()
	}
	if src == nil {
		if l.src, err = newTarSource(ctx, name, f, s.limits.ArchiveEntries); err != nil {
			return nil, err
		}
	}
	if l.sess, err = s.newSession("load"); err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, l.sess.close(ctx))
		if err != nil {
			// Nobody knows of the blobs stored so far.
			err = errors.Join(err, s.GC(context.WithoutCancel(ctx)))
		}
	}()
	if err := l.read(ctx); err != nil {
		return nil, classify("load", name, err)
	}
	if len(l.recs) == 0 {
		return nil, &Error{Kind: ErrArchive, Op: "load", Subject: name, Msg: "there is no image in it"}
	}
	err = s.update(ctx, func(x *index) error {
		for _, r := range l.recs {
			x.enter(r, l.tags[r.ID]...)
			name := r.ID
			if tags := l.tags[r.ID]; len(tags) > 0 {
				name = familiar(tags[0])
			}
			x.tell("load", r.ID, name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	x, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	var out []*Image
	for _, r := range l.recs {
		if rec := x.Images[r.ID]; rec != nil { // else removed meanwhile
			out = append(out, s.image(x, rec))
		}
	}
	return out, nil
}

// read finds out what kind of archive it is.
func (l *loader) read(ctx context.Context) error {
	layout, err := l.file("oci-layout", 4096)
	if err != nil {
		return err
	}
	manifest, err := l.file("manifest.json", l.s.limits.Manifest)
	if err != nil {
		return err
	}
	switch {
	case layout != nil:
		// Since version 25 "docker save" writes both kinds into one archive;
		// the layout has the original manifests.
		return l.readLayout(ctx, manifest)
	case manifest != nil:
		return l.readDocker(ctx, manifest)
	}
	return &Error{Kind: ErrArchive, Op: "load", Subject: l.name,
		Msg: "it has neither an oci-layout nor a manifest.json, so it is no image archive",
		Fix: "a plain root file system, as docker export writes it, is made an image by sbx import"}
}

// file reads a small file; nil if it is missing.
func (l *loader) file(name string, limit int64) ([]byte, error) {
	r, _, err := l.src.open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := readLimited(r, limit)
	if err != nil {
		return nil, &Error{Kind: ErrArchive, Op: "read " + name + " of", Subject: l.name, Err: err}
	}
	if b == nil {
		b = []byte{}
	}
	return b, nil
}

// name gives the image its names; without any, the one of the options.
func (l *loader) addNames(rec *record, names []string) {
	if len(names) == 0 && l.opts.Name != "" {
		names = []string{l.opts.Name}
	}
	for _, n := range names {
		r, err := ParseReference(n)
		if err != nil || r.Digest != "" || r.IsDemo() {
			l.s.log.Warn("a name in the archive is not usable", "archive", l.name, "name", n)
			continue
		}
		l.tags[rec.ID] = append(l.tags[rec.ID], r.String())
	}
}

// add takes the record, unless the archive has the image twice.
func (l *loader) add(rec *record) {
	for _, r := range l.recs {
		if r.ID == rec.ID {
			return
		}
	}
	l.recs = append(l.recs, rec)
}

func trimBOM(b []byte) []byte { return bytes.TrimPrefix(b, []byte("\xef\xbb\xbf")) }
