package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// dockerEntry is an image in the manifest.json of a docker-archive.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// readDocker loads a docker-archive. Its layers have no digests of their own;
// what is checked is the DiffID, and the configuration against its file's name.
func (l *loader) readDocker(ctx context.Context, manifest []byte) error {
	var entries []dockerEntry
	if err := json.Unmarshal(trimBOM(manifest), &entries); err != nil {
		return &Error{Kind: ErrArchive, Op: "read manifest.json of", Subject: l.name, Err: err}
	}
	for _, e := range entries {
		if err := l.dockerImage(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) dockerImage(ctx context.Context, e dockerEntry) error {
	if len(e.Layers) > l.s.limits.Layers {
		return &LimitError{What: "Layers", Limit: int64(l.s.limits.Layers), Got: int64(len(e.Layers))}
	}
	config, err := l.file(e.Config, l.s.limits.Config)
	if err != nil {
		return err
	}
	if config == nil {
		return &Error{Kind: ErrArchive, Op: "load", Subject: l.name, Msg: fmt.Sprintf("manifest.json names %q, which is not in it", e.Config)}
	}
	base := strings.TrimSuffix(path.Base(e.Config), ".json")
	if got := digestOf(config); isHexID(base) && got != "sha256:"+base {
		return &Error{Kind: ErrDigest, Op: "load", Subject: l.src.where(e.Config), Msg: "its content has " + got}
	}
	c, err := parseConfig(config, len(e.Layers))
	if err != nil {
		return fmt.Errorf("load %s of %s: %w", e.Config, l.name, err)
	}
	if err := checkOS(c, l.name); err != nil {
		return err
	}
	layers := make([]Layer, len(e.Layers))
	for i, name := range e.Layers {
		layers[i].DiffID = c.RootFS.DiffIDs[i].String()
		if layers[i].Descriptor, err = l.dockerLayer(ctx, name, layers[i].DiffID); err != nil {
			return err
		}
	}
	rec, err := l.sess.assemble(ctx, config, layers)
	if err != nil {
		return err
	}
	l.add(rec)
	l.addNames(rec, e.RepoTags)
	return nil
}

// dockerLayer stores a layer as it is, after its DiffID has been compared.
func (l *loader) dockerLayer(ctx context.Context, name, diffID string) (Descriptor, error) {
	d, comp, err := l.checkLayer(ctx, name, diffID)
	if err != nil {
		return d, err
	}
	d.MediaType = "application/vnd.oci.image.layer.v1." + string(comp)
	return d, l.store(ctx, name, d)
}

// checkLayer computes both digests of a layer in one pass.
func (l *loader) checkLayer(ctx context.Context, name, diffID string) (Descriptor, compression, error) {
	r, size, err := l.src.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return Descriptor{}, plain, &Error{Kind: ErrArchive, Op: "load", Subject: l.name, Msg: fmt.Sprintf("manifest.json names %q, which is not in it", name)}
	}
	if err != nil {
		return Descriptor{}, plain, err
	}
	defer r.Close()
	sum, diff := sha256.New(), sha256.New()
	in := &meter{r: ctxReader{ctx, r}}
	// The buffer lies outside of the tee: every byte of the file counts, also
	// behind the end of the compressed stream.
	stored := bufio.NewReaderSize(io.TeeReader(in, sum), 64<<10)
	raw, comp, free, err := decompress(stored)
	if err != nil {
		return Descriptor{}, comp, archiveError("load", l.src.where(name), in.n, err)
	}
	defer free()
	out := &meter{r: raw, limit: l.s.limits.Bytes, what: "Bytes", in: in, ratio: l.s.limits.Ratio}
	if _, err := copyContext(ctx, diff, out); err != nil {
		return Descriptor{}, comp, archiveError("load", l.src.where(name), in.n, err)
	}
	if _, err := copyContext(ctx, io.Discard, stored); err != nil {
		return Descriptor{}, comp, archiveError("load", l.src.where(name), in.n, err)
	}
	if got := "sha256:" + hex.EncodeToString(diff.Sum(nil)); got != diffID {
		return Descriptor{}, comp, &Error{Kind: ErrDigest, Op: "load", Subject: l.src.where(name), Msg: fmt.Sprintf("its content has %s, the image wants %s", got, diffID)}
	}
	return Descriptor{Digest: "sha256:" + hex.EncodeToString(sum.Sum(nil)), Size: size}, comp, nil
}

// store copies a file of the archive into the store, verified.
func (l *loader) store(ctx context.Context, name string, d Descriptor) error {
	if l.seen[d.Digest] {
		return nil
	}
	if err := l.sess.pin(ctx, d.Digest); err != nil {
		return err
	}
	if !l.s.hasBlob(d) {
		r, size, err := l.src.open(name)
		if errors.Is(err, fs.ErrNotExist) {
			return &Error{Kind: ErrArchive, Op: "load", Subject: l.name, Msg: "it lacks the blob " + d.Digest}
		}
		if err != nil {
			return err
		}
		defer r.Close()
		if size != d.Size {
			return &Error{Kind: ErrDigest, Op: "load", Subject: l.src.where(name), Msg: fmt.Sprintf("it has %d bytes, not %d, and so not %s", size, d.Size, d.Digest)}
		}
		if _, err := l.sess.writeBlob(ctx, d, l.prog.reader(r, d.Digest, PhaseLoad, d.Size)); err != nil {
			return fmt.Errorf("load %s: %w", l.src.where(name), err)
		}
	}
	l.seen[d.Digest] = true
	l.prog.emit(Event{Layer: d.Digest, Phase: PhaseDone, Done: d.Size, Total: d.Size})
	return nil
}
