package image

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// core lets go-containerregistry push a testImage.
type core struct{ i testImage }

func (c core) RawConfigFile() ([]byte, error)      { return c.i.config, nil }
func (c core) RawManifest() ([]byte, error)        { return c.i.manifest, nil }
func (c core) MediaType() (types.MediaType, error) { return types.MediaType(c.i.media), nil }
func (c core) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	for _, l := range c.i.layers {
		if digestOf(l) == h.String() {
			return coreLayer{h, l}, nil
		}
	}
	return nil, fmt.Errorf("no layer %s", h)
}

type coreLayer struct {
	h v1.Hash
	b []byte
}

func (l coreLayer) Digest() (v1.Hash, error) { return l.h, nil }
func (l coreLayer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(string(l.b))), nil
}
func (l coreLayer) Size() (int64, error)                { return int64(len(l.b)), nil }
func (l coreLayer) MediaType() (types.MediaType, error) { return types.OCILayer, nil }

func asV1(t testing.TB, i testImage) v1.Image {
	t.Helper()
	img, err := partial.CompressedToImage(core{i})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func push(t testing.TB, ref string, i testImage, opts ...remote.Option) {
	t.Helper()
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, asV1(t, i), append(opts, noKeepAlive())...); err != nil {
		t.Fatalf("push %s: %v", ref, err)
	}
}

func pushIndex(t testing.TB, ref string, imgs map[string]testImage, opts ...remote.Option) {
	t.Helper()
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for p, i := range imgs {
		plat, err := v1.ParsePlatform(p)
		if err != nil {
			t.Fatal(err)
		}
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: asV1(t, i), Descriptor: v1.Descriptor{Platform: plat}})
	}
	if err := remote.WriteIndex(r, idx, append(opts, noKeepAlive())...); err != nil {
		t.Fatalf("push %s: %v", ref, err)
	}
}

func noKeepAlive() remote.Option {
	return remote.WithTransport(&http.Transport{DisableKeepAlives: true})
}

// dockerRegistry runs Debian's docker-registry on a loopback port; users as
// "name:password" make it want a log-in.
func dockerRegistry(t testing.TB, user, password string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	d := t.TempDir()
	conf := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s/data}}\nhttp: {addr: %q}\n", d, addr)
	if user != "" {
		ht := runTool(t, "htpasswd", "-nbB", "-C", "4", user, password)
		if err := os.WriteFile(d+"/htpasswd", ht, 0o600); err != nil {
			t.Fatal(err)
		}
		conf += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s/htpasswd}}\n", d)
	}
	if err := os.WriteFile(d+"/config.yml", []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", d+"/config.yml")
	out, err := os.Create(d + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// Pdeathsig is of the thread that starts it.
	started := make(chan error)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		started <- cmd.Start()
		<-stop
	})
	if err := <-started; err != nil {
		close(stop)
		t.Fatalf("docker-registry (Debian package docker-registry): %v", err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		close(stop)
		wg.Wait()
	})
	for range 200 {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return addr
		}
		time.Sleep(20 * time.Millisecond)
	}
	log, _ := os.ReadFile(d + "/log")
	t.Fatalf("docker-registry does not listen: %s", log)
	return ""
}

func sampleTars(t testing.TB) [][]byte {
	big := make([]byte, 3<<20)
	for i := range big {
		big[i] = byte(i * i >> 7)
	}
	return [][]byte{
		tarOf(t, dir("bin", 0o755), file("bin/sh", "shell").mode(0o755), dir("etc", 0o755), file("etc/old", "o"), file("etc/passwd", "root:x:0:0::/:/bin/sh\n")),
		tarOf(t, dir("etc", 0o755), file("etc/.wh.old", ""), file("etc/new", "n").own(1000, 1000)),
		tarOf(t, file("big", string(big))),
	}
}

