package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

func validDigest(d string) bool {
	h, ok := strings.CutPrefix(d, "sha256:")
	return ok && isHexID(h)
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// blobPath is where a blob lies. The digest must have been checked.
func (s *Store) blobPath(digest string) string {
	return filepath.Join(s.root, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:"))
}

func (s *Store) hasBlob(d Descriptor) bool {
	fi, err := os.Stat(s.blobPath(d.Digest))
	return err == nil && fi.Mode().IsRegular() && fi.Size() == d.Size
}

// readBlob reads a small blob and verifies it.
func (s *Store) readBlob(digest string, limit int64) ([]byte, error) {
	f, err := os.Open(s.blobPath(digest))
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", digest, err)
	}
	defer f.Close()
	b, err := readLimited(f, limit)
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", digest, err)
	}
	if got := digestOf(b); got != digest {
		return nil, &Error{Kind: ErrDigest, Op: "read blob", Subject: digest, Msg: "its content has " + got,
			Fix: "the disk has damaged it: remove the image and pull it again"}
	}
	return b, nil
}

func readLimited(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = &LimitError{What: "of bytes", Limit: limit, Got: -1}
	}
	return b, err
}

// writeBlob stores what r yields. If want.Digest is set, content and size must
// match it; otherwise want.Size is the most that is accepted and the digest is
// computed. The blob appears under its name complete, verified and on disk, or
// not at all. The session must have pinned a digest known before; one that is
// computed gets pinned here.
func (x *session) writeBlob(ctx context.Context, want Descriptor, r io.Reader) (Descriptor, error) {
	name := want.Digest
	if name == "" {
		name = "blob"
	}
	tmp := x.path("blob-" + randomName())
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return want, classify("store", name, err)
	}
	done := false
	defer func() {
		if !done {
			f.Close()
			os.Remove(tmp) // else the session's end does it
		}
	}()
	sum := sha256.New()
	n, err := copyContext(ctx, io.MultiWriter(f, sum), io.LimitReader(r, want.Size+1))
	if err != nil {
		return want, classify("store", name, err)
	}
	got := "sha256:" + hex.EncodeToString(sum.Sum(nil))
	switch {
	case want.Digest == "" && n > want.Size:
		return want, &LimitError{What: "Bytes", Limit: want.Size, Got: -1}
	case want.Digest != "" && n < want.Size:
		return want, &Error{Kind: ErrDigest, Op: "store", Subject: name, Err: io.ErrUnexpectedEOF,
			Msg: fmt.Sprintf("it ends after %d of %d bytes", n, want.Size)}
	case want.Digest != "" && n > want.Size:
		return want, &Error{Kind: ErrDigest, Op: "store", Subject: name, Msg: fmt.Sprintf("it is longer than its %d bytes", want.Size)}
	case want.Digest != "" && got != want.Digest:
		return want, &Error{Kind: ErrDigest, Op: "store", Subject: name, Msg: "what came has " + got}
	}
	if err := f.Sync(); err != nil {
		return want, classify("store", name, err)
	}
	if err := f.Close(); err != nil {
		return want, classify("store", name, err)
	}
	if want.Digest == "" {
		want.Digest = got
		if err := x.pin(ctx, got); err != nil {
			return want, err
		}
	}
	want.Size = n
	dst := x.s.blobPath(got)
	if err := os.Rename(tmp, dst); err != nil {
		return want, classify("store", name, err)
	}
	done = true
	return want, classify("store", name, syncDir(filepath.Dir(dst)))
}

// writeBytes stores a small blob.
func (x *session) writeBytes(ctx context.Context, mediaType string, b []byte) (Descriptor, error) {
	d := Descriptor{MediaType: mediaType, Digest: digestOf(b), Size: int64(len(b))}
	if err := x.pin(ctx, d.Digest); err != nil {
		return d, err
	}
	if x.s.hasBlob(d) {
		return d, nil
	}
	return x.writeBlob(ctx, d, strings.NewReader(string(b)))
}

// copyContext is io.Copy that ends with its context.
func copyContext(ctx context.Context, w io.Writer, r io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{w}, ctxReader{ctx, r}, make([]byte, 128<<10))
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// verifyBlob reads a whole blob and drops it if it is damaged, so that the next
// pull fetches it again. It reports whether it was sound.
func (s *Store) verifyBlob(ctx context.Context, d Descriptor) (bool, error) {
	f, err := os.Open(s.blobPath(d.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := copyContext(ctx, sum, f); err != nil {
		return false, err
	}
	if "sha256:"+hex.EncodeToString(sum.Sum(nil)) == d.Digest {
		return true, nil
	}
	return false, os.Remove(s.blobPath(d.Digest))
}
