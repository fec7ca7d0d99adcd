package image

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Image is an image of the store as it was when it was looked up.
type Image struct {
	// ID is "sha256:" and the digest of the configuration.
	ID string
	// Names are the tags that mean this image, as Docker prints them; empty
	// for one that lost its name to a newer pull.
	Names []string
	// Digests are the names with digest under which it was pulled.
	Digests []string
	// Manifest is its own manifest, also when it came through an index.
	Manifest Descriptor
	// Layers from the bottom up.
	Layers []Layer
	// Size is what its blobs take: compressed layers, configuration, manifest.
	Size int64
	// Platform as its configuration says.
	Platform Platform
	// Config is the whole configuration. Never nil.
	Config *v1.ConfigFile
	// Damage says why the configuration could not be read; Get returns it as
	// an error instead.
	Damage error

	rec *record
}

// Created is the time in the configuration.
func (i *Image) Created() time.Time { return i.Config.Created.Time }

func (s *Store) image(x *index, r *record) *Image {
	i := &Image{ID: r.ID, Manifest: r.Manifest, Layers: r.Layers, Config: &v1.ConfigFile{}, rec: r}
	for _, n := range x.names(r.ID) {
		i.Names = append(i.Names, familiar(n))
	}
	for _, d := range r.Digests {
		i.Digests = append(i.Digests, familiar(d))
	}
	i.Size = r.Manifest.Size + r.Config.Size
	if r.Index != nil {
		i.Size += r.Index.Size
	}
	for _, l := range r.Layers {
		i.Size += l.Size
	}
	b, err := s.readBlob(r.Config.Digest, s.limits.Config)
	if err == nil {
		i.Config, err = v1.ParseConfigFile(bytes.NewReader(b))
	}
	if err != nil {
		i.Config, i.Damage = &v1.ConfigFile{}, err
	}
	i.Platform = Platform{OS: i.Config.OS, Architecture: i.Config.Architecture, Variant: i.Config.Variant}
	return i
}

// List returns all images, the newest first.
func (s *Store) List(ctx context.Context) ([]*Image, error) {
	x, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	out := make([]*Image, 0, len(x.Images))
	for _, r := range x.Images {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		out = append(out, s.image(x, r))
	}
	slices.SortFunc(out, func(a, b *Image) int {
		if c := b.Created().Compare(a.Created()); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out, nil
}

// Get looks an image up by name, name with digest, id or unique prefix of an id.
func (s *Store) Get(ctx context.Context, ref string) (*Image, error) {
	x, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	r, _, err := x.find(ref)
	if err != nil {
		return nil, err
	}
	i := s.image(x, r)
	if i.Damage != nil {
		return nil, fmt.Errorf("image %s: %w", ref, i.Damage)
	}
	return i, nil
}

// find resolves what a user typed. The second result is the full name with tag
// by which it was found; empty if by id or digest.
func (x *index) find(ref string) (*record, string, error) {
	if id, ok := strings.CutPrefix(ref, "sha256:"); ok && isHex(id) {
		return x.findPrefix(ref, id)
	}
	r, perr := ParseReference(ref)
	if perr == nil {
		if rec := x.byReference(r); rec != nil {
			full := ""
			if r.Digest == "" {
				full = r.String()
			}
			return rec, full, nil
		}
	}
	if isHex(ref) && len(ref) <= 64 {
		rec, _, err := x.findPrefix(ref, ref)
		return rec, "", err
	}
	if perr != nil {
		return nil, "", perr
	}
	return nil, "", notHere(ref)
}

func notHere(ref string) error {
	return &Error{Kind: ErrNotFound, Subject: "image " + ref, Msg: "not in the local store", Fix: "sbx pull " + ref}
}

func (x *index) byReference(r Reference) *record {
	if r.Digest == "" {
		return x.Images[x.Refs[r.String()]]
	}
	want := r.Repository() + "@" + r.Digest
	for _, rec := range x.Images {
		if slices.Contains(rec.Digests, want) {
			return rec
		}
	}
	return nil
}

func (x *index) findPrefix(ref, hex string) (*record, string, error) {
	var found *record
	for id, rec := range x.Images {
		if strings.HasPrefix(id, "sha256:"+hex) {
			if found != nil {
				return nil, "", &Error{Kind: ErrAmbiguous, Subject: "image " + ref, Fix: "give more digits of the id"}
			}
			found = rec
		}
	}
	if found == nil {
		return nil, "", notHere(ref)
	}
	return found, "", nil
}

func isHex(s string) bool {
	return s != "" && strings.Trim(s, "0123456789abcdef") == ""
}

// Tag gives the image src the name dst, taking it away from another.
func (s *Store) Tag(ctx context.Context, src, dst string) error {
	r, err := newName(dst)
	if err != nil {
		return err
	}
	return s.update(ctx, func(x *index) error {
		rec, _, err := x.find(src)
		if err != nil {
			return err
		}
		x.Refs[r.String()] = rec.ID
		x.tell("tag", rec.ID, r.Familiar())
		return nil
	})
}