func TestPullFromDockerRegistry(t *testing.T) {
	addr := dockerRegistry(t, "", "")
	tars := sampleTars(t)
	amd, arm := Platform{OS: "linux", Architecture: "amd64"}, Platform{OS: "linux", Architecture: "arm64"}
	imgs := map[string]testImage{
		"gzip": buildImage(t, DefaultPlatform(), asGzip, tars...),
		"zstd": buildImage(t, DefaultPlatform(), asZstd, tars...),
		"tar":  buildImage(t, DefaultPlatform(), asPlain, tars...),
	}
	ctx := context.Background()
	s := openStore(t, Config{Unpack: mappedUnpacker(false), Remover: mappedRemover})
	for tag, i := range imgs {
		ref := addr + "/org/app:" + tag
		push(t, ref, i)
		var mu sync.Mutex
		phases := map[Phase]int{}
		img, err := s.Pull(ctx, ref, PullOptions{Progress: func(e Event) { mu.Lock(); phases[e.Phase]++; mu.Unlock() }})
		if err != nil {
			t.Fatal(err)
		}
		if img.ID != i.id || img.Manifest.Digest != i.digest() || len(img.Names) == 0 || img.Config.Config.Cmd[0] != "/bin/true" {
			t.Errorf("%s: image %+v", tag, img)
		}
		if phases[PhaseResolve] != 1 || phases[PhaseDone]+phases[PhaseExists] < 4 {
			t.Errorf("%s: phases %v", tag, phases)
		}
		lease, err := s.Acquire(ctx, img, "mapped")
		if err != nil {
			t.Fatal(err)
		}
		if len(lease.Layers) != 3 || content(t, filepath.Join(lease.Layers[2], "bin/sh")) != "shell" {
			t.Errorf("%s: layers %v", tag, lease.Layers)
		}
		if st := stat(t, filepath.Join(lease.Layers[1], "etc/new")); int(st.Uid) != subID()+999 {
			t.Errorf("%s: etc/new belongs to %d", tag, st.Uid)
		}
		if err := lease.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// Three compressions of one image have one id; the manifest is the last's.
	multi := map[string]testImage{"linux/amd64": buildImage(t, amd, asGzip, tars[:1]...), "linux/arm64": buildImage(t, arm, asGzip, tars[:2]...)}
	pushIndex(t, addr+"/org/multi", multi)
	for p, want := range multi {
		img, err := s.Pull(ctx, addr+"/org/multi", PullOptions{Platform: p})
		if err != nil {
			t.Fatal(err)
		}
		if img.ID != want.id || img.Platform.String() != p {
			t.Errorf("%s: got %s for %s", p, img.ID, img.Platform)
		}
		if len(img.Digests) != 1 || !strings.Contains(img.Digests[0], addr+"/org/multi@sha256:") {
			t.Errorf("digests %v", img.Digests)
		}
		byDigest, err := s.Get(ctx, img.Digests[0])
		if err != nil || byDigest.ID != img.ID {
			t.Errorf("get %s: %v", img.Digests[0], err)
		}
	}
	_, err := s.Pull(ctx, addr+"/org/multi", PullOptions{Platform: "linux/riscv64"})
	if !errors.Is(err, ErrPlatform) || !strings.Contains(err.Error(), "linux/amd64, linux/arm64") {
		t.Errorf("missing platform: %v", err)
	}
	img, err := s.Pull(ctx, addr+"/org/app@"+imgs["zstd"].digest(), PullOptions{})
	if err != nil || img.Manifest.Digest != imgs["zstd"].digest() {
		t.Errorf("by digest: %v", err)
	}
	if _, err := s.Pull(ctx, addr+"/org/app:none", PullOptions{}); !errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnauthorized) {
		t.Errorf("unknown tag: %v", err)
	}
	if _, err := s.Pull(ctx, addr+"/org/none", PullOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown repository: %v", err)
	}
	if _, err := s.Prune(ctx, nil); err != nil {
		t.Fatal(err)
	}
	checkConsistent(t, s.root)
	if left := names(t, filepath.Join(s.root, "blobs/sha256")); len(left) > 0 {
		t.Errorf("after pruning everything: blobs %v", left)
	}
}

