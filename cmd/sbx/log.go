package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"unicode"
)

// terminal is standard error. While a workload has the terminal in raw mode a
// line feed alone does not go back to the first column.
type terminal struct {
	f   *os.File
	raw atomic.Bool
}

func (t *terminal) Write(p []byte) (int, error) {
	if !t.raw.Load() {
		return t.f.Write(p)
	}
	if _, err := t.f.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// say prints a line of ours. It may quote what a sandbox, an image or a registry has said.
func say(w io.Writer, format string, args ...any) error {
	_, err := fmt.Fprintln(w, harmless(fmt.Sprintf(format, args...)))
	return err
}

// harmless shows the control characters that a terminal would obey.
func harmless(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsControl(r) && r != '\t' {
			fmt.Fprintf(&b, `\x%02x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// newLogger logs everything with debug, else only warnings, as messages to a user.
func newLogger(w io.Writer, debug bool) *slog.Logger {
	if debug {
		return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(&warnings{w: w, mu: new(sync.Mutex)})
}

// warnings prints what is not an error and should be known all the same.
type warnings struct {
	w     io.Writer
	mu    *sync.Mutex // one line at a time
	attrs string
}

func (h *warnings) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

func (h *warnings) Handle(_ context.Context, r slog.Record) error {
	attrs := h.attrs
	r.Attrs(func(a slog.Attr) bool {
		attrs += attrText(a)
		return true
	})
	if attrs != "" {
		attrs = ":" + attrs
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return say(h.w, "sbx: warning: %s%s", r.Message, attrs)
}

func (h *warnings) WithAttrs(list []slog.Attr) slog.Handler {
	next := *h
	for _, a := range list {
		next.attrs += attrText(a)
	}
	return &next
}

// WithGroup is not needed by anything that sbx logs to users: names are kept flat.
func (h *warnings) WithGroup(string) slog.Handler { return h }

func attrText(a slog.Attr) string {
	return fmt.Sprintf(" %s=%s", a.Key, strings.ReplaceAll(a.Value.String(), "\n", "; "))
}
