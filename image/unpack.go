package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/rootless-sbx/sbx/internal/archive"
	"github.com/rootless-sbx/sbx/internal/rmtree"
)

// Unpacking a layer, in the order of things:
//
//	Unpack        makes Dest, sets up blob -> decompressor -> digest -> tar, and
//	              loops over the entries; compares the digest with DiffID
//	unpacker.entry  (unpack_entry.go) one entry: name check, whiteouts, type
//	tree.dir      (unpack_path.go) finds or makes the parent directory without
//	              ever leaving the root
//	unpacker.missing  (unpack_implied.go) asks the layers below (below.go) for
//	              a parent that this one does not have
//	unpacker.attrs  (unpack_attr.go) owner, xattrs, mode, times
//	unpacker.finish modes and times of directories, deepest first
//
// Every byte of the layer is hostile. The tree being written is not: nobody else
// has it open. Neither are those below, which were made in the same way.

// Unpacker runs Unpack somewhere, see Config.
type Unpacker func(ctx context.Context, job UnpackJob) (UnpackResult, error)

// UnpackJob is one layer to unpack. It can travel between processes, Blob as a
// descriptor beside the rest.
type UnpackJob struct {
	// Blob is the layer as stored: tar, gzip or zstd. It is read from its
	// start, whatever its offset.
	Blob *os.File `json:"-"`
	// MediaType as the manifest has it; only for messages, since the content
	// itself tells its compression.
	MediaType string
	// DiffID is the digest that the uncompressed layer must have.
	DiffID string
	// Dest is the directory to make.
	Dest string
	// Lowers are the unpacked trees of the layers below, the top one first,
	// without those that an opaque root hides. None: it is the lowest.
	Lowers []string
	// Alone: Lowers are not there yet. If the layer turns out to need them,
	// nothing is made; the result says NeedsLowers.
	Alone bool
	// MapKey is the name of the id map, as given to Acquire.
	MapKey string
	// Single gives every file to the user himself: only one id is mapped.
	Single bool
	// Limits; zero fields mean their defaults.
	Limits Limits

	noOpenat2 bool // for tests: as on a kernel before 5.6
}

// UnpackResult tells what was made.
type UnpackResult struct {
	// Entries of the layer, and the bytes of its files.
	Entries, Bytes int64
	// Notes are what could not be kept, such as device nodes: at most 100.
	Notes []string
	// MoreNotes counts those beyond.
	MoreNotes int
	// OpaqueRoot: the layer hides everything below it.
	OpaqueRoot bool
	// WhiteoutFiles: some whiteouts are files named ".wh.NAME", because the
	// file system takes neither the device node nor the xattr. The native
	// overlay does not understand those, fuse-overlayfs and a copy do.
	WhiteoutFiles bool
	// Implied lists directories that entries need but the layer does not have;
	// they got the attributes of those below: at most 100.
	Implied []string
	// NeedsLowers: what was made depends on UnpackJob.Lowers, and fits those
	// only.
	NeedsLowers bool
}

const maxNotes = 100

type unpacker struct {
	job    UnpackJob
	limits Limits
	tree   *tree
	res    UnpackResult
	below  below
	// hides are paths of directories whose content lower layers lose, true if
	// they lose the directory too. See hidden.
	hides map[string]bool
	// dirs are the directories whose mode and times are set at the end, by inode.
	dirs map[uint64]*dirMeta
	buf  []byte
	// noWhiteout: mknod of a whiteout has failed, do not try again.
	noWhiteout bool
}

// Unpack makes job.Dest from job.Blob, in this process: as root of a user
// namespace whose map the ids of the layer fit, or with Single as anybody. On
// failure it removes what it made.
func Unpack(ctx context.Context, job UnpackJob) (res UnpackResult, err error) {
	u := &unpacker{job: job, limits: job.Limits.withDefaults(), dirs: map[uint64]*dirMeta{}, buf: make([]byte, 256<<10)}
	if n, limit := len(job.Lowers), u.limits.Layers; n > limit {
		return res, &LimitError{What: "Layers", Limit: int64(limit), Got: int64(n)}
	}
	u.below, err = openBelow(job.Lowers, job.noOpenat2)
	if err != nil {
		return res, classify("unpack layer", job.DiffID, err)
	}
	defer u.below.close()
	u.tree, err = newTree(job.Dest, u)
	if err != nil {
		return res, classify("unpack into", job.Dest, err)
	}
	err = u.layer(ctx)
	if err == nil {
		err = u.finish(ctx)
	}
	u.tree.close()
	if err == nil {
		return u.res, nil
	}
	rerr := rmtree.Remove(job.Dest)
	if errors.Is(err, errNeedsLowers) {
		return UnpackResult{NeedsLowers: true}, classify("remove", job.Dest, rerr)
	}
	return u.res, classify("unpack layer", job.DiffID, errors.Join(err, rerr))
}