func TestPullWithPassword(t *testing.T) {
	addr := dockerRegistry(t, "user", "secret")
	i := buildImage(t, DefaultPlatform(), asGzip, sampleTars(t)[0])
	push(t, addr+"/private", i, remote.WithAuth(&authn.Basic{Username: "user", Password: "secret"}))
	ctx := context.Background()
	none := openStore(t, Config{Keychain: authn.NewMultiKeychain()})
	_, err := none.Pull(ctx, addr+"/private", PullOptions{})
	var e *Error
	if !errors.Is(err, ErrNotFound) || !errors.Is(err, ErrUnauthorized) || !errors.As(err, &e) || !strings.Contains(e.Fix, "docker login") {
		t.Errorf("without password: %v", err)
	}
	checkConsistent(t, none.root)
	// As docker login leaves it.
	home := t.TempDir()
	auth := base64.StdEncoding.EncodeToString([]byte("user:secret"))
	if err := os.WriteFile(home+"/config.json", fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, addr, auth), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", home)
	t.Setenv("DOCKER_CONFIG", home)
	s := openStore(t, Config{})
	img, err := s.Pull(ctx, addr+"/private", PullOptions{})
	if err != nil || img.ID != i.id {
		t.Errorf("with ~/.docker/config.json: %v", err)
	}
	// A credential helper.
	helper := "#!/bin/sh\ncat >/dev/null\nprintf '{\"Username\":\"user\",\"Secret\":\"secret\"}'\n"
	if err := os.WriteFile(home+"/docker-credential-test", []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(home+"/config.json", fmt.Appendf(nil, `{"credHelpers":{%q:"test"}}`, addr), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", home+":"+os.Getenv("PATH"))
	if img, err := openStore(t, Config{}).Pull(ctx, addr+"/private", PullOptions{}); err != nil || img.ID != i.id {
		t.Errorf("with a credential helper: %v", err)
	}
	// Podman's file.
	t.Setenv("DOCKER_CONFIG", "/nonexistent")
	if err := os.WriteFile(home+"/auth.json", fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, addr, auth), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("REGISTRY_AUTH_FILE", home+"/auth.json")
	if img, err := openStore(t, Config{}).Pull(ctx, addr+"/private", PullOptions{}); err != nil || img.ID != i.id {
		t.Errorf("with REGISTRY_AUTH_FILE: %v", err)
	}
}

// faulty is a registry in this process whose answers can be spoilt: hook
// returns true when it has answered itself.
type faulty struct {
	addr  string
	hook  atomic.Pointer[func(w http.ResponseWriter, r *http.Request, n int) bool]
	count sync.Map // path -> *atomic.Int64
	next  http.Handler
}

func newFaulty(t testing.TB) *faulty {
	t.Helper()
	f := &faulty{next: ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))}
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	f.addr = strings.TrimPrefix(srv.URL, "http://")
	return f
}

func (f *faulty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		c, _ := f.count.LoadOrStore(r.URL.Path, new(atomic.Int64))
		n := int(c.(*atomic.Int64).Add(1))
		if h := f.hook.Load(); h != nil && (*h)(w, r, n) {
			return
		}
	}
	f.next.ServeHTTP(w, r)
}

func (f *faulty) spoil(h func(w http.ResponseWriter, r *http.Request, n int) bool) {
	f.count.Clear()
	f.hook.Store(&h)
}

func (f *faulty) gets(path string) int {
	c, ok := f.count.Load(path)
	if !ok {
		return 0
	}
	return int(c.(*atomic.Int64).Load())
}

