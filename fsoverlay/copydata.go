package fsoverlay

import (
	"context"
	"errors"
	"io"

	"golang.org/x/sys/unix"
)

const copyChunk = 16 << 20 // between two looks at the context

// data copies size bytes from src to dst: as a reflink where the file system can,
// else the parts that are not holes.
func (c *treeCopy) data(ctx context.Context, dst, src int, size int64) error {
	if !c.cloneFails {
		err := unix.IoctlFileClone(dst, src)
		if err == nil {
			return nil
		}
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			return err
		}
		c.cloneFails = true
	}
	if err := unix.Ftruncate(dst, size); err != nil {
		return err
	}
	for off := int64(0); off < size; {
		start, err := unix.Seek(src, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // a hole up to the end
		}
		if err != nil {
			start = off // the file system does not know holes
		}
		end := size
		if err == nil {
			if end, err = unix.Seek(src, start, unix.SEEK_HOLE); err != nil {
				end = size
			}
		}
		end = min(end, size)
		if err := copyRange(ctx, dst, src, start, end); err != nil {
			return err
		}
		off = end
	}
	return nil
}

func copyRange(ctx context.Context, dst, src int, off, end int64) error {
	inKernel := true
	var buf []byte
	for off < end {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if inKernel {
			in, out := off, off
			n, err := unix.CopyFileRange(src, &in, dst, &out, int(min(end-off, copyChunk)), 0)
			if err == nil && n > 0 {
				off += int64(n)
				continue
			}
			if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EIO) {
				return err
			}
			inKernel, buf = false, make([]byte, 256<<10)
		}
		n, err := unix.Pread(src, buf[:min(int64(len(buf)), end-off)], off)
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		for b := buf[:n]; len(b) > 0; {
			w, err := unix.Pwrite(dst, b, off)
			if err != nil {
				return err
			}
			b, off = b[w:], off+int64(w)
		}
	}
	return nil
}
