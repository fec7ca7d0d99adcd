package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/rootless-sbx/sbx/sandbox/internal/logfile"
)

// LogOptions say which part of a log is wanted; the zero value means all there is.
type LogOptions = logfile.ReadOptions

// LogRecord is a line of a log, or a piece of a long one.
type LogRecord = logfile.Record

// ErrNoLog is returned by Logs for a sandbox whose output is not kept.
var ErrNoLog = errors.New("the sandbox's output is not logged")

// Logs calls fn for the output that the sandbox has written, in order. With
// Follow it returns when the sandbox has ended.
func (s *Sandbox) Logs(ctx context.Context, o LogOptions, fn func(*LogRecord) error) error {
	if _, err := s.look(ctx); err != nil {
		return err
	}
	dir := filepath.Join(s.e.containers(), s.id, "log")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if l := s.start.Life.Log; l != nil && l.Driver == "json-file" {
			return nil // it has not been started
		}
		return &StateError{Kind: ErrNoLog, Name: s.name, Fix: "run it with -d, or without --rm, and without --log-driver none"}
	}
	return logfile.Read(ctx, dir, o, fn)
}
