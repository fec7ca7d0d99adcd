package logfile

import (
	"bytes"
	"io"
	"os"
)

// counter counts lines from the end of a log. A line is several records if the
// first ones are partial.
type counter struct {
	lines int  // that are still wanted
	last  bool // no record was seen yet
	done  bool // the record before the first wanted one was seen
}

// tail returns where in a file the first wanted record begins.
func (c *counter) tail(f *os.File) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	first := size
	err = backward(f, size, func(off int64, line []byte) bool {
		r, err := decode(line)
		if err != nil {
			return true
		}
		// The last record ends a line, whatever is to come.
		if !r.Partial || c.last {
			if c.lines == 0 {
				c.done = true
				return false
			}
			c.lines--
		}
		c.last, first = false, off
		return true
	})
	return first, err
}

// backward calls fn for each complete line, the last one first, until it returns
// false. Of a line that is longer than a record can be, some part is passed.
func backward(f *os.File, size int64, fn func(off int64, line []byte) bool) error {
	var rest []byte // what is known of the line that ends behind it
	ended := false  // the end of that line was seen
	buf := make([]byte, 64<<10)
	for pos := size; pos > 0; {
		n := min(int64(len(buf)), pos)
		pos -= n
		chunk := buf[:n]
		if _, err := f.ReadAt(chunk, pos); err != nil {
			return err
		}
		for {
			i := bytes.LastIndexByte(chunk, '\n')
			if ended {
				rest = append(bytes.Clone(chunk[i+1:]), rest...)
			}
			if i < 0 {
				break
			}
			if ended && !fn(pos+int64(i)+1, rest) {
				return nil
			}
			ended, rest, chunk = true, rest[:0], chunk[:i]
		}
		if len(rest) > maxRecord {
			rest = rest[:0]
		}
	}
	if ended {
		fn(0, rest)
	}
	return nil
}
