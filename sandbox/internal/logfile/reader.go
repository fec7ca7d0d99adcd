package logfile

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxRecord is more than a record takes: a piece as base64, or each of its bytes
// as \u00XX, and the rest.
const maxRecord = 8*maxPiece + 1<<10

// ReadOptions say which records are wanted; the zero value means all there are.
type ReadOptions struct {
	Follow       bool
	Tail         int       // the last lines only; 0 means all, -1 none
	Since, Until time.Time // zero means no bound
}

// Read calls fn for each record, in order. With Follow it returns when there is
// no writer any more, with the context's cause when that ends, and in any case
// with fn's error.
func Read(ctx context.Context, dir string, o ReadOptions, fn func(*Record) error) error {
	r := &reader{dir: dir, opts: o, fn: fn}
	defer r.close()
	if o.Follow {
		var err error
		if r.watch, err = newWatch(ctx, dir); err != nil {
			return err
		}
		defer r.watch.close()
	}
	if err := r.seek(); err != nil {
		return err
	}
	for {
		// Before reading: what is written until then is read.
		ended, err := r.ended()
		if err != nil {
			return err
		}
		if err := r.drain(ctx); err != nil {
			if errors.Is(err, errUntil) {
				return nil
			}
			return err
		}
		if !o.Follow || ended {
			return nil
		}
		if err := r.watch.wait(ctx); err != nil {
			return err
		}
	}
}

// errUntil ends a read at ReadOptions.Until.
var errUntil = errors.New("log record after the end that was asked for")

type reader struct {
	dir   string
	opts  ReadOptions
	fn    func(*Record) error
	watch *watch

	file *os.File
	seq  int
	buf  *bufio.Reader
	part []byte // of a record that is being written
}

// list returns the numbers of the log's files in order; none if it has none.
func list(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var seqs []int
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if seq, err := strconv.Atoi(name); ok && err == nil && seq > 0 {
			seqs = append(seqs, seq)
		}
	}
	slices.Sort(seqs)
	return seqs, nil
}

// ended says that nobody writes any more: no file is locked. A writer locks the
// next file before it lets go of the last one.
func (r *reader) ended() (bool, error) {
	if !r.opts.Follow {
		return false, nil
	}
	for {
		seqs, err := list(r.dir)
		if err != nil || len(seqs) == 0 {
			return true, err
		}
		for _, seq := range seqs[max(0, len(seqs)-2):] {
			if yes, err := locked(fileName(r.dir, seq)); yes || err != nil {
				return false, err
			}
		}
		again, err := list(r.dir)
		if err != nil || slices.Equal(seqs, again) {
			return true, err
		}
	}
}

// locked asks for the lock without taking it, which would be in a writer's way.
func locked(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_RDLCK}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock)
	return lock.Type != unix.F_UNLCK, err
}

// next opens the file after the present one, or the oldest there is if that is
// gone. It returns false if there is none.
func (r *reader) next() (bool, error) {
	for {
		seqs, err := list(r.dir)
		if err != nil {
			return false, err
		}
		i, _ := slices.BinarySearch(seqs, r.seq+1)
		if i == len(seqs) {
			return false, nil
		}
		f, err := os.Open(fileName(r.dir, seqs[i]))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		r.open(f, seqs[i])
		return true, nil
	}
}

func (r *reader) open(f *os.File, seq int) {
	r.close()
	r.file, r.seq, r.part = f, seq, nil
	if r.buf == nil {
		r.buf = bufio.NewReaderSize(f, 64<<10)
	} else {
		r.buf.Reset(f)
	}
}

func (r *reader) close() {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
}

// drain reads what is there.
func (r *reader) drain(ctx context.Context) error {
	for {
		if r.file != nil {
			if err := r.drainFile(ctx); err != nil {
				return err
			}
		}
		// The next file is only begun when this one is complete; but a record
		// may have come to this one after it was read to its end.
		more, err := r.following()
		if err != nil || !more {
			return err
		}
		if r.file != nil {
			if err := r.drainFile(ctx); err != nil {
				return err
			}
		}
		if ok, err := r.next(); err != nil || !ok {
			return err
		}
	}
}

// following says that a file after the present one exists.
func (r *reader) following() (bool, error) {
	seqs, err := list(r.dir)
	return len(seqs) > 0 && seqs[len(seqs)-1] > r.seq, err
}

func (r *reader) drainFile(ctx context.Context) error {
	for {
		line, err := r.buf.ReadSlice('\n')
		if err != nil && err != io.EOF && err != bufio.ErrBufferFull {
			return err
		}
		if err != nil {
			r.part = append(r.part, line...)
			if err == io.EOF {
				return nil
			}
			if len(r.part) > maxRecord {
				r.part = r.part[:0] // garbage
			}
			continue
		}
		if len(r.part) > 0 {
			line = append(r.part, line...)
			r.part = r.part[:0]
		}
		if err := r.emit(ctx, line); err != nil {
			return err
		}
	}
}

// emit passes a record on. A line that is none (a crash, a hand) is passed over.
func (r *reader) emit(ctx context.Context, line []byte) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	rec, err := decode(line)
	if err != nil {
		return nil
	}
	if rec.Time.Before(r.opts.Since) {
		return nil
	}
	if !r.opts.Until.IsZero() && rec.Time.After(r.opts.Until) {
		if r.opts.Follow && time.Now().After(r.opts.Until) {
			return errUntil
		}
		return nil // the clock may have been set back
	}
	return r.fn(rec)
}

// seek finds the first record that is wanted.
func (r *reader) seek() error {
	switch {
	case r.opts.Tail == 0:
		return nil
	case r.opts.Tail < 0:
		return r.seekEnd()
	}
	seqs, err := list(r.dir)
	if err != nil {
		return err
	}
	c := counter{lines: r.opts.Tail, last: true}
	for i := len(seqs) - 1; i >= 0 && !c.done; i-- {
		f, err := os.Open(fileName(r.dir, seqs[i]))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return err
		}
		off, err := c.tail(f)
		if err == nil {
			_, err = f.Seek(off, io.SeekStart)
		}
		if err != nil {
			f.Close()
			return err
		}
		r.open(f, seqs[i])
	}
	return nil
}

func (r *reader) seekEnd() error {
	seqs, err := list(r.dir)
	if err != nil || len(seqs) == 0 {
		return err
	}
	seq := seqs[len(seqs)-1]
	f, err := os.Open(fileName(r.dir, seq))
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		f.Close()
		return err
	}
	r.open(f, seq)
	return nil
}
