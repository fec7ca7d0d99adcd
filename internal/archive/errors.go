package archive

import (
	"errors"
	"fmt"

	"github.com/rootless-sbx/sbx/internal/wire"
)

var (
	// ErrBreakout: a name that leaves the directory.
	ErrBreakout = errors.New("path leaves the directory")
	// ErrDamaged: the stream is no tar archive, or not a whole one.
	ErrDamaged = errors.New("damaged archive")
	// ErrKind: a directory would be replaced by a file, or a file by a directory.
	ErrKind = errors.New("a directory and a file of the same name")
	// ErrLimit: the stream is over one of the limits.
	ErrLimit = errors.New("over a limit")
)

// EntryError says which entry of a stream could not be unpacked, and why.
type EntryError struct {
	Name string
	Kind error // one of the above, or nil
	Msg  string
	Err  error
}

func (e *EntryError) Error() string {
	s := fmt.Sprintf("%q", e.Name)
	if e.Msg != "" {
		s += ": " + e.Msg
	} else if e.Kind != nil {
		s += ": " + e.Kind.Error()
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *EntryError) Unwrap() []error {
	var list []error
	for _, err := range []error{e.Kind, e.Err} {
		if err != nil {
			list = append(list, err)
		}
	}
	return list
}

func bad(kind error, name, format string, args ...any) error {
	return &EntryError{Name: name, Kind: kind, Msg: fmt.Sprintf(format, args...)}
}

func failed(name, doing string, err error) error {
	return &EntryError{Name: name, Msg: doing, Err: err}
}

// codes are the names under which the kinds travel between processes.
var codes = map[string]error{
	"archive-breakout": ErrBreakout,
	"archive-damaged":  ErrDamaged,
	"archive-kind":     ErrKind,
	"archive-limit":    ErrLimit,
}

// WireError prepares an error for its way to another process.
func WireError(err error) *wire.Error {
	out := wire.ToError("", err)
	if out != nil && out.Code == "" {
		for code, kind := range codes {
			if errors.Is(err, kind) {
				out.Code = code
			}
		}
	}
	return out
}

// FromWire gives an error that has come from another process its kind back.
func FromWire(err error) error {
	var we *wire.Error
	if errors.As(err, &we) && codes[we.Code] != nil {
		return &wireError{codes[we.Code], we}
	}
	return err
}

type wireError struct{ kind, err error }

func (e *wireError) Error() string   { return e.err.Error() }
func (e *wireError) Unwrap() []error { return []error{e.kind, e.err} }
