package archive

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// minHole is how much the holes of a file must save: below that any tar may read it.
const minHole = 1 << 20

const blockSize = 512

type extent struct{ off, len int64 }

// extents are the parts of a file that are no holes; nil if it is not worth to look.
func extents(fd int, st *unix.Stat_t) []extent {
	if st.Size-st.Blocks*blockSize < minHole {
		return nil
	}
	list := []extent{}
	saved := st.Size
	for off := int64(0); off < st.Size; {
		start, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break // a hole up to the end
		}
		if err != nil {
			return nil // the file system does not know holes
		}
		end, err := unix.Seek(fd, start, unix.SEEK_HOLE)
		if err != nil {
			return nil
		}
		end = min(end, st.Size)
		if end <= start {
			break // it became shorter
		}
		list = append(list, extent{start, end - start})
		saved -= end - start
		off = end
	}
	if saved < minHole {
		return nil
	}
	return list
}

// sparse writes a file in GNU's sparse format 1.0. Go's tar reads it and does not
// write it, so header and content are put together here.
func (p *Packer) sparse(ctx context.Context, h *tar.Header, f *os.File, data []extent) error {
	if err := p.tw.Flush(); err != nil {
		return err
	}
	if n := len(data); n == 0 || data[n-1].off+data[n-1].len < h.Size {
		data = append(data, extent{h.Size, 0}) // the hole at the end
	}
	var table strings.Builder
	fmt.Fprintf(&table, "%d\n", len(data))
	stored := int64(0)
	for _, e := range data {
		fmt.Fprintf(&table, "%d\n%d\n", e.off, e.len)
		stored += e.len
	}
	text := padded(table.String())
	stored += int64(len(text))

	recs := maps.Clone(h.PAXRecords)
	if recs == nil {
		recs = map[string]string{}
	}
	maps.Copy(recs, map[string]string{
		"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": h.Name,
		"GNU.sparse.realsize": strconv.FormatInt(h.Size, 10), "size": strconv.FormatInt(stored, 10),
		"uid": strconv.Itoa(h.Uid), "gid": strconv.Itoa(h.Gid),
		"mtime": fmt.Sprintf("%d.%09d", h.ModTime.Unix(), h.ModTime.Nanosecond()),
	})
	if h.ModTime.Unix() < 0 { // whole seconds say it in every reader's way
		recs["mtime"] = strconv.FormatInt(h.ModTime.Unix(), 10)
	}
	var pax strings.Builder
	for _, k := range slices.Sorted(maps.Keys(recs)) {
		pax.WriteString(paxRecord(k, recs[k]))
	}
	p.Entries++
	base := path.Base(h.Name)
	for _, b := range []string{
		block("PaxHeaders.0/"+base, 'x', 0o644, int64(pax.Len())), padded(pax.String()),
		block("GNUSparseFile.0/"+base, tar.TypeReg, h.Mode, min(stored, 1<<33-1)), text,
	} {
		if _, err := io.WriteString(p.w, b); err != nil {
			return err
		}
	}
	for _, e := range data {
		if err := p.content(ctx, p.w, f, h.Name, e.off, e.len); err != nil {
			return err
		}
	}
	_, err := p.w.Write(make([]byte, (blockSize-stored%blockSize)%blockSize))
	return err
}

func padded(s string) string {
	return s + strings.Repeat("\x00", (blockSize-len(s)%blockSize)%blockSize)
}

// paxRecord is "LENGTH KEY=VALUE\n", where the length counts itself.
func paxRecord(k, v string) string {
	size := len(k) + len(v) + 3
	size += len(strconv.Itoa(size))
	rec := fmt.Sprintf("%d %s=%s\n", size, k, v)
	if len(rec) != size { // one more digit
		rec = fmt.Sprintf("%d %s=%s\n", len(rec), k, v)
	}
	return rec
}

// block is a ustar header; what does not fit into it is in the records before it.
func block(name string, typ byte, mode, size int64) string {
	b := make([]byte, blockSize)
	copy(b[:100], name[:min(len(name), 100)])
	octal := func(field []byte, v int64) { copy(field, fmt.Sprintf("%0*o", len(field)-1, v)) }
	octal(b[100:108], mode&0o7777)
	octal(b[108:116], 0)
	octal(b[116:124], 0)
	octal(b[124:136], size)
	octal(b[136:148], 0)
	copy(b[148:156], "        ")
	b[156] = typ
	copy(b[257:265], "ustar\x0000")
	sum := int64(0)
	for _, c := range b {
		sum += int64(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return string(b)
}
