package image

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func layerOf(tar []byte, n int64) func(context.Context, io.Writer) (int64, error) {
	return func(_ context.Context, w io.Writer) (int64, error) {
		_, err := w.Write(tar)
		return n, err
	}
}

func TestCommit(t *testing.T) {
	s := openStore(t, Config{})
	base := buildImage(t, Platform{OS: "linux", Architecture: "amd64"}, asGzip, tarOf(t, file("a", "1"), file("gone", "1")))
	loaded, err := s.Load(t.Context(), layoutOf(t, []string{"base:1"}, base), LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	layer := tarOf(t, file("a", "2"), file(".wh.gone", ""))
	img, err := s.Commit(t.Context(), CommitOptions{Base: loaded[0].ID, Layer: layerOf(layer, 2), Name: "made",
		Config: v1.Config{Cmd: []string{"x"}}, Author: "me", Comment: "why", CreatedBy: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(img.Names, []string{"made:latest"}) || len(img.Layers) != 2 || img.Config.Author != "me" || img.Config.Config.Cmd[0] != "x" {
		t.Errorf("%+v", img)
	}
	if h := img.Config.History; len(h) == 0 || h[len(h)-1].Comment != "why" || h[len(h)-1].EmptyLayer {
		t.Errorf("history %+v", h)
	}
	if img.Platform.Architecture != "amd64" {
		t.Errorf("platform %v", img.Platform)
	}
	lease, err := s.Acquire(t.Context(), img, "single")
	if err != nil {
		t.Fatal(err)
	}
	if got := names(t, lease.Layers[0]); !slices.Contains(got, "a") || len(lease.Layers) != 2 {
		t.Errorf("layers %v, the top one has %v", lease.Layers, got)
	}
	if err := lease.Close(); err != nil {
		t.Fatal(err)
	}
	// Nothing has changed: no layer is added.
	again, err := s.Commit(t.Context(), CommitOptions{Base: img.ID, Layer: layerOf(tarOf(t), 0), Config: v1.Config{Cmd: []string{"y"}}})
	if err != nil {
		t.Fatal(err)
	}
	if h := again.Config.History; len(again.Layers) != 2 || !h[len(h)-1].EmptyLayer || len(again.Names) != 0 {
		t.Errorf("%+v", again)
	}
	// From nothing.
	if img, err = s.Commit(t.Context(), CommitOptions{Layer: layerOf(layer, 1)}); err != nil || len(img.Layers) != 1 {
		t.Errorf("%+v, %v", img, err)
	}
	checkConsistent(t, s.root)
}

// What fails leaves no image and no blob.
func TestCommitFails(t *testing.T) {
	s := openStore(t, Config{Limits: Limits{Bytes: 1 << 20}})
	files := func() []string {
		var all []string
		for _, d := range []string{"blobs/sha256", "tmp", "layers"} {
			all = append(all, names(t, filepath.Join(s.root, d))...)
		}
		return all
	}
	boom := errors.New("boom")
	ctx, cancel := context.WithCancelCause(t.Context())
	var le *LimitError
	for name, c := range map[string]struct {
		o    CommitOptions
		want func(error) bool
	}{
		"layer": {CommitOptions{Layer: func(_ context.Context, w io.Writer) (int64, error) {
			io.WriteString(w, strings.Repeat("x", 100000))
			return 0, boom
		}}, func(err error) bool { return errors.Is(err, boom) }},
		"disk": {CommitOptions{Layer: func(context.Context, io.Writer) (int64, error) {
			return 0, syscall.ENOSPC
		}}, func(err error) bool { return errors.Is(err, ErrNoSpace) }},
		"too large": {CommitOptions{Layer: layerOf(make([]byte, 2<<20), 1)}, func(err error) bool { return errors.As(err, &le) }},
		"name":      {CommitOptions{Name: "Not A Name", Layer: layerOf(nil, 0)}, func(err error) bool { return errors.Is(err, ErrReference) }},
		"base":      {CommitOptions{Base: "nothing", Layer: layerOf(nil, 0)}, func(err error) bool { return errors.Is(err, ErrNotFound) }},
		"cancelled": {CommitOptions{Layer: func(_ context.Context, w io.Writer) (int64, error) {
			cancel(boom)
			_, err := w.Write(make([]byte, 1000))
			return 1, err
		}}, func(err error) bool { return errors.Is(err, boom) }},
	} {
		if img, err := s.Commit(ctx, c.o); img != nil || !c.want(err) {
			t.Errorf("%s: %v, %v", name, img, err)
		}
		ctx, cancel = context.WithCancelCause(t.Context())
		if left := files(); len(left) > 0 {
			t.Errorf("%s: left %v", name, left)
		}
	}
	cancel(nil)
	checkConsistent(t, s.root)
}
