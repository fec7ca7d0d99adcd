package events

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/rootless-sbx/sbx/internal/flock"
	"github.com/rootless-sbx/sbx/sandbox/internal/seqfile"
	"golang.org/x/sys/unix"
)

const (
	maxLine  = 16 << 10
	lockName = "lock"
)

// lockPatience is how long the lock may be held; a variable for the tests.
var lockPatience = 2 * time.Second

// Journal is one user's. Any number of processes may have it; the zero values of all
// but Dir work.
type Journal struct {
	Dir string
	// MaxSize of a file, and how many there are; 0 means 1 MiB and 4.
	MaxSize  int64
	MaxFiles int
	// Logger is told of an event that could not be written; nil discards.
	Logger *slog.Logger
}

// Add writes events down, in this order.
func (j *Journal) Add(list ...*Event) {
	if err := j.add(list); err != nil && j.Logger != nil {
		j.Logger.Warn("the event could not be written to the journal", "event", list[0].Type+" "+list[0].Action, "err", err)
	}
}

func (j *Journal) add(list []*Event) error {
	unlock, err := j.lock()
	if err != nil {
		return err
	}
	defer unlock()
	for _, e := range list {
		e.stamp(time.Now())
		line, err := e.encode()
		if err == nil {
			err = j.append(line)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// lock makes the journal if need be.
func (j *Journal) lock() (unlock func(), err error) {
	path := filepath.Join(j.Dir, lockName)
	const flags = os.O_RDWR | os.O_CREATE | unix.O_NOFOLLOW
	f, err := os.OpenFile(path, flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(j.Dir, 0o700); err == nil {
			f, err = os.OpenFile(path, flags, 0o600)
		}
	}
	if err != nil {
		return nil, err
	}
	err = flock.Try(f, unix.LOCK_EX)
	if errors.Is(err, flock.ErrLocked) {
		ctx, cancel := context.WithTimeout(context.Background(), lockPatience)
		defer cancel()
		if err = flock.Wait(ctx, f, unix.LOCK_EX); errors.Is(err, context.DeadlineExceeded) {
			err = nil // its holder is stopped
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// append writes a line to the last file.
func (j *Journal) append(line []byte) error {
	seqs, err := seqfile.List(j.Dir)
	if err != nil {
		return err
	}
	seq := 1
	if len(seqs) > 0 {
		seq = seqs[len(seqs)-1]
	}
	f, size, err := openLast(seqfile.Name(j.Dir, seq))
	if err != nil {
		return err
	}
	defer func() { f.Close() }()
	if size > 0 && size+int64(len(line)) > cmp.Or(j.MaxSize, 1<<20) {
		next, _, err := openLast(seqfile.Name(j.Dir, seq+1))
		if err != nil {
			return err
		}
		f.Close()
		f = next
		j.trim(append(seqs, seq+1))
	} else if torn, err := isTorn(f, size); err != nil {
		return err
	} else if torn {
		line = append([]byte{'\n'}, line...)
	}
	n, err := f.Write(line)
	if err == nil && n < len(line) {
		err = io.ErrShortWrite
	}
	return err
}

// trim removes the oldest files.
func (j *Journal) trim(seqs []int) {
	for len(seqs) > cmp.Or(j.MaxFiles, 4) {
		if err := os.Remove(seqfile.Name(j.Dir, seqs[0])); err != nil && !errors.Is(err, fs.ErrNotExist) && j.Logger != nil {
			j.Logger.Warn("an old file of the journal could not be removed", "err", err)
		}
		seqs = seqs[1:]
	}
}

func openLast(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

// isTorn says that the last line has no end.
func isTorn(f *os.File, size int64) (bool, error) {
	if size == 0 {
		return false, nil
	}
	var last [1]byte
	_, err := f.ReadAt(last[:], size-1)
	return last[0] != '\n', err
}
