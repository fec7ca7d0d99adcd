package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// PullOptions of Pull.
type PullOptions struct {
	// Platform to choose, "os/arch[/variant]". Empty: this machine's.
	Platform string
	// Insecure allows plain HTTP and unverified certificates for this pull.
	Insecure bool
	// Progress is told how far it is. Nil: nobody.
	Progress func(Event)
}

// A pull:
//
//	connect        log in (registry.go)
//	resolve        manifest, through indexes to the one for the platform
//	pin            from here on GC spares all blobs of the image
//	configuration  its DiffIDs must fit the layers
//	layers         several at once, each under its lock
//	update         the image gets its name

// Pull fetches an image, or what is missing of it, and gives it the name.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (_ *Image, err error) {
	r, err := ParseReference(ref)
	if err != nil {
		return nil, err
	}
	if r.IsDemo() {
		return nil, &Error{Kind: ErrReference, Subject: `"demo"`, Msg: "the built-in image is made, not pulled", Fix: "docker.io/library/demo is the one of Docker Hub"}
	}
	want, err := ParsePlatform(o.Platform)
	if err != nil {
		return nil, err
	}
	prog := newProgress(o.Progress)
	sess, err := s.newSession("pull")
	if err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, sess.close(ctx))
		// Complete blobs make the next attempt shorter where it has a chance.
		if err != nil && ctx.Err() == nil && !errors.Is(err, ErrUnreachable) {
			err = errors.Join(err, s.GC(context.WithoutCancel(ctx)))
		}
	}()
	c, err := s.connect(ctx, r, o.Insecure, prog)
	if err != nil {
		return nil, explainPull(r, err)
	}
	defer c.close()
	p := &pull{registry: c, ref: r, sess: sess, want: want, strict: o.Platform != ""}
	rec, err := p.run(ctx)
	if err != nil {
		return nil, explainPull(r, err)
	}
	err = s.update(ctx, func(x *index) error {
		var names []string
		if r.Digest == "" {
			names = []string{r.String()}
		}
		x.enter(rec, names...)
		x.tell("pull", rec.ID, r.Familiar())
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.Get(ctx, rec.ID)
}

type pull struct {
	*registry
	ref    Reference
	sess   *session
	want   Platform
	strict bool // the platform was asked for
	// raw are the documents on the way to the manifest.
	raw []document
}

type document struct {
	desc Descriptor
	body []byte
}

func (p *pull) run(ctx context.Context) (*record, error) {
	p.prog.emit(Event{Layer: p.ref.String(), Phase: PhaseResolve})
	id := p.ref.Digest
	if id == "" {
		id = p.ref.Tag
	}
	m, err := p.resolve(ctx, id, Descriptor{Digest: p.ref.Digest}, 0)
	if err != nil {
		return nil, err
	}
	top, last := p.raw[0].desc, p.raw[len(p.raw)-1].desc
	rec, err := p.s.newRecord(m, last)
	if err != nil {
		return nil, err
	}
	if top.Digest != last.Digest {
		rec.Index = &top
	}
	rec.addDigest(p.ref.Repository() + "@" + top.Digest)
	if err := p.sess.pin(ctx, rec.blobs()...); err != nil {
		return nil, err
	}
	for _, d := range p.raw {
		if d.desc.Digest != top.Digest && d.desc.Digest != last.Digest {
			continue // an index in between
		}
		if _, err := p.sess.writeBytes(ctx, d.desc.MediaType, d.body); err != nil {
			return nil, err
		}
	}
	if err := p.blob(ctx, rec.Config); err != nil {
		return nil, err
	}
	b, err := p.s.readBlob(rec.Config.Digest, p.s.limits.Config)
	if err != nil {
		return nil, err
	}
	conf, err := rec.setConfig(b)
	if err != nil {
		return nil, err
	}
	if err := p.checkPlatform(conf); err != nil {
		return nil, err
	}
	rec.Added = time.Now().UTC()
	return rec, p.layers(ctx, rec.Layers)
}

const acceptManifests = mtOCIIndex + ", " + mtDockerList + ", " + mtOCIManifest + ", " + mtDockerManifest +
	", application/vnd.docker.distribution.manifest.v1+prettyjws"

// resolve fetches a manifest by tag or digest and follows indexes.
func (p *pull) resolve(ctx context.Context, id string, want Descriptor, nesting int) (*v1.Manifest, error) {
	if nesting > maxNesting {
		return nil, &Error{Kind: ErrManifest, Subject: id, Msg: "indexes nested too deeply"}
	}
	var body []byte
	var media string
	err := p.retry(ctx, id, func() error {
		resp, err := p.get(ctx, "manifests", id, acceptManifests)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		media = resp.Header.Get("Content-Type")
		body, err = readLimited(resp.Body, p.s.limits.Manifest)
		return err
	})
	if err != nil {
		return nil, err
	}
	if want.MediaType != "" {
		media = want.MediaType // the index is part of what was verified, the header is not
	}
	doc, err := parseManifest(body, media)
	if err != nil {
		return nil, err
	}
	desc := Descriptor{MediaType: doc.media, Digest: digestOf(body), Size: int64(len(body))}
	if want.Digest != "" && desc.Digest != want.Digest {
		return nil, &Error{Kind: ErrDigest, Subject: "manifest " + want.Digest, Msg: "what came has " + desc.Digest}
	}
	p.raw = append(p.raw, document{desc, body})
	if doc.manifest != nil {
		return doc.manifest, nil
	}
	child, err := choose(doc.index.Manifests, p.want, p.ref.String())
	if err != nil {
		return nil, err
	}
	kind, err := mediaKind(string(child.MediaType))
	if err != nil {
		return nil, err
	}
	cd, err := descriptor(child, kind, p.s.limits.Manifest)
	if err != nil {
		return nil, err
	}
	return p.resolve(ctx, cd.Digest, cd, nesting+1)
}

// checkPlatform judges an image that did not come through an index.
func (p *pull) checkPlatform(c *v1.ConfigFile) error {
	if err := checkOS(c, p.ref.String()); err != nil {
		return err
	}
	have := Platform{OS: "linux", Architecture: c.Architecture, Variant: c.Variant}
	if c.Architecture == "" || score(p.want, have) > 0 {
		return nil
	}
	if p.strict {
		return &Error{Kind: ErrPlatform, Op: "find " + p.want.String() + " in", Subject: p.ref.String(), Msg: "it exists for " + have.String() + " only"}
	}
	p.s.log.Warn("the image is for another platform", "image", p.ref.String(), "platform", have.String(), "host", p.want.String())
	return nil
}

// layers fetches all layers, a few at once. The first failure ends the others.
func (p *pull) layers(ctx context.Context, layers []Layer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	slots := make(chan struct{}, p.s.cfg.Downloads)
	var wg sync.WaitGroup
	seen := map[string]bool{}
	for _, l := range layers {
		if seen[l.Digest] {
			continue
		}
		seen[l.Digest] = true
		p.prog.emit(Event{Layer: l.Digest, Phase: PhaseWait, Total: l.Size})
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := p.blob(ctx, l.Descriptor); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// blob fetches one blob, unless it is there or another process is faster.
func (p *pull) blob(ctx context.Context, d Descriptor) (err error) {
	if p.s.hasBlob(d) {
		p.prog.emit(Event{Layer: d.Digest, Phase: PhaseExists, Done: d.Size, Total: d.Size})
		return nil
	}
	lock, err := waitLock(ctx, p.s.lockPath("blob-"+strings.TrimPrefix(d.Digest, "sha256:")), unix.LOCK_EX)
	if err != nil {
		return classify("store", d.Digest, err)
	}
	defer func() { err = errors.Join(err, lock.discard()) }()
	if p.s.hasBlob(d) {
		p.prog.emit(Event{Layer: d.Digest, Phase: PhaseExists, Done: d.Size, Total: d.Size})
		return nil
	}
	err = p.retry(ctx, d.Digest, func() error { return p.fetch(ctx, d) })
	if err != nil {
		return fmt.Errorf("fetch %s: %w", d.Digest, err)
	}
	p.prog.emit(Event{Layer: d.Digest, Phase: PhaseDone, Done: d.Size, Total: d.Size})
	return nil
}

// fetch tries once.
func (p *pull) fetch(ctx context.Context, d Descriptor) error {
	resp, err := p.get(ctx, "blobs", d.Digest, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	src := &sourceReader{r: resp.Body}
	_, err = p.sess.writeBlob(ctx, d, p.prog.reader(src, d.Digest, PhaseDownload, d.Size))
	if err != nil && src.err != nil && ctx.Err() == nil && !errors.Is(err, ErrNoSpace) {
		return &bodyError{src.err}
	}
	return err
}

// bodyError is a download that broke off.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return "the download broke off: " + e.err.Error() }
func (e *bodyError) Unwrap() []error {
	return []error{e.err, io.ErrUnexpectedEOF}
}
