package logfile

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/rootless-sbx/sbx/sandbox/internal/seqfile"
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
// no writer any more or Until has come, with the context's cause when that ends, and
// in any case with fn's error.
func Read(ctx context.Context, dir string, o ReadOptions, fn func(*Record) error) error {
	r := &reader{Reader: seqfile.Reader{Dir: dir, MaxLine: maxRecord}, opts: o, fn: fn}
	defer r.Close()
	following := ctx
	if o.Follow {
		if !o.Until.IsZero() {
			var cancel context.CancelFunc
			following, cancel = context.WithDeadlineCause(ctx, o.Until, errUntil)
			defer cancel()
		}
		var err error
		if r.watch, err = seqfile.NewWatch(following, dir); err != nil {
			return err
		}
		defer r.watch.Close()
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
		if err := r.Drain(func(line []byte) error { return r.emit(ctx, line) }); err != nil {
			if errors.Is(err, errUntil) {
				return nil
			}
			return err
		}
		if !r.opts.Follow || ended {
			return nil
		}
		if err := r.watch.Wait(following); errors.Is(err, errUntil) {
			r.opts.Follow = false // what was written until then
		} else if err != nil {
			return err
		}
	}
}

// errUntil ends a read at ReadOptions.Until.
var errUntil = errors.New("log record after the end that was asked for")

type reader struct {
	seqfile.Reader
	opts  ReadOptions
	fn    func(*Record) error
	watch *seqfile.Watch
}

// ended says that nobody writes any more: no file is locked. A writer locks the
// next file before it lets go of the last one.
func (r *reader) ended() (bool, error) {
	if !r.opts.Follow {
		return false, nil
	}
	for {
		seqs, err := seqfile.List(r.Dir)
		if err != nil || len(seqs) == 0 {
			return true, err
		}
		for _, seq := range seqs[max(0, len(seqs)-2):] {
			if yes, err := locked(seqfile.Name(r.Dir, seq)); yes || err != nil {
				return false, err
			}
		}
		again, err := seqfile.List(r.Dir)
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
		return r.SeekEnd()
	}
	seqs, err := seqfile.List(r.Dir)
	if err != nil {
		return err
	}
	c := counter{lines: r.opts.Tail, last: true}
	for i := len(seqs) - 1; i >= 0 && !c.done; i-- {
		f, err := os.Open(seqfile.Name(r.Dir, seqs[i]))
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
		r.Open(f, seqs[i])
	}
	return nil
}
