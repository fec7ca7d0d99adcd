package image

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/rootless-sbx/sbx/internal/wire"
)

// The kinds of failure, for errors.Is. The error itself is an *Error with the
// subject, the cause and, where there is one, the remedy.
var (
	// ErrNotFound: no such image, here or in the registry.
	ErrNotFound = errors.New("no such image")
	// ErrUnauthorized comes together with ErrNotFound: registries answer
	// "unauthorized" for what does not exist, so as not to tell.
	ErrUnauthorized = errors.New("the registry wants credentials")
	// ErrUnreachable: the registry did not answer, or not as a registry does.
	ErrUnreachable = errors.New("registry unreachable")
	// ErrReference: not the name of an image.
	ErrReference = errors.New("invalid image reference")
	// ErrAmbiguous: an id prefix of several images.
	ErrAmbiguous = errors.New("ambiguous image id")
	// ErrPlatform: the image does not exist for the platform wanted.
	ErrPlatform = errors.New("no image for this platform")
	// ErrDigest: content is not what its digest says.
	ErrDigest = errors.New("content does not match its digest")
	// ErrMediaType: a format that is refused, such as schema 1 or encrypted layers.
	ErrMediaType = errors.New("unsupported media type")
	// ErrManifest: a manifest or configuration that contradicts itself.
	ErrManifest = errors.New("invalid image manifest")
	// ErrArchive: an archive or layer that is damaged or not one at all.
	ErrArchive = errors.New("damaged archive")
	// ErrBreakout: a layer entry that points out of its root.
	ErrBreakout = errors.New("path leaves the root of the layer")
	// ErrInUse: a Lease is held on the image.
	ErrInUse = errors.New("image is in use")
	// ErrConflict: removal needs force, because the image has other names.
	ErrConflict = errors.New("image has several names")
	// ErrNoSpace: the disk or the quota is full.
	ErrNoSpace = errors.New("no space left for images")
	// ErrReadOnly: the store is on a read-only file system.
	ErrReadOnly = errors.New("image store is read-only")
	// ErrIDs: a file belongs to an id that the id map does not have.
	ErrIDs = errors.New("id outside of the id map")
)

// codes are the names under which the kinds travel between processes.
var codes = map[string]error{
	"image-not-found":    ErrNotFound,
	"image-unauthorized": ErrUnauthorized,
	"image-unreachable":  ErrUnreachable,
	"image-reference":    ErrReference,
	"image-ambiguous":    ErrAmbiguous,
	"image-platform":     ErrPlatform,
	"image-digest":       ErrDigest,
	"image-media-type":   ErrMediaType,
	"image-manifest":     ErrManifest,
	"image-archive":      ErrArchive,
	"image-breakout":     ErrBreakout,
	"image-in-use":       ErrInUse,
	"image-conflict":     ErrConflict,
	"image-no-space":     ErrNoSpace,
	"image-read-only":    ErrReadOnly,
	"image-ids":          ErrIDs,
}

// Error is a failure of this package.
type Error struct {
	// Kind is one of the Err variables.
	Kind error
	// Op is what was being done, e.g. "pull".
	Op string
	// Subject is the image, blob or path concerned.
	Subject string
	// Msg says why, in addition to Err.
	Msg string
	// Err is the cause; nil if Msg or Kind says everything.
	Err error
	// Fix is what the user can do about it.
	Fix string
}

func (e *Error) Error() string {
	s := e.Op
	if e.Subject != "" {
		if s != "" {
			s += " "
		}
		s += e.Subject
	}
	add := func(t string) {
		if t == "" {
			return
		}
		if s != "" {
			s += ": "
		}
		s += t
	}
	if e.Msg == "" && e.Err == nil && e.Kind != nil {
		add(e.Kind.Error())
	}
	add(e.Msg)
	if e.Err != nil {
		add(e.Err.Error())
	}
	return s
}

// Unwrap gives both the kind and the cause.
func (e *Error) Unwrap() []error {
	out := make([]error, 0, 2)
	if e.Kind != nil {
		out = append(out, e.Kind)
	}
	if e.Err != nil {
		out = append(out, e.Err)
	}
	return out
}

// LimitError is returned for content over one of the Limits.
type LimitError struct {
	// What is the limit's name, a field of Limits.
	What string
	// Limit is its value, Got what was met, -1 if unknown.
	Limit, Got int64
	// Path is the entry concerned, if any.
	Path string
}

func (e *LimitError) Error() string {
	s := fmt.Sprintf("over the limit %s of %d", e.What, e.Limit)
	if e.Got >= 0 {
		s += fmt.Sprintf(" (found %d)", e.Got)
	}
	if e.Path != "" {
		s = fmt.Sprintf("%q: %s", e.Path, s)
	}
	return s
}

// classify adds a kind to errors of the system that mean the same everywhere.
func classify(op, subject string, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	kind, fix := error(nil), ""
	switch {
	case errors.As(err, &e) && e.Kind != nil:
		return err
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		kind, fix = ErrNoSpace, "free disk space, for example by removing images, and try again"
	case errors.Is(err, syscall.EROFS):
		kind = ErrReadOnly
	default:
		return fmt.Errorf("%s %s: %w", op, subject, err)
	}
	return &Error{Kind: kind, Op: op, Subject: subject, Err: err, Fix: fix}
}

// WireError prepares an error of Unpack for its way to the engine's process.
func WireError(err error) *wire.Error {
	out := wire.ToError("", err)
	if out == nil {
		return nil
	}
	var le *LimitError
	if errors.As(err, &le) {
		out.Code = "image-limit"
		return out
	}
	var e *Error
	if errors.As(err, &e) {
		out.Fix = e.Fix
		for code, kind := range codes {
			if errors.Is(e.Kind, kind) {
				out.Code = code
			}
		}
	}
	return out
}

// fromWire gives an error that crossed a process its kind back.
func fromWire(err error) error {
	var we *wire.Error
	if !errors.As(err, &we) {
		return err
	}
	if kind, ok := codes[we.Code]; ok {
		return &Error{Kind: kind, Err: err, Fix: we.Fix}
	}
	if we.Code == "image-limit" {
		return errors.Join(err, &LimitError{What: "of the layer", Limit: -1, Got: -1})
	}
	return err
}
