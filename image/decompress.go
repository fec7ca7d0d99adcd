package image

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxWindow is the largest zstd window accepted, what "zstd --long" makes.
const maxWindow = 128 << 20

// compression of a layer, told from its first bytes: the media type of layers
// in the wild is not always right.
type compression string

const (
	plain compression = "tar"
	gzipC compression = "tar+gzip"
	zstdC compression = "tar+zstd"
)

var (
	gzipMagic = []byte{0x1f, 0x8b, 0x08}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

func sniff(head []byte) compression {
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		return gzipC
	case bytes.HasPrefix(head, zstdMagic):
		return zstdC
	// A skippable frame (0x184D2A50..5F) may come before the first real one.
	case len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		return zstdC
	}
	return plain
}

// Decompress returns the uncompressed stream of one that is compressed with gzip or
// zstd, or not at all. The returned function frees what the decompressor holds.
func Decompress(r io.Reader) (io.Reader, func(), error) {
	raw, _, free, err := decompress(r)
	return raw, free, err
}

// decompress returns the uncompressed stream. The returned function frees what
// the decompressor holds.
func decompress(r io.Reader) (io.Reader, compression, func(), error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, plain, nil, err
	}
	c := sniff(head)
	switch c {
	case gzipC:
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, c, nil, damaged(err)
		}
		return z, c, func() { z.Close() }, nil
	case zstdC:
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, c, nil, damaged(err)
		}
		return z, c, z.Close, nil
	}
	return br, c, func() {}, nil
}

// damaged marks an error of a decompressor or of the tar reader, but not one of
// the reader below it that has its own meaning.
func damaged(err error) error {
	var e *Error
	var le *LimitError
	if errors.As(err, &e) || errors.As(err, &le) {
		return err
	}
	return &Error{Kind: ErrArchive, Err: err}
}

// meter counts what passes and stops what exceeds the limits.
type meter struct {
	r     io.Reader
	n     int64
	limit int64 // 0: none
	what  string
	// in, if set, has counted the compressed bytes; ratio bounds n by it.
	in    *meter
	ratio int64
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += int64(n)
	if m.limit > 0 && m.n > m.limit {
		return n, &LimitError{What: m.what, Limit: m.limit, Got: -1}
	}
	if m.in != nil && m.n > ratioFloor && m.n/max(m.in.n, 1) > m.ratio {
		return n, &LimitError{What: "Ratio", Limit: m.ratio, Got: m.n / max(m.in.n, 1)}
	}
	return n, err
}

func (m *meter) String() string { return fmt.Sprintf("offset %d", m.n) }
