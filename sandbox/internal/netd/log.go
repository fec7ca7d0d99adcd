package netd

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
)

// newLog logs to a file that never grows beyond maxLogSize.
func newLog(f *os.File, debug bool) *slog.Logger {
	if f == nil {
		return slog.New(slog.DiscardHandler)
	}
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(&boundedLog{f: f, max: maxLogSize}, &slog.HandlerOptions{Level: level}))
}

// boundedLog writes to a file opened for appending; when that is full it keeps
// the second half. The runtime writes a panic to the same file, past us, and
// that is the last thing it does.
type boundedLog struct {
	max int64

	mu sync.Mutex // guards f
	f  *os.File
}

func (l *boundedLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fi, err := l.f.Stat()
	if err != nil {
		return 0, err
	}
	if fi.Mode().IsRegular() && fi.Size()+int64(len(b)) > l.max {
		if err := l.shorten(fi.Size()); err != nil {
			return 0, err
		}
	}
	return l.f.Write(b)
}

func (l *boundedLog) shorten(size int64) error {
	keep := make([]byte, min(size, l.max/2))
	n, err := l.f.ReadAt(keep, size-int64(len(keep)))
	if err != nil && err != io.EOF {
		n = 0 // not readable: better a short log than a full disk
	}
	if err := l.f.Truncate(0); err != nil {
		return err
	}
	_, err = fmt.Fprintf(l.f, "[older lines removed]\n%s", keep[:n])
	return err
}
