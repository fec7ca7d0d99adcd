package seqfile

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
)

// Reader reads the lines of a directory's files, from the oldest unless Open or
// SeekEnd says otherwise.
type Reader struct {
	Dir string
	// MaxLine bounds what is kept of a line whose end has not come; of a longer one
	// some part is passed over.
	MaxLine int

	file *os.File
	seq  int
	buf  *bufio.Reader
	part []byte // of a line that is being written
}

// Open goes on with a file, from where it stands. It is closed by the Reader.
func (r *Reader) Open(f *os.File, seq int) {
	r.Close()
	r.file, r.seq, r.part = f, seq, nil
	if r.buf == nil {
		r.buf = bufio.NewReaderSize(f, 64<<10)
	} else {
		r.buf.Reset(f)
	}
}

// SeekEnd passes over what there is.
func (r *Reader) SeekEnd() error {
	seqs, err := List(r.Dir)
	if err != nil || len(seqs) == 0 {
		return err
	}
	seq := seqs[len(seqs)-1]
	f, err := os.Open(Name(r.Dir, seq))
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		f.Close()
		return err
	}
	r.Open(f, seq)
	return nil
}

// Close closes the file.
func (r *Reader) Close() {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
}

// Drain calls fn for each whole line that is there, with its end. The line is only
// valid during the call.
func (r *Reader) Drain(fn func(line []byte) error) error {
	for {
		if r.file != nil {
			if err := r.drainFile(fn); err != nil {
				return err
			}
		}
		// The next file is only begun when this one is complete; but a line may have
		// come to this one after it was read to its end.
		more, err := r.following()
		if err != nil || !more {
			return err
		}
		if r.file != nil {
			if err := r.drainFile(fn); err != nil {
				return err
			}
		}
		if ok, err := r.next(); err != nil || !ok {
			return err
		}
	}
}

// following says that a file after the present one exists.
func (r *Reader) following() (bool, error) {
	seqs, err := List(r.Dir)
	return len(seqs) > 0 && seqs[len(seqs)-1] > r.seq, err
}

// next opens the file after the present one, or the oldest there is if that is
// gone. It returns false if there is none.
func (r *Reader) next() (bool, error) {
	for {
		seqs, err := List(r.Dir)
		if err != nil {
			return false, err
		}
		i, _ := slices.BinarySearch(seqs, r.seq+1)
		if i == len(seqs) {
			return false, nil
		}
		f, err := os.Open(Name(r.Dir, seqs[i]))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		r.Open(f, seqs[i])
		return true, nil
	}
}

func (r *Reader) drainFile(fn func(line []byte) error) error {
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
			if len(r.part) > r.MaxLine {
				r.part = r.part[:0] // garbage
			}
			continue
		}
		if len(r.part) > 0 {
			line = append(r.part, line...)
			r.part = r.part[:0]
		}
		if err := fn(line); err != nil {
			return err
		}
	}
}
