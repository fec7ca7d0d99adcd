package image

import (
	"archive/tar"
	"context"
	"errors"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// ImportOptions describe the image that Import makes.
type ImportOptions struct {
	// Name, with a tag or not; empty: it is found by its id.
	Name string
	// Config is its configuration, of which an archive says nothing.
	Config v1.Config
	// Platform is os/arch[/variant]; empty means the machine's own.
	Platform string
	// Comment is for the history.
	Comment string
}

// Import makes an image with one layer of a root file system: a tar stream, compressed
// or not, as docker export writes.
func (s *Store) Import(ctx context.Context, r io.Reader, o ImportOptions) (*Image, error) {
	p := DefaultPlatform()
	if o.Platform != "" {
		var err error
		if p, err = ParsePlatform(o.Platform); err != nil {
			return nil, err
		}
	}
	return s.Commit(ctx, CommitOptions{
		Name: o.Name, Config: o.Config, Comment: o.Comment, action: "import", platform: p,
		Layer: func(ctx context.Context, w io.Writer) (int64, error) {
			return s.importLayer(ctx, w, r)
		},
	})
}

// importLayer writes the archive that r is to w, and counts its entries.
func (s *Store) importLayer(ctx context.Context, w io.Writer, r io.Reader) (entries int64, err error) {
	in := &meter{r: ctxReader{ctx, r}}
	defer func() {
		if err != nil {
			err = archiveError("import", "the archive", in.n, err)
		}
	}()
	raw, _, free, err := decompress(in)
	if err != nil {
		return 0, err
	}
	defer free()
	out := io.TeeReader(&meter{r: raw, limit: s.limits.Bytes, what: "Bytes", in: in, ratio: s.limits.Ratio}, w)
	tr := tar.NewReader(out)
	for ; ; entries++ {
		_, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, err
		}
	}
	if entries == 0 {
		return 0, errors.New("there is nothing in it")
	}
	_, err = io.Copy(io.Discard, out) // what is behind the end, to its last block
	return entries, err
}