func TestPullFaults(t *testing.T) {
	f := newFaulty(t)
	i := buildImage(t, DefaultPlatform(), asGzip, sampleTars(t)...)
	ref := f.addr + "/app:v1"
	push(t, ref, i)
	last := i.layers[2]
	layer := "/v2/app/blobs/" + digestOf(last)
	isLayer := func(r *http.Request) bool { return r.URL.Path == layer }
	flipped := append([]byte{}, last...)
	flipped[len(flipped)/2] ^= 1
	serve := func(w http.ResponseWriter, b []byte, claim int) bool {
		w.Header().Set("Content-Length", fmt.Sprint(claim))
		w.Write(b)
		return true
	}
	cut := func(w http.ResponseWriter) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(last)))
		w.Write(last[:len(last)/2])
		panic(http.ErrAbortHandler)
	}
	manifest := func(media, body string) func(http.ResponseWriter, *http.Request, int) bool {
		return func(w http.ResponseWriter, r *http.Request, n int) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", media)
			return serve(w, []byte(body), len(body))
		}
	}
	swap := func(from, to string) string { return strings.Replace(string(i.manifest), from, to, 1) }
	for _, tt := range []struct {
		name string
		hook func(w http.ResponseWriter, r *http.Request, n int) bool
		err  error // nil: the pull succeeds all the same
		gets int   // of the layer; 0: do not care
	}{
		{"500 twice", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if isLayer(r) && n < 3 {
				w.WriteHeader(500)
				return true
			}
			return false
		}, nil, 3},
		{"500 for ever", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if isLayer(r) {
				w.WriteHeader(503)
				return true
			}
			return false
		}, ErrUnreachable, 5},
		{"manifest 502 once", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if strings.Contains(r.URL.Path, "/manifests/") && n == 1 {
				w.WriteHeader(502)
				return true
			}
			return false
		}, nil, 1},
		{"rate limit", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				w.WriteHeader(429)
				return true
			}
			return false
		}, ErrUnreachable, 0},
		{"connection cut once", func(w http.ResponseWriter, r *http.Request, n int) bool { return isLayer(r) && n == 1 && cut(w) }, nil, 2},
		{"connection cut always", func(w http.ResponseWriter, r *http.Request, n int) bool { return isLayer(r) && cut(w) }, ErrUnreachable, 5},
		{"short blob once", func(w http.ResponseWriter, r *http.Request, n int) bool {
			return isLayer(r) && n == 1 && serve(w, last[:100], 100)
		}, nil, 2},
		{"short blob always", func(w http.ResponseWriter, r *http.Request, n int) bool {
			return isLayer(r) && serve(w, last[:100], 100)
		}, ErrDigest, 5},
		{"long blob", func(w http.ResponseWriter, r *http.Request, n int) bool {
			return isLayer(r) && serve(w, append(last[:len(last):len(last)], 0), len(last)+1)
		}, ErrDigest, 1},
		{"wrong blob", func(w http.ResponseWriter, r *http.Request, n int) bool {
			return isLayer(r) && serve(w, flipped, len(flipped))
		}, ErrDigest, 1},
		{"missing blob", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if isLayer(r) {
				http.NotFound(w, r)
				return true
			}
			return false
		}, ErrNotFound, 1},
		{"stalled once", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if !isLayer(r) || n > 1 {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(last)))
			w.Write(last[:10])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		}, nil, 2},
		{"wrong config", func(w http.ResponseWriter, r *http.Request, n int) bool {
			return strings.HasSuffix(r.URL.Path, i.id) && serve(w, i.config[1:], len(i.config)-1)
		}, ErrDigest, 0},
		{"forbidden", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				w.WriteHeader(403)
				return true
			}
			return false
		}, ErrUnauthorized, 0},
		{"redirect in a circle", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if isLayer(r) {
				http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
				return true
			}
			return false
		}, ErrUnreachable, 0},
		{"redirect to plain HTTP elsewhere", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if isLayer(r) {
				http.Redirect(w, r, "http://registry.invalid/x", http.StatusTemporaryRedirect)
				return true
			}
			return false
		}, errPlainHTTP, 1},
		{"schema 1", manifest("application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":1,"fsLayers":[]}`), ErrMediaType, 0},
		{"not JSON", manifest(mtOCIManifest, "<html>"), ErrManifest, 0},
		{"two types", manifest(mtOCIIndex, string(i.manifest)), ErrManifest, 0},
		{"manifest and index", manifest(mtOCIManifest, swap(`"layers"`, `"manifests":[],"layers"`)), ErrManifest, 0},
		{"unknown type", manifest("application/vnd.cncf.helm", `{"schemaVersion":2}`), ErrMediaType, 0},
		{"encrypted layer", manifest(mtOCIManifest, swap(asGzip.media, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted")), ErrMediaType, 0},
		{"foreign layer", manifest(mtOCIManifest, swap(asGzip.media, string(types.DockerForeignLayer))), ErrMediaType, 0},
		{"helm chart", manifest(mtOCIManifest, swap(mtOCIConfig, "application/vnd.cncf.helm.config.v1+json")), ErrMediaType, 0},
		{"layer missing in config", manifest(mtOCIManifest, swap(`"layers":[`, fmt.Sprintf(`"layers":[{"mediaType":%q,"digest":%q,"size":1},`, asGzip.media, digestOf([]byte("x"))))), ErrManifest, 0},
		{"negative size", manifest(mtOCIManifest, swap(fmt.Sprintf(`"size":%d`, len(i.config)), `"size":-1`)), ErrManifest, 0},
		{"too many layers", manifest(mtOCIManifest, `{"schemaVersion":2,"config":`+string(mustJSON(t, Descriptor{mtOCIConfig, i.id, 5}))+`,"layers":[`+
			strings.TrimSuffix(strings.Repeat(string(mustJSON(t, Descriptor{asGzip.media, i.id, 5}))+",", 501), ",")+`]}`), nil, -1},
		{"empty index", manifest(mtOCIIndex, `{"schemaVersion":2,"manifests":[]}`), ErrPlatform, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t, Config{Backoff: time.Millisecond, StallTimeout: 300 * time.Millisecond})
			f.spoil(tt.hook)
			img, err := s.Pull(context.Background(), ref, PullOptions{})
			var le *LimitError
			switch {
			case tt.gets < 0:
				if !errors.As(err, &le) {
					t.Errorf("error %v", err)
				}
			case tt.err == nil && err != nil:
				t.Errorf("failed: %v", err)
			case tt.err == nil && img.ID != i.id:
				t.Errorf("got %s", img.ID)
			case tt.err != nil && !errors.Is(err, tt.err):
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if n := f.gets(layer); tt.gets > 0 && n != tt.gets {
				t.Errorf("the layer was asked for %d times, want %d", n, tt.gets)
			}
			if err != nil {
				if l, _ := s.List(context.Background()); len(l) > 0 {
					t.Errorf("the failed pull left an image")
				}
				if left := names(t, s.root+"/blobs/sha256"); len(left) > 0 && !errors.Is(err, ErrUnreachable) {
					t.Errorf("the failed pull left blobs %v", left)
				}
			}
			checkConsistent(t, s.root)
		})
	}
}

func TestPullUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	s := openStore(t, Config{})
	start := time.Now()
	for _, ref := range []string{addr + "/x", "registry.invalid/x"} {
		if _, err := s.Pull(context.Background(), ref, PullOptions{}); !errors.Is(err, ErrUnreachable) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("it took %v to find out", d)
	}
	checkConsistent(t, s.root)
}

// TestPullTLS: HTTPS with the configured roots, an unknown authority refused,
// insecure accepted.
func TestPullTLS(t *testing.T) {
	f := newFaulty(t)
	srv := httptest.NewUnstartedServer(f)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	i := buildImage(t, DefaultPlatform(), asGzip, sampleTars(t)[0])
	push(t, f.addr+"/app", i)
	ref := strings.TrimPrefix(srv.URL, "https://") + "/app"
	ctx := context.Background()
	if _, err := openStore(t, Config{}).Pull(ctx, ref, PullOptions{}); !errors.Is(err, ErrUnreachable) {
		t.Errorf("unknown authority: %v", err)
	}
	good := openStore(t, Config{TLS: srv.Client().Transport.(*http.Transport).TLSClientConfig})
	if img, err := good.Pull(ctx, ref, PullOptions{}); err != nil || img.ID != i.id {
		t.Errorf("known authority: %v", err)
	}
	if img, err := openStore(t, Config{}).Pull(ctx, ref, PullOptions{Insecure: true}); err != nil || img.ID != i.id {
		t.Errorf("insecure: %v", err)
	}
	host, _, _ := strings.Cut(ref, "/")
	if img, err := openStore(t, Config{Insecure: []string{host}}).Pull(ctx, ref, PullOptions{}); err != nil || img.ID != i.id {
		t.Errorf("insecure by configuration: %v", err)
	}
}

func TestPullCancelled(t *testing.T) {
	f := newFaulty(t)
	i := buildImage(t, DefaultPlatform(), asGzip, sampleTars(t)...)
	push(t, f.addr+"/app", i)
	ctx, cancel := context.WithCancel(context.Background())
	f.spoil(func(w http.ResponseWriter, r *http.Request, n int) bool {
		if strings.HasSuffix(r.URL.Path, digestOf(i.layers[2])) {
			cancel()
			<-r.Context().Done()
			return true
		}
		return false
	})
	s := openStore(t, Config{})
	if _, err := s.Pull(ctx, f.addr+"/app", PullOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	checkConsistent(t, s.root)
}

func TestRedirectGuard(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		ok       bool
	}{
		{"https://registry-1.docker.io/v2/", "https://cdn.example.com/x", true},
		{"https://registry-1.docker.io/v2/", "https://169.254.169.254/latest", false},
		{"https://registry-1.docker.io/v2/", "https://10.1.2.3/x", false},
		{"https://registry-1.docker.io/v2/", "https://[::1]/x", false},
		{"https://registry-1.docker.io/v2/", "https://localhost/x", false},
		{"https://registry-1.docker.io/v2/", "https://2130706433/x", false},
		{"https://registry-1.docker.io/v2/", "https://0x7f.1/x", false},
		{"https://10.0.0.1/v2/", "https://10.0.0.2/x", true},
		{"https://localhost:5000/v2/", "http://127.0.0.1:9000/x", true},
	} {
		from, err := http.NewRequest("GET", tt.from, nil)
		if err != nil {
			t.Fatal(err)
		}
		to, err := http.NewRequest("GET", tt.to, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkRedirect(to, []*http.Request{from}); (err == nil) != tt.ok {
			t.Errorf("%s to %s: %v", tt.from, tt.to, err)
		}
	}
	g := &guard{next: http.DefaultTransport}
	req, _ := http.NewRequest("GET", "http://192.168.1.1/", nil)
	if _, err := g.RoundTrip(req); !errors.Is(err, errPlainHTTP) {
		t.Errorf("plain HTTP to a private address: %v", err)
	}
}
