package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
)

// CommitOptions describe a new image.
type CommitOptions struct {
	// Base is the id of the image that it is made from, of which the caller has a
	// Lease; empty: it has one layer.
	Base string
	// Layer writes the new layer as a tar stream, and says how many entries it has.
	// Without any the image gets no new layer.
	Layer func(ctx context.Context, w io.Writer) (entries int64, err error)
	// Config is the whole configuration of a sandbox of it.
	Config v1.Config
	// Author, Comment and CreatedBy are for the history.
	Author, Comment, CreatedBy string
	// Name, with a tag or not; empty: it is found by its id.
	Name string

	action   string   // of its event; empty: that is the caller's
	platform Platform // without a Base; zero: the machine's
}

// Commit makes an image. When it fails, or its process is killed, there is none and
// what was written goes as after any other operation.
func (s *Store) Commit(ctx context.Context, o CommitOptions) (_ *Image, err error) {
	var names []string
	if o.Name != "" {
		r, err := newName(o.Name)
		if err != nil {
			return nil, err
		}
		names = []string{r.String()}
	}
	p := o.platform
	if p.OS == "" {
		p = DefaultPlatform()
	}
	base := &Image{Config: &v1.ConfigFile{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, RootFS: v1.RootFS{Type: "layers"}}}
	if o.Base != "" {
		if base, err = s.Get(ctx, o.Base); err != nil {
			return nil, err
		}
	}
	if n := len(base.Layers) + 1; n > s.limits.Layers {
		return nil, &LimitError{What: "Layers", Limit: int64(s.limits.Layers), Got: int64(n)}
	}
	sess, err := s.newSession("commit")
	if err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, sess.close(ctx))
		if err != nil {
			// Nobody knows of the blobs stored so far.
			err = errors.Join(err, s.GC(context.WithoutCancel(ctx)))
		}
	}()
	rec, err := sess.commit(ctx, base, &o)
	if err != nil {
		return nil, classify("commit to", s.root, err)
	}
	err = s.update(ctx, func(x *index) error {
		x.enter(rec, names...)
		if o.action != "" {
			x.tell(o.action, rec.ID, cmp.Or(o.Name, rec.ID))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.Get(ctx, rec.ID)
}

// commit stores layer, configuration and manifest.
func (x *session) commit(ctx context.Context, base *Image, o *CommitOptions) (*record, error) {
	layer, entries, err := x.newLayer(ctx, o.Layer)
	if err != nil {
		return nil, err
	}
	now := v1.Time{Time: time.Now().UTC()}
	from := base.Config.DeepCopy()
	cf := &v1.ConfigFile{
		Architecture: from.Architecture, OS: from.OS, OSVersion: from.OSVersion, OSFeatures: from.OSFeatures, Variant: from.Variant,
		RootFS: from.RootFS, History: from.History, Config: o.Config, Created: now, Author: o.Author,
	}
	cf.History = append(cf.History, v1.History{Created: now, Author: o.Author, Comment: o.Comment, CreatedBy: o.CreatedBy, EmptyLayer: entries == 0})
	layers := slices.Clone(base.Layers)
	if entries > 0 {
		h, err := v1.NewHash(layer.DiffID)
		if err != nil {
			return nil, err
		}
		cf.RootFS.DiffIDs = append(cf.RootFS.DiffIDs, h)
		layers = append(layers, *layer)
	}
	config, err := json.Marshal(cf)
	if err != nil {
		return nil, err
	}
	if n := int64(len(config)); n > x.s.limits.Config {
		return nil, &LimitError{What: "Config", Limit: x.s.limits.Config, Got: n}
	}
	return x.assemble(ctx, config, layers)
}

// newLayer stores what write writes, compressed.
func (x *session) newLayer(ctx context.Context, write func(context.Context, io.Writer) (int64, error)) (*Layer, int64, error) {
	pr, pw := io.Pipe()
	z, err := gzip.NewWriterLevel(pw, gzip.BestSpeed)
	if err != nil {
		return nil, 0, err
	}
	tar := &digester{w: z, sum: sha256.New(), limit: x.s.limits.Bytes}
	var entries int64
	var werr error
	written := make(chan struct{})
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(written)
		if entries, werr = write(wctx, tar); werr == nil {
			werr = z.Close()
		}
		pw.CloseWithError(werr)
	}()
	d, err := x.writeBlob(ctx, Descriptor{MediaType: string(types.OCILayer), Size: x.s.limits.Bytes}, pr)
	pr.CloseWithError(err)
	cancel()
	<-written
	if err == nil {
		err = werr
	}
	if err != nil {
		return nil, 0, err
	}
	return &Layer{Descriptor: d, DiffID: "sha256:" + hex.EncodeToString(tar.sum.Sum(nil))}, entries, nil
}

// digester sums up what is written.
type digester struct {
	w        io.Writer
	sum      hash.Hash
	n, limit int64
}

func (d *digester) Write(b []byte) (int, error) {
	if d.n += int64(len(b)); d.n > d.limit {
		return 0, &LimitError{What: "Bytes", Limit: d.limit, Got: -1}
	}
	d.sum.Write(b)
	return d.w.Write(b)
}
