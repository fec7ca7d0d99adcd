package image

import (
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// DemoName is the reference of the image that Store.Demo makes. Docker's rules
// do not apply to it: "docker.io/library/demo" still names that image of the Hub.
const DemoName = "demo"

const (
	defaultDomain = "docker.io"
	officialRepo  = "library/"
	maxNameLen    = 255
)

// Reference is the name of an image, normalised as Docker does.
type Reference struct {
	// Domain is the registry's host and port; empty for DemoName only.
	Domain string
	// Path is the repository within it.
	Path string
	// Tag is empty if the reference has a digest and no tag.
	Tag string
	// Digest is "sha256:...", or empty.
	Digest string
}

// ParseReference reads a reference as a user types it: "alpine",
// "ghcr.io/org/app:v1", "alpine@sha256:...".
func ParseReference(s string) (Reference, error) {
	bad := func(format string, args ...any) (Reference, error) {
		return Reference{}, &Error{Kind: ErrReference, Subject: fmt.Sprintf("%q", s), Msg: "invalid image reference: " + fmt.Sprintf(format, args...)}
	}
	if s == DemoName {
		return Reference{Path: DemoName}, nil
	}
	switch {
	case s == "":
		return bad("it is empty")
	case len(s) > 2*maxNameLen+128:
		return bad("too long")
	case strings.Contains(s, "://"):
		return bad("it has a URL scheme; leave that out")
	case isHexID(s):
		return bad("64 hexadecimal digits are an image id")
	}
	var r Reference
	rest := s
	if head, dig, ok := strings.Cut(rest, "@"); ok {
		h, err := v1.NewHash(dig)
		if err != nil {
			return bad("%v", err)
		}
		if h.Algorithm != "sha256" {
			return bad("digest algorithm %q is not supported, only sha256", h.Algorithm)
		}
		r.Digest, rest = h.String(), head
	}
	if i := strings.LastIndexByte(rest, ':'); i >= 0 && !strings.Contains(rest[i:], "/") {
		r.Tag, rest = rest[i+1:], rest[:i]
		if !validTag(r.Tag) {
			return bad("bad tag %q", r.Tag)
		}
	}
	r.Domain, r.Path = defaultDomain, rest
	if head, tail, ok := strings.Cut(rest, "/"); ok &&
		(strings.ContainsAny(head, ".:") || head == "localhost" || strings.ToLower(head) != head) {
		r.Domain, r.Path = head, tail
	}
	if r.Domain == "index.docker.io" {
		r.Domain = defaultDomain
	}
	if r.Domain == defaultDomain && r.Path != "" && !strings.Contains(r.Path, "/") {
		r.Path = officialRepo + r.Path
	}
	switch {
	case !validDomain(r.Domain):
		return bad("bad registry host %q", r.Domain)
	case strings.ToLower(r.Path) != r.Path:
		return bad("repository name must be lowercase")
	case !validPath(r.Path):
		return bad("bad repository name %q", r.Path)
	case len(r.Domain)+1+len(r.Path) > maxNameLen:
		return bad("repository name over %d characters", maxNameLen)
	}
	if r.Tag == "" && r.Digest == "" {
		r.Tag = "latest"
	}
	return r, nil
}

// IsDemo says whether this is the name of the built-in image.
func (r Reference) IsDemo() bool { return r.Domain == "" }

// Repository is the name without tag and digest, e.g. "docker.io/library/alpine".
func (r Reference) Repository() string {
	if r.IsDemo() {
		return r.Path
	}
	return r.Domain + "/" + r.Path
}

// String is the full name, which ParseReference reads back to the same value.
func (r Reference) String() string { return r.suffix(r.Repository()) }

// Familiar is the name as Docker prints it, e.g. "alpine:latest".
func (r Reference) Familiar() string { return r.suffix(familiarRepo(r.Repository())) }

func (r Reference) suffix(s string) string {
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}

// familiarRepo drops what Docker does not print.
func familiarRepo(repo string) string {
	rest, ok := strings.CutPrefix(repo, defaultDomain+"/")
	if !ok {
		return repo
	}
	short := strings.TrimPrefix(rest, officialRepo)
	// "docker.io/library/localhost/x" would read back as a registry's host.
	if strings.Contains(short, "/") && short != rest {
		return rest
	}
	if head, _, ok := strings.Cut(short, "/"); ok && (strings.ContainsAny(head, ".:") || head == "localhost") {
		return repo
	}
	return short
}

// familiar shortens a stored full name.
func familiar(full string) string {
	r, err := ParseReference(full)
	if err != nil {
		return full
	}
	return r.Familiar()
}

// remote is the reference as the registry client wants it.
func (r Reference) remote(insecure bool) (name.Reference, error) {
	var opts []name.Option
	if insecure {
		opts = append(opts, name.Insecure)
	}
	s := r.Repository()
	if r.Digest != "" {
		s += "@" + r.Digest // the tag is only a remark then, as for Docker
	} else {
		s += ":" + r.Tag
	}
	ref, err := name.ParseReference(s, append(opts, name.StrictValidation)...)
	if err != nil {
		return nil, &Error{Kind: ErrReference, Subject: fmt.Sprintf("%q", r.String()), Err: err}
	}
	return ref, nil
}

// newName reads the name for an image that is made here.
func newName(name string) (Reference, error) {
	r, err := ParseReference(name)
	if err == nil && (r.Digest != "" || r.IsDemo()) {
		err = &Error{Kind: ErrReference, Subject: fmt.Sprintf("%q", name), Msg: "a new name is a repository with a tag"}
	}
	return r, err
}
