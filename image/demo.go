package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// fileStamp tells cheaply whether a file is the one seen before.
type fileStamp struct {
	Size  int64  `json:"size"`
	Mtime int64  `json:"mtime"`
	Ino   uint64 `json:"ino"`
	Dev   uint64 `json:"dev"`
}

// Demo returns the image "demo", whose only program is the static binary given,
// as /bin/sbx-demo, and makes it first if it is missing or the binary has changed.
// The same binary always gives the same image.
func (s *Store) Demo(ctx context.Context, binary string) (*Image, error) {
	f, err := os.Open(binary)
	if err != nil {
		return nil, fmt.Errorf("make the demo image: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("make the demo image: %w", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("make the demo image: %s is not a regular file", binary)
	}
	stamp := fileStamp{Size: fi.Size(), Mtime: fi.ModTime().UnixNano(), Ino: st.Ino, Dev: st.Dev}
	if img, err := s.demoFor(ctx, stamp); img != nil || err != nil {
		return img, err
	}
	lock, err := waitLock(ctx, s.lockPath("demo"), unix.LOCK_EX)
	if err != nil {
		return nil, classify("make the demo image in", s.root, err)
	}
	defer lock.discard()
	if img, err := s.demoFor(ctx, stamp); img != nil || err != nil {
		return img, err
	}
	if err := s.makeDemo(ctx, f, stamp); err != nil {
		return nil, classify("make the demo image of", binary, err)
	}
	return s.Get(ctx, DemoName)
}

// demoFor returns the demo image if it was made from that file.
func (s *Store) demoFor(ctx context.Context, stamp fileStamp) (*Image, error) {
	x, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	rec := x.Images[x.Refs[DemoName]]
	if rec == nil || rec.Binary == nil || *rec.Binary != stamp {
		return nil, nil
	}
	for _, l := range rec.Layers {
		if !s.hasBlob(l.Descriptor) {
			return nil, nil
		}
	}
	img, err := s.Get(ctx, DemoName)
	if errors.Is(err, ErrDigest) {
		return nil, nil // damaged: make it anew
	}
	return img, err
}

func (s *Store) makeDemo(ctx context.Context, f *os.File, stamp fileStamp) (err error) {
	sess, err := s.newSession("demo")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sess.close(ctx)) }()
	pr, pw := io.Pipe()
	written := make(chan struct{})
	go func() {
		defer close(written)
		pw.CloseWithError(demoLayer(pw, f, stamp.Size))
	}()
	layer, err := sess.writeBlob(ctx, Descriptor{MediaType: mtOCILayer, Size: stamp.Size + 1<<20}, pr)
	pr.CloseWithError(errors.New("layer was not stored"))
	<-written
	if err != nil {
		return err
	}
	config, err := json.Marshal(demoConfig(layer.Digest))
	if err != nil {
		return err
	}
	rec, err := sess.assemble(ctx, config, []Layer{{Descriptor: layer, DiffID: layer.Digest}})
	if err != nil {
		return err
	}
	rec.Binary = &stamp
	old := ""
	if err := s.update(ctx, func(x *index) error {
		old = x.Refs[DemoName]
		x.enter(rec, DemoName)
		return nil
	}); err != nil {
		return err
	}
	if old == "" || old == rec.ID {
		return nil
	}
	err = s.change(ctx, func(x *index) error {
		r := x.Images[old]
		if r == nil || len(x.names(old)) > 0 {
			return nil
		}
		_, err := s.deleteRecord(ctx, x, r)
		return err
	})
	if errors.Is(err, ErrInUse) {
		s.log.Debug("the former demo image is in use and stays", "id", old)
		return nil
	}
	return err
}

// assemble stores a configuration and a manifest for layers already stored.
func (x *session) assemble(ctx context.Context, config []byte, layers []Layer) (*record, error) {
	cfg, err := x.writeBytes(ctx, mtOCIConfig, config)
	if err != nil {
		return nil, err
	}
	type manifest struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        Descriptor   `json:"config"`
		Layers        []Descriptor `json:"layers"`
	}
	m := manifest{SchemaVersion: 2, MediaType: mtOCIManifest, Config: cfg, Layers: []Descriptor{}}
	for _, l := range layers {
		m.Layers = append(m.Layers, l.Descriptor)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	md, err := x.writeBytes(ctx, mtOCIManifest, b)
	if err != nil {
		return nil, err
	}
	rec := &record{ID: cfg.Digest, Manifest: md, Config: cfg, Layers: layers, Added: time.Now().UTC()}
	if _, err := rec.setConfig(config); err != nil {
		return nil, err
	}
	return rec, nil
}

// demoTime is the time of everything in the demo image.
var demoTime = time.Unix(0, 0).UTC()

func demoConfig(diffID string) *v1.ConfigFile {
	h, _ := v1.NewHash(diffID) // computed just now
	return &v1.ConfigFile{
		Architecture: runtime.GOARCH, OS: "linux", Created: v1.Time{Time: demoTime},
		RootFS:  v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{h}},
		History: []v1.History{{Created: v1.Time{Time: demoTime}, CreatedBy: "sbx", Comment: "demo image"}},
		Config: v1.Config{
			Entrypoint:   []string{"/bin/sbx-demo"},
			Env:          []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			ExposedPorts: map[string]struct{}{"80/tcp": {}},
			WorkingDir:   "/",
		},
	}
}

// demoLayer writes the layer's archive. Sizes and order are fixed.
func demoLayer(w io.Writer, binary io.Reader, size int64) error {
	tw := tar.NewWriter(w)
	put := func(name string, mode int64, content io.Reader, size int64) error {
		h := &tar.Header{Name: name, Mode: mode, ModTime: demoTime, Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Size: size}
		if content == nil {
			h.Typeflag = tar.TypeDir
		}
		if err := tw.WriteHeader(h); err != nil || content == nil {
			return err
		}
		_, err := io.CopyN(tw, content, size)
		return err
	}
	file := func(name, text string) error {
		return put(name, 0o644, bytes.NewReader([]byte(text)), int64(len(text)))
	}
	dir := func(name string, mode int64) error { return put(name, mode, nil, 0) }
	for _, step := range []func() error{
		func() error { return dir("bin/", 0o755) },
		func() error { return put("bin/sbx-demo", 0o755, binary, size) },
		func() error { return dir("dev/", 0o755) },
		func() error { return dir("etc/", 0o755) },
		func() error { return file("etc/group", "root:x:0:\nnogroup:x:65534:\n") },
		func() error {
			return file("etc/passwd", "root:x:0:0:root:/root:/bin/sbx-demo\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n")
		},
		func() error { return dir("etc/ssl/", 0o755) },
		func() error { return dir("etc/ssl/certs/", 0o755) },
		func() error { return dir("proc/", 0o755) },
		func() error { return dir("root/", 0o700) },
		func() error { return dir("sys/", 0o755) },
		func() error { return dir("tmp/", 0o1777) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return tw.Close()
}
