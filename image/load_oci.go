package image

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const (
	annName       = "org.opencontainers.image.ref.name"
	annContainerd = "io.containerd.image.name"
	// maxNesting of indexes within indexes.
	maxNesting = 3
)

// readLayout loads every image of an OCI layout. docker is the manifest.json
// beside it, nil if there is none; it can add names.
func (l *loader) readLayout(ctx context.Context, docker []byte) error {
	b, err := l.file("index.json", l.s.limits.Manifest)
	if err != nil {
		return err
	}
	if b == nil {
		return &Error{Kind: ErrArchive, Op: "load", Subject: l.name, Msg: "an OCI layout without index.json"}
	}
	p, err := parseManifest(trimBOM(b), mtOCIIndex)
	if err != nil {
		return fmt.Errorf("load index.json of %s: %w", l.name, err)
	}
	for _, d := range p.index.Manifests {
		if d.Platform != nil && d.Platform.OS == "unknown" {
			continue // a build attestation
		}
		rec, err := l.layoutImage(ctx, d, 0)
		if err != nil {
			return err
		}
		l.add(rec)
		l.addNames(rec, layoutNames(d.Annotations))
	}
	return l.dockerNames(docker)
}

// layoutNames reads the name from a descriptor's annotations. Some tools write
// only the tag there, which is no name.
func layoutNames(ann map[string]string) []string {
	if n := ann[annContainerd]; n != "" {
		return []string{n}
	}
	if n := ann[annName]; strings.ContainsAny(n, "/:") {
		return []string{n}
	}
	return nil
}

// layoutImage follows a descriptor to an image manifest and stores all of it.
func (l *loader) layoutImage(ctx context.Context, d v1.Descriptor, nesting int) (*record, error) {
	kind, err := mediaKind(string(d.MediaType))
	if err != nil {
		return nil, err
	}
	desc, err := descriptor(d, kind, l.s.limits.Manifest)
	if err != nil {
		return nil, err
	}
	b, err := l.file(blobName(desc.Digest), l.s.limits.Manifest)
	if err != nil {
		return nil, err
	}
	if b == nil {
		return nil, &Error{Kind: ErrArchive, Op: "load", Subject: l.name, Msg: "it lacks the blob " + desc.Digest}
	}
	if got := digestOf(b); got != desc.Digest {
		return nil, &Error{Kind: ErrDigest, Op: "load", Subject: l.src.where(blobName(desc.Digest)), Msg: "its content has " + got}
	}
	p, err := parseManifest(b, desc.MediaType)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", desc.Digest, err)
	}
	if p.manifest != nil {
		return l.layoutManifest(ctx, p.manifest, desc)
	}
	if nesting >= maxNesting {
		return nil, &Error{Kind: ErrManifest, Op: "load", Subject: desc.Digest, Msg: "indexes nested too deeply"}
	}
	child, err := choose(l.present(p.index.Manifests), l.want, l.name)
	if err != nil {
		return nil, err
	}
	rec, err := l.layoutImage(ctx, child, nesting+1)
	if err != nil {
		return nil, err
	}
	if err := l.store(ctx, blobName(desc.Digest), desc); err != nil {
		return nil, err
	}
	rec.Index = &desc
	return rec, nil
}

// present drops what the archive does not contain: one made with --platform
// still lists the others.
func (l *loader) present(list []v1.Descriptor) []v1.Descriptor {
	var out []v1.Descriptor
	for _, d := range list {
		if r, _, err := l.src.open(blobName(d.Digest.String())); err == nil {
			r.Close()
			out = append(out, d)
		}
	}
	return out
}

func (l *loader) layoutManifest(ctx context.Context, m *v1.Manifest, desc Descriptor) (*record, error) {
	rec, err := l.s.newRecord(m, desc)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", desc.Digest, err)
	}
	for _, d := range append([]Descriptor{desc, rec.Config}, descriptors(rec.Layers)...) {
		if err := l.store(ctx, blobName(d.Digest), d); err != nil {
			return nil, err
		}
	}
	config, err := l.s.readBlob(rec.Config.Digest, l.s.limits.Config)
	if err != nil {
		return nil, err
	}
	c, err := rec.setConfig(config)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", desc.Digest, err)
	}
	rec.Added = time.Now().UTC()
	return rec, checkOS(c, l.name)
}

func descriptors(layers []Layer) []Descriptor {
	out := make([]Descriptor, len(layers))
	for i, l := range layers {
		out[i] = l.Descriptor
	}
	return out
}

func blobName(digest string) string { return "blobs/sha256/" + strings.TrimPrefix(digest, "sha256:") }

// dockerNames adds the names of a manifest.json to images already read.
func (l *loader) dockerNames(manifest []byte) error {
	if manifest == nil {
		return nil
	}
	var entries []dockerEntry
	if err := json.Unmarshal(trimBOM(manifest), &entries); err != nil {
		return &Error{Kind: ErrArchive, Op: "read manifest.json of", Subject: l.name, Err: err}
	}
	for _, e := range entries {
		for _, r := range l.recs {
			if strings.HasSuffix(e.Config, strings.TrimPrefix(r.ID, "sha256:")) && len(e.RepoTags) > 0 {
				l.addNames(r, e.RepoTags)
			}
		}
	}
	return nil
}
