package archive

import (
	"errors"
	"fmt"
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
