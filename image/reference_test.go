package image

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
)

func TestParseReference(t *testing.T) {
	dig := "sha256:" + strings.Repeat("a", 64)
	for _, tt := range []struct{ in, full, short string }{
		{"alpine", "docker.io/library/alpine:latest", "alpine:latest"},
		{"alpine:3.19", "docker.io/library/alpine:3.19", "alpine:3.19"},
		{"library/alpine", "docker.io/library/alpine:latest", "alpine:latest"},
		{"docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"},
		{"index.docker.io/library/alpine", "docker.io/library/alpine:latest", "alpine:latest"},
		{"org/app", "docker.io/org/app:latest", "org/app:latest"},
		{"org/team/app:v1", "docker.io/org/team/app:v1", "org/team/app:v1"},
		{"ghcr.io/org/app:v1", "ghcr.io/org/app:v1", "ghcr.io/org/app:v1"},
		{"localhost/app", "localhost/app:latest", "localhost/app:latest"},
		{"localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app:latest"},
		{"127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c"},
		{"[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"},
		{"alpine@" + dig, "docker.io/library/alpine@" + dig, "alpine@" + dig},
		{"alpine:3@" + dig, "docker.io/library/alpine:3@" + dig, "alpine:3@" + dig},
		{"a__b-c/d.e--f", "docker.io/a__b-c/d.e--f:latest", "a__b-c/d.e--f:latest"},
		{"demo", "demo", "demo"},
		{"demo:latest", "docker.io/library/demo:latest", "demo:latest"},
		{"docker.io/library/a.b/c", "docker.io/library/a.b/c:latest", "library/a.b/c:latest"},
		{"Host/app", "Host/app:latest", "Host/app:latest"},
	} {
		r, err := ParseReference(tt.in)
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		if r.String() != tt.full || r.Familiar() != tt.short {
			t.Errorf("%q: got %q and %q, want %q and %q", tt.in, r, r.Familiar(), tt.full, tt.short)
		}
	}
	for _, in := range []string{"", "Alpine", "alpine:", "alpine:-x", "a//b", "/a", "a/", "http://x/y", "a b", "alpine@sha256:12",
		"alpine@md5:" + strings.Repeat("a", 32), strings.Repeat("a", 64), strings.Repeat("a/", 130) + "a", "x.y/", "a:b/c:d", "-a", "a..b", "..", "a/../b",
		"alpine:" + strings.Repeat("x", 129), "x.y:99999999/a", "é", "alpine@sha512:" + strings.Repeat("a", 128)} {
		if r, err := ParseReference(in); !errors.Is(err, ErrReference) {
			t.Errorf("%q: got %v, %v", in, r, err)
		}
	}
}

func FuzzReference(f *testing.F) {
	for _, s := range []string{"alpine", "demo", "a.b/c:d", "localhost:1/x@sha256:" + strings.Repeat("0", 64), "[::1]:5/x", "A/b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			if !errors.Is(err, ErrReference) {
				t.Fatalf("%q: untyped error %v", s, err)
			}
			return
		}
		for _, again := range []string{r.String(), r.Familiar()} {
			r2, err := ParseReference(again)
			if err != nil || r2 != r {
				t.Fatalf("%q gives %+v, written as %q it gives %+v, %v", s, r, again, r2, err)
			}
		}
		if strings.Contains(r.Path, "..") || strings.HasPrefix(r.Path, "/") {
			t.Fatalf("%q: path %q", s, r.Path)
		}
		if r.IsDemo() {
			return
		}
		if _, err := r.remote(false); err != nil {
			var bad *name.ErrBadName
			if !errors.As(err, &bad) && !errors.Is(err, ErrReference) {
				t.Fatalf("%q: %v", s, err)
			}
		}
	})
}

func TestPlatforms(t *testing.T) {
	for _, tt := range []struct {
		want, have string
		ok         bool
	}{
		{"linux/amd64", "linux/amd64", true},
		{"linux/x86_64", "linux/amd64", true},
		{"amd64", "linux/amd64/v1", true},
		{"linux/amd64", "linux/amd64/v3", false},
		{"linux/amd64/v3", "linux/amd64", true},
		{"linux/arm64", "linux/arm64/v8", true},
		{"linux/arm64", "linux/amd64", false},
		{"linux/arm/v7", "linux/arm/v6", true},
		{"linux/arm/v6", "linux/arm/v7", false},
		{"linux/arm", "linux/arm/v7", true},
		{"linux/ppc64le", "linux/ppc64le", true},
		{"windows/amd64", "linux/amd64", false},
	} {
		w, err := ParsePlatform(tt.want)
		if err != nil {
			t.Fatal(err)
		}
		h, err := ParsePlatform(tt.have)
		if err != nil {
			t.Fatal(err)
		}
		if got := score(w, h) > 0; got != tt.ok {
			t.Errorf("%s from %s: %v", tt.want, tt.have, got)
		}
	}
	for _, s := range []string{"a/b/c/d", "linux/", "/amd64", "linux/am d64"} {
		if _, err := ParsePlatform(s); !errors.Is(err, ErrPlatform) {
			t.Errorf("%q: %v", s, err)
		}
	}
}