// unpackHere is the Unpacker that needs no other process.
func unpackHere(ctx context.Context, job UnpackJob) (UnpackResult, error) {
	job.Single = os.Geteuid() != 0
	return Unpack(ctx, job)
}

func (u *unpacker) layer(ctx context.Context) error {
	fi, err := u.job.Blob.Stat()
	if err != nil {
		return err
	}
	in := &meter{r: ctxReader{ctx, io.NewSectionReader(u.job.Blob, 0, fi.Size())}}
	raw, _, free, err := decompress(in)
	if err != nil {
		return u.at(in, err)
	}
	defer free()
	sum := sha256.New()
	out := &meter{r: raw, limit: u.limits.Bytes, what: "Bytes", in: in, ratio: u.limits.Ratio}
	stream := io.TeeReader(out, sum)
	tr := tar.NewReader(stream)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		// Names that leave the root are judged below.
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return u.at(in, err)
		}
		if err := u.count(h.Name); err != nil {
			return err
		}
		if err := u.entry(h, tr); err != nil {
			var se *archive.SourceError
			if errors.As(err, &se) {
				return u.at(in, se.Err)
			}
			return err
		}
	}
	// The digest covers the padding behind the archive's end.
	if _, err := io.CopyBuffer(io.Discard, stream, u.buf); err != nil {
		return u.at(in, err)
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != u.job.DiffID {
		return &Error{Kind: ErrDigest, Op: "unpack layer", Subject: u.job.DiffID, Msg: "uncompressed it has " + got}
	}
	return nil
}

// at says where in the blob reading failed.
func (u *unpacker) at(in *meter, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var le *LimitError
	if errors.As(err, &le) {
		return err
	}
	return &Error{Kind: ErrArchive, Op: "unpack layer", Subject: u.job.DiffID, Err: err,
		Msg: fmt.Sprintf("near byte %d of the blob", in.n)}
}

// count one more file or directory.
func (u *unpacker) count(path string) error {
	u.res.Entries++
	if u.res.Entries > u.limits.Entries {
		return &LimitError{What: "Entries", Limit: u.limits.Entries, Got: -1, Path: path}
	}
	return nil
}

func (u *unpacker) note(format string, args ...any) {
	if len(u.res.Notes) >= maxNotes {
		u.res.MoreNotes++
		return
	}
	u.res.Notes = append(u.res.Notes, fmt.Sprintf(format, args...))
}

// bad is a layer that cannot be unpacked as it is.
func bad(path, format string, args ...any) error {
	return &Error{Kind: ErrArchive, Op: "unpack", Subject: fmt.Sprintf("%q", path), Msg: fmt.Sprintf(format, args...)}
}

// cleanName turns an entry's name into a path relative to the root, without
// "." and "..": empty for the root itself. A name that leaves the root is
// refused, as Docker does; an absolute one starts at the root.
func (u *unpacker) cleanName(name string) (string, error) {
	if len(name) > u.limits.PathLen {
		return "", &LimitError{What: "PathLen", Limit: int64(u.limits.PathLen), Got: int64(len(name)), Path: name[:min(64, len(name))] + "..."}
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", bad(name, "its name contains a zero byte")
	}
	parts := make([]string, 0, 8)
	abs := strings.HasPrefix(name, "/")
	for p := range strings.SplitSeq(name, "/") {
		switch p {
		case "", ".":
		case "..":
			if len(parts) > 0 {
				parts = parts[:len(parts)-1]
			} else if !abs {
				return "", &Error{Kind: ErrBreakout, Op: "unpack", Subject: fmt.Sprintf("%q", name)}
			}
		default:
			parts = append(parts, p)
		}
	}
	if len(parts) > u.limits.Depth {
		return "", &LimitError{What: "Depth", Limit: int64(u.limits.Depth), Got: int64(len(parts)), Path: name}
	}
	return strings.Join(parts, "/"), nil
}
