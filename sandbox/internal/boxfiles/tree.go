package boxfiles

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/internal/archive"
	"github.com/rootless-sbx/sbx/internal/inroot"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"golang.org/x/sys/unix"
)

// Tree is the tree of a sandbox.
type Tree struct {
	root int // O_PATH
}

// Close lets it go.
func (t *Tree) Close() error { return unix.Close(t.root) }

// Handle answers a request; false if it is about something else.
func (t *Tree) Handle(ctx context.Context, m *wire.Message) (body any, ok bool, err error) {
	switch m.Type {
	case proto.MsgStatPath:
		var req proto.StatPath
		if err = m.Decode(&req); err == nil {
			body, err = t.stat(string(req.Path), req.Follow)
		}
	case proto.MsgPackPath:
		body, err = t.pack(ctx, m)
	case proto.MsgUnpackPath:
		body, err = t.unpack(ctx, m)
	default:
		return nil, false, nil
	}
	if err != nil {
		err = archive.WireError(err)
	}
	return body, true, err
}

// stat follows a path as a program in the sandbox would.
func (t *Tree) stat(p string, follow bool) (*proto.PathStat, error) {
	if strings.IndexByte(p, 0) >= 0 || len(p) > unix.PathMax {
		return nil, unix.ENAMETOOLONG
	}
	// What ends in a slash or a dot is wanted as a directory.
	dir := strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") || p == "." || p == ""
	var names []string
	todo := inroot.Split(p)
	res := &proto.PathStat{Exists: true, Mode: unix.S_IFDIR}
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		if name == ".." {
			names = names[:max(0, len(names)-1)]
			res.Mode = unix.S_IFDIR
			continue
		}
		st, link, err := t.look(names, name)
		last := len(todo) == 0
		switch {
		case errors.Is(err, fs.ErrNotExist) && last:
			*res = proto.PathStat{Path: abs(append(names, name))}
			return res, nil
		case err != nil:
			return nil, err
		case link != "" && (!last || follow || dir):
			if links++; links > inroot.MaxLinks {
				return nil, unix.ELOOP
			}
			if path.IsAbs(link) {
				names = nil
			}
			if todo = append(inroot.Split(link), todo...); len(todo) > 2*inroot.MaxDepth {
				return nil, unix.ENAMETOOLONG
			}
			res.Mode = unix.S_IFDIR // if nothing follows it is "/"
			continue
		case !last && st.Mode&unix.S_IFMT != unix.S_IFDIR:
			return nil, unix.ENOTDIR
		}
		names = append(names, name)
		if len(names) > inroot.MaxDepth {
			return nil, unix.ENAMETOOLONG
		}
		res.Mode, res.Size, res.MTime, res.Link = st.Mode, st.Size, time.Unix(st.Mtim.Unix()), []byte(link)
	}
	if dir && res.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, unix.ENOTDIR
	}
	res.Path = abs(names)
	return res, nil
}

func abs(names []string) []byte { return []byte("/" + strings.Join(names, "/")) }

// look says what name is in the directory of names, which have no links in them.
func (t *Tree) look(names []string, name string) (st unix.Stat_t, link string, err error) {
	dir, err := inroot.Open(t.root, strings.Join(names, "/"), inroot.Lookup{NoLinks: true})
	if err != nil {
		return st, "", err
	}
	defer unix.Close(dir)
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return st, "", err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		link, err = inroot.ReadlinkAt(dir, name)
	}
	return st, link, err
}

func (t *Tree) pack(ctx context.Context, m *wire.Message) (any, error) {
	var req proto.PackPath
	if err := m.Decode(&req); err != nil {
		return nil, err
	}
	out, err := m.Take("out")
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := path.Clean("/" + string(req.Path))
	parent, err := inroot.Open(t.root, path.Dir(p), inroot.Lookup{NoLinks: true})
	if err != nil {
		return nil, err
	}
	defer unix.Close(parent)
	name := path.Base(p)
	if name == "/" {
		name = "."
	}
	return Pack(ctx, out, parent, name, string(req.As))
}

// Pack writes the tree of name in the directory parent.
func Pack(ctx context.Context, out io.Writer, parent int, name, as string) (archive.Stats, error) {
	b := bufio.NewWriterSize(out, 256<<10)
	p := archive.NewPacker(b)
	p.Sparse = true
	v := fsoverlay.DirView(parent)
	defer v.Close()
	err := v.Pack(ctx, p, name, as)
	if err == nil {
		err = p.Close()
	}
	return p.Stats, errors.Join(err, b.Flush())
}

func (t *Tree) unpack(ctx context.Context, m *wire.Message) (any, error) {
	var req proto.UnpackPath
	if err := m.Decode(&req); err != nil {
		return nil, err
	}
	in, err := m.Take("in")
	if err != nil {
		return nil, err
	}
	defer in.Close()
	dir := path.Clean("/" + string(req.Dir))
	if fsoverlay.KernelDir(dir) {
		return nil, &wire.Error{Code: proto.CodeKernelDir, Msg: fmt.Sprintf("%s is the kernel's: nothing can be copied there", dir)}
	}
	// The directory is one without links; in it they are followed as the sandbox would.
	fd, err := inroot.Open(t.root, dir, inroot.Lookup{NoLinks: true})
	if err != nil {
		return nil, err
	}
	unix.Close(fd)
	single := singleID()
	res, err := archive.Unpack(ctx, bufio.NewReaderSize(in, 256<<10), archive.Target{
		Root: t.root, Dir: dir, FollowLinks: true, Owners: req.Owners, NoChown: single,
	})
	if req.Owners && single {
		res.Note(dir, "owners are not kept: the sandbox has one id only")
	}
	return res, err
}

// singleID says that only one id is mapped here.
func singleID() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(b))
	return err == nil && len(f) == 3 && f[2] == "1"
}
