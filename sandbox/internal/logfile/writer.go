package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/rootless-sbx/sbx/sandbox/internal/seqfile"
	"golang.org/x/sys/unix"
)

// Defaults of Config.
const (
	DefaultMaxSize  = 10 << 20
	DefaultMaxFiles = 3
)

// Config of a Writer; the zero value works.
type Config struct {
	MaxSize  int64        // of a file, in bytes; 0 means DefaultMaxSize
	MaxFiles int          // 0 means DefaultMaxFiles
	Logger   *slog.Logger // nil discards
}

// flushAfter is how long the writer waits for the end of a line.
const flushAfter = 100 * time.Millisecond

// Writer appends to a log. Its methods may be called from several goroutines.
type Writer struct {
	dir string
	cfg Config
	now func() time.Time

	mu     sync.Mutex // guards what follows
	file   *os.File
	seq    int
	size   int64 // of file up to its last whole record
	lost   int64 // bytes that are not in the log, since the last record that is
	total  int64 // bytes that are not in the log
	buf    []byte
	closed bool
}

// Open makes the directory if need be and takes the log for writing.
func Open(dir string, cfg Config) (*Writer, error) {
	if cfg.MaxSize <= 0 {
		cfg.MaxSize = DefaultMaxSize
	}
	if cfg.MaxFiles <= 0 {
		cfg.MaxFiles = DefaultMaxFiles
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	w := &Writer{dir: dir, cfg: cfg, now: time.Now}
	seqs, err := seqfile.List(dir)
	if err != nil {
		return nil, err
	}
	w.seq = 1
	if len(seqs) > 0 {
		w.seq = seqs[len(seqs)-1]
	}
	if w.file, err = openLocked(w.path(w.seq)); err != nil {
		return nil, err
	}
	if w.size, err = repair(w.file); err != nil {
		w.file.Close()
		return nil, err
	}
	return w, nil
}

func (w *Writer) path(seq int) string { return seqfile.Name(w.dir, seq) }

// openLocked opens a file of the log; the lock says that somebody writes.
func openLocked(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
	}
	return f, nil
}

// repair cuts off a record that a crash has cut short.
func repair(f *os.File) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	buf := make([]byte, 64<<10)
	for end := size; end > 0; {
		n := min(int64(len(buf)), end)
		if _, err := f.ReadAt(buf[:n], end-n); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			end = end - n + int64(i) + 1
			return end, f.Truncate(end)
		}
		end -= n
	}
	return 0, f.Truncate(0)
}

// Stream is the log of one stream. Its Write takes everything and never fails:
// a workload does not end because its log is full.
type Stream struct {
	w    *Writer
	name string

	mu    sync.Mutex // guards what follows
	rest  []byte     // of a line whose end has not come
	timer *time.Timer
}

// Stream returns a stream of the log.
func (w *Writer) Stream(name string) *Stream { return &Stream{w: w, name: name} }

// Write implements io.Writer.
func (s *Stream) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(b)
	if len(s.rest) > 0 {
		s.rest = append(s.rest, b...) // in place the next time
		b = s.rest
	}
	end := bytes.LastIndexByte(b, '\n') + 1
	for len(b)-end > maxPiece {
		end += cut(b[end:])
	}
	s.w.append(s.name, b[:end], true)
	s.rest = append(s.rest[:0], b[end:]...)
	if len(s.rest) > 0 {
		if s.timer == nil {
			s.timer = time.AfterFunc(flushAfter, func() { s.flush(true) })
		} else {
			s.timer.Reset(flushAfter)
		}
	}
	return n, nil
}

// flush writes what there is of a line.
func (s *Stream) flush(more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.w.append(s.name, s.rest, more)
	s.rest = s.rest[:0]
}

// Close writes the rest.
func (s *Stream) Close() error {
	s.mu.Lock()
	if s.timer != nil {
		s.timer.Stop()
	}
	s.mu.Unlock()
	s.flush(false)
	return nil
}

// append writes lines; more says that the last one goes on if it has no end.
func (w *Writer) append(stream string, b []byte, more bool) {
	if len(b) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	for len(b) > 0 {
		w.buf = w.buf[:0]
		w.notice(now)
		rest := b
		for {
			n := cut(rest)
			had := len(w.buf)
			w.buf = encode(w.buf, &Record{Stream: stream, Time: now, Log: rest[:n], Partial: rest[n-1] != '\n' && (more || n < len(rest))})
			if had > 0 && (len(w.buf) > maxBatch || w.size+int64(len(w.buf)) > w.cfg.MaxSize) {
				w.buf = w.buf[:had] // for the next one
				break
			}
			if rest = rest[n:]; len(rest) == 0 {
				break
			}
		}
		w.write(len(b) - len(rest))
		b = rest
	}
}

// notice says in buf what is missing, if anything is.
func (w *Writer) notice(now time.Time) {
	if w.lost > 0 {
		w.buf = encode(w.buf, &Record{Stream: StreamNotice, Time: now, Log: fmt.Appendf(nil,
			"%d bytes of output are missing here: they could not be written to the log\n", w.lost)})
	}
}

// maxBatch is how much goes to the file at once.
const maxBatch = 64 << 10

// write puts buf into the file, or counts the bytes of output that are in it as
// lost.
func (w *Writer) write(output int) {
	if w.closed {
		w.lost += int64(output)
		w.total += int64(output)
		return
	}
	if w.size > 0 && w.size+int64(len(w.buf)) > w.cfg.MaxSize {
		if err := w.rotate(); err != nil {
			w.lose(output, err)
			return
		}
	}
	if _, err := w.file.WriteAt(w.buf, w.size); err != nil {
		// The piece that fitted is no record.
		w.lose(output, errors.Join(err, w.file.Truncate(w.size)))
		return
	}
	w.size += int64(len(w.buf))
	w.lost = 0
}

// lose counts; the first loss is told.
func (w *Writer) lose(output int, err error) {
	if w.lost == 0 {
		w.cfg.Logger.Warn("output could not be logged", "dir", w.dir, "err", err)
	}
	w.lost += int64(output)
	w.total += int64(output)
}

// Lost returns how many bytes of output are not in the log.
func (w *Writer) Lost() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.total
}

// rotate starts the next file. The old one is closed after the new one is there,
// so that a follower finds it.
func (w *Writer) rotate() error {
	next, err := openLocked(w.path(w.seq + 1))
	if err != nil {
		return err
	}
	old := w.file
	w.file, w.size = next, 0
	w.seq++
	cerr := old.Close()
	seqs, err := seqfile.List(w.dir)
	if err != nil {
		return errors.Join(cerr, err)
	}
	for _, seq := range seqs[:max(0, len(seqs)-w.cfg.MaxFiles)] {
		if err := os.Remove(w.path(seq)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			cerr = errors.Join(cerr, err)
		}
	}
	if cerr != nil {
		w.cfg.Logger.Warn("rotate the log", "dir", w.dir, "err", cerr)
	}
	return nil
}

// Close ends the log; followers see its end. Streams are closed before.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	if w.lost > 0 { // at the end; there may be room again
		w.buf = w.buf[:0]
		w.notice(w.now())
		w.write(0)
	}
	w.closed = true
	return w.file.Close()
}
