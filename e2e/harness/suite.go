package harness

import (
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/e2e/fixture"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

// suite is what all tests of a binary share: the sbx binary, the fixtures and one
// data directory into which each image is loaded once.
type suite struct {
	dir   string // short: Unix socket paths are limited to 108 bytes
	bin   string
	race  bool // it was built with the race detector
	cache *fixture.Cache

	mu     sync.Mutex
	loaded map[string]error
}

var current *suite

// Main is the body of TestMain: the probe inside an image, or the tests.
func Main(m *testing.M) int {
	if probe.IsProbe() {
		return probe.Main()
	}
	s, err := newSuite()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	current = s
	code := m.Run()
	if err := removeTree(s.dir); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: clean up:", err)
		return 1
	}
	return code
}

func newSuite() (*suite, error) {
	if os.Getuid() == 0 {
		return nil, errors.New("these tests are for an ordinary user: make test, or go test -exec scripts/as-user")
	}
	bin := os.Getenv("SBX_BIN")
	if bin == "" {
		bin = findBin()
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(bin); err != nil {
		return nil, fmt.Errorf("no sbx to test (make build, or set SBX_BIN): %w", err)
	}
	info, err := buildinfo.ReadFile(bin)
	if err != nil {
		return nil, err
	}
	race := slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become the reaper: %w", err)
	}
	if err := startPoller(); err != nil {
		return nil, err
	}
	cache, err := fixture.OpenCache("")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		return nil, err
	}
	// Sandboxes whose root is a subordinate id must be able to reach bind sources below.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	return &suite{dir: dir, bin: bin, race: race, cache: cache, loaded: map[string]error{}}, nil
}

// startPoller makes Go's runtime open the descriptors of its poller, which it keeps,
// before a test counts descriptors.
func startPoller() error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	return errors.Join(r.Close(), w.Close())
}

// Slow stretches a time-out on a machine that is SBX_TEST_SLOW times slower.
func Slow(d time.Duration) time.Duration {
	if n, err := strconv.Atoi(os.Getenv("SBX_TEST_SLOW")); err == nil && n > 1 {
		return d * time.Duration(n)
	}
	return d
}

// findBin looks for bin/sbx in the directories above.
func findBin() string {
	rel := "bin/sbx"
	for range 6 {
		if _, err := os.Stat(rel); err == nil {
			return rel
		}
		rel = "../" + rel
	}
	return "bin/sbx"
}

// Binary returns the path of the sbx under test.
func Binary() string { return current.bin }

// Fixtures returns the cache of images and tools.
func Fixtures() *fixture.Cache { return current.cache }

// Image names that Load knows.
const (
	BB     = "e2e/bb:1"     // busybox, odd layers, the probe
	Nginx  = "e2e/nginx:1"  // nginx on port 80
	Debian = "e2e/debian:1" // curl, dig, ping, iperf3, avahi, sudo
	App    = "e2e/app:1"    // busybox with every field of an image's configuration set
)

// Build makes one of the images above.
func Build(ctx context.Context, ref string) (v1.Image, error) {
	c := current.cache
	switch ref {
	case BB:
		return c.Busybox(ctx, nil)
	case Nginx:
		return c.Nginx(ctx)
	case Debian:
		return c.Debian(ctx, nil)
	case App:
		return c.Busybox(ctx, func(cfg *v1.Config) {
			cfg.User = "app"
			cfg.Entrypoint = []string{"/bin/sh", "-c", `echo "entry $0 $*"`}
			cfg.Cmd = []string{"first", "second"}
			cfg.WorkingDir = "/home/app/new"
			cfg.Env = append(cfg.Env, "COLOR=blue", "EMPTY=")
			cfg.ExposedPorts = map[string]struct{}{"8080/tcp": {}, "8081/tcp": {}, "5353/udp": {}}
			cfg.Volumes = map[string]struct{}{"/data": {}}
			cfg.StopSignal = "SIGUSR1"
			cfg.Labels = map[string]string{"org.example.label": "value"}
		})
	}
	return nil, fmt.Errorf("no such fixture: %s", ref)
}

// load puts an image into the shared store, once for all tests.
func (s *suite) load(t testing.TB, e *Env, ref string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	err, done := s.loaded[ref]
	if !done {
		err = s.loadNow(t.Context(), e, ref)
		s.loaded[ref] = err
	}
	if err != nil {
		t.Fatalf("load %s: %v", ref, err)
	}
}

func (s *suite) loadNow(ctx context.Context, e *Env, ref string) error {
	start := time.Now()
	img, err := Build(ctx, ref)
	if err != nil {
		return err
	}
	file := filepath.Join(s.dir, "image.tar")
	if err := fixture.SaveDocker(img, ref, file); err != nil {
		return err
	}
	defer os.Remove(file)
	cmd := exec.CommandContext(ctx, s.bin, "load", "-i", file)
	cmd.Env = e.Environ()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("sbx load: %w: %s", err, strings.TrimSpace(string(out)))
	}
	if d := time.Since(start); d > 5*time.Second {
		fmt.Fprintf(os.Stderr, "e2e: made and loaded %s in %.0f s\n", ref, d.Seconds())
	}
	return nil
}

// removeTree removes dir although unpacked layers in it belong to subordinate ids.
func removeTree(dir string) error {
	if err := os.RemoveAll(dir); err == nil {
		return nil
	}
	cmd := exec.Command("unshare", "--user", "--map-auto", "--map-root-user", "rm", "-rf", dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("remove %s: %w: %s", dir, err, strings.TrimSpace(string(out)))
	}
	return nil
}
