package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
	"github.com/rootless-sbx/sbx/userns"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// ConfigError says which part of a Config is wrong.
type ConfigError struct {
	Field string
	Err   error
}

func (e *ConfigError) Error() string { return fmt.Sprintf("%s: %v", e.Field, e.Err) }
func (e *ConfigError) Unwrap() error { return e.Err }

func badConfig(field, format string, args ...any) error {
	return &ConfigError{Field: field, Err: fmt.Errorf(format, args...)}
}

// Create resolves cfg: the image is pulled and unpacked if it must be, and a
// directory is made. Nothing runs yet. The caller ends with Start and Wait, or
// with Remove.
func (e *Engine) Create(ctx context.Context, cfg Config) (_ *Sandbox, err error) {
	if _, err := e.Sweep(ctx); err != nil {
		e.log.Warn("left-over sandboxes could not be removed", "err", err)
	}
	s := &Sandbox{e: e, cfg: cfg, id: newID(), name: cfg.Name, done: make(chan struct{})}
	if err := s.checkConfig(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.cleanup(context.WithoutCancel(ctx))
		}
	}()
	p, err := e.resolve(ctx, cfg.UserNS)
	if err != nil {
		return nil, err
	}
	if s.driver, err = fsoverlay.Choose(p.storage, cfg.StorageDriver); err != nil {
		return nil, err
	}
	s.mapping = p.mapping
	if s.mapping.Reason != "" {
		s.notes = append(s.notes, s.mapping.Reason)
	}
	imgCfg, err := s.openImage(ctx)
	if err != nil {
		return nil, err
	}
	if s.dir, err = e.createDir(s.id, s.claimName); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(s.dir.path, "name"), []byte(s.name), 0o600); err != nil {
		return nil, err
	}
	if err := s.resolve(imgCfg); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Sandbox) checkConfig() error {
	c := &s.cfg
	switch {
	case (c.Image == "") == (c.RootFS == ""):
		return badConfig("image", "give an image or a root directory (--rootfs), one of them")
	case c.StopTimeout < 0:
		return badConfig("stop timeout", "%v is negative", c.StopTimeout)
	case c.MTU != 0 && (c.MTU < 576 || c.MTU > 65520):
		return badConfig("mtu", "%d is not between 576 and 65520", c.MTU)
	case c.ShmSize < 0:
		return badConfig("shm size", "%d is negative", c.ShmSize)
	}
	if c.StopTimeout == 0 {
		c.StopTimeout = 10 * time.Second
	}
	if err := oneOf("pull policy", &c.Pull, PullMissing, PullAlways, PullNever); err != nil {
		return err
	}
	if c.Network == "bridge" { // Docker's name for it
		c.Network = NetworkDefault
	}
	if err := oneOf("network", &c.Network, NetworkDefault, NetworkNone, NetworkHost); err != nil {
		return err
	}
	if err := oneOf("link driver", &c.LinkDriver, "", "tap", "packet"); err != nil {
		return err
	}
	if err := oneOf("port driver", &c.PortDriver, "", "direct", "stack", "builtin"); err != nil {
		return err
	}
	if err := oneOf("storage driver", &c.StorageDriver, "", "native", "fuse", "copy"); err != nil {
		return err
	}
	if s.name != "" && !validName(s.name) {
		return badConfig("name", "%q: only [a-zA-Z0-9][a-zA-Z0-9_.-]* is allowed, at most 128 characters", s.name)
	}
	if c.Hostname != "" && (len(c.Hostname) > 64 || strings.ContainsAny(c.Hostname, " \t\n/")) {
		return badConfig("hostname", "%q is not a host name of at most 64 characters", c.Hostname)
	}
	return nil
}

// oneOf checks that *v is one of the allowed values; the first is the default.
func oneOf(field string, v *string, allowed ...string) error {
	if *v == "" {
		*v = allowed[0]
		return nil
	}
	for _, a := range allowed {
		if *v == a && a != "" {
			return nil
		}
	}
	names := allowed
	if names[0] == "" {
		names = names[1:]
	}
	return badConfig(field, "%q is not one of %s", *v, strings.Join(names, ", "))
}

func validName(name string) bool {
	if len(name) > 128 {
		return false
	}
	for i, r := range name {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("_.-", r)) {
			return false
		}
	}
	return name != ""
}

// ErrNameInUse is returned when another sandbox has the name.
var ErrNameInUse = errors.New("name in use")

// claimName runs under the lock that every Create takes.
func (s *Sandbox) claimName() error {
	taken := map[string]string{}
	dirs, err := filepath.Glob(filepath.Join(s.e.dataDir, "containers", "*", "name"))
	if err != nil {
		return err
	}
	for _, f := range dirs {
		if b, err := os.ReadFile(f); err == nil {
			taken[string(b)] = filepath.Base(filepath.Dir(f))
		}
	}
	if s.name == "" {
		for retry := 0; s.name == "" || taken[s.name] != ""; retry++ {
			s.name = workload.RandomName(retry)
		}
		return nil
	}
	if id := taken[s.name]; id != "" {
		return fmt.Errorf("%w: %q is sandbox %.12s; choose another --name or stop that one", ErrNameInUse, s.name, id)
	}
	return nil
}

// openImage finds or pulls the image and holds its layers.
func (s *Sandbox) openImage(ctx context.Context) (v1.Config, error) {
	if s.cfg.RootFS != "" {
		dir, err := filepath.Abs(s.cfg.RootFS)
		if err == nil {
			dir, err = filepath.EvalSymlinks(dir)
		}
		if err != nil {
			return v1.Config{}, &ConfigError{Field: "rootfs", Err: err}
		}
		if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
			return v1.Config{}, badConfig("rootfs", "%s is not a directory", dir)
		}
		s.lowers = []string{dir}
		return v1.Config{}, nil
	}
	store, err := s.e.Images()
	if err != nil {
		return v1.Config{}, err
	}
	img, err := s.findImage(ctx, store)
	if err != nil {
		return v1.Config{}, err
	}
	if s.lease, err = store.Acquire(ctx, img, s.mapping.Key()); err != nil {
		return v1.Config{}, fmt.Errorf("unpack %s: %w", s.cfg.Image, err)
	}
	s.lowers = s.lease.Layers
	return img.Config.Config, nil
}

func (s *Sandbox) findImage(ctx context.Context, store *image.Store) (*image.Image, error) {
	if s.cfg.Image == image.DemoName {
		return store.Demo(ctx, s.e.initPath)
	}
	if s.cfg.Pull != PullAlways {
		img, err := store.Get(ctx, s.cfg.Image)
		if err == nil || !errors.Is(err, image.ErrNotFound) {
			return img, err
		}
		if s.cfg.Pull == PullNever {
			return nil, fmt.Errorf("%w; it is not pulled because of --pull never", err)
		}
	}
	return store.Pull(ctx, s.cfg.Image, image.PullOptions{
		Platform: s.cfg.Platform, Insecure: s.cfg.Insecure, Progress: s.cfg.Progress,
	})
}

// resolve turns the configuration into what the monitor is told.
func (s *Sandbox) resolve(img v1.Config) error {
	c := &s.cfg
	merged, err := workload.MergeConfig(img, workload.Overrides{
		Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, WorkDir: c.WorkDir, User: c.User,
		StopSignal: c.StopSignal, TTY: c.TTY, Hostname: s.hostname(), Expose: c.Expose, Labels: c.Labels,
		LookupEnv: c.LookupEnv,
	})
	if err != nil {
		return err
	}
	s.stopSignal = merged.StopSignal
	sec, err := workload.ParseSecurityOpts(c.SecurityOpt, os.ReadFile)
	if err != nil {
		return &ConfigError{Field: "security option", Err: err}
	}
	for k, v := range c.Sysctls {
		if _, _, err := workload.ParseSysctl(k+"="+v, c.Network == NetworkHost); err != nil {
			return &ConfigError{Field: "sysctl", Err: err}
		}
	}
	if s.mapping.Mode == userns.ModeKeepID && merged.User == "" && c.User == "" {
		// The point of keeping the id is to run under it.
		merged.User = fmt.Sprintf("%d:%d", os.Geteuid(), os.Getegid())
	}
	ports, err := s.ports(merged.ExposedPorts)
	if err != nil {
		return err
	}
	mounts, err := s.mounts(merged.Volumes)
	if err != nil {
		return err
	}
	// Here and not in the monitor: what is made belongs to the user, with his rights.
	if err := fsoverlay.PrepareSources(mounts); err != nil {
		return err
	}
	s.start = proto.Start{
		ID: s.id, Name: s.name, Hostname: s.hostname(),
		Dir: s.dir.path, RuntimeDir: s.e.runtimeDir, VolumesDir: s.e.Volumes().Root,
		Driver: s.driver, Lowers: s.lowers, Single: s.mapping.Mode == userns.ModeSingle,
		Mounts: mounts, ReadOnly: c.ReadOnly, ShmSize: c.ShmSize,
		TTY: c.TTY, Rows: c.Rows, Cols: c.Cols, Init: c.Init, Sysctls: c.Sysctls,
		NetdLinger: s.e.linger,
		Network: proto.Network{
			Mode: c.Network, MTU: c.MTU, LinkDriver: c.LinkDriver, HostAccess: c.HostAccess,
			DNS: c.DNS, DNSSearch: c.DNSSearch, DNSOptions: c.DNSOptions, AddHost: c.AddHost,
			Ports: ports, PortDriver: c.PortDriver,
		},
		Process: workload.Spec{
			Args: merged.Args, Env: merged.Env, Cwd: merged.Cwd, User: merged.User, ExtraGroups: c.GroupAdd,
			CapAdd: c.CapAdd, CapDrop: c.CapDrop, NoNewPrivs: sec.NoNewPrivs, Seccomp: sec.Seccomp,
			Rlimits: c.Ulimits, Terminal: c.TTY, Pdeathsig: pdeathsig(c.Init),
		},
	}
	return nil
}

// pdeathsig ends pid 1 with its monitor. Under --init that is the init's part.
func pdeathsig(init bool) syscall.Signal {
	if init {
		return 0
	}
	return syscall.SIGKILL
}

func (s *Sandbox) hostname() string {
	if s.cfg.Hostname != "" {
		return s.cfg.Hostname
	}
	if s.cfg.Network == NetworkHost {
		if h, err := os.Hostname(); err == nil {
			return h
		}
	}
	return s.id[:12]
}

// ports are the published ones and, with PublishAll, those that are exposed.
func (s *Sandbox) ports(exposed []string) ([]port.Spec, error) {
	c := &s.cfg
	specs := append([]port.Spec(nil), c.Publish...)
	if c.PublishAll {
		more, err := portfwd.ParseExpose(exposed)
		if err != nil {
			return nil, &ConfigError{Field: "exposed port", Err: err}
		}
		have := map[string]bool{}
		key := func(p port.Spec) string { return p.Proto + strconv.Itoa(p.ChildPort) }
		for _, p := range specs {
			have[key(p)] = true
		}
		for _, p := range more {
			if !have[key(p)] {
				specs = append(specs, p)
			}
		}
	}
	if len(specs) > 0 && c.Network != NetworkDefault {
		s.notes = append(s.notes, fmt.Sprintf("published ports are ignored with --network %s", c.Network))
		return nil, nil
	}
	return specs, nil
}

// mounts are the user's, and an anonymous volume for each of the image's volumes
// that none of them covers.
func (s *Sandbox) mounts(volumes []string) ([]fsoverlay.Mount, error) {
	mounts := append([]fsoverlay.Mount(nil), s.cfg.Mounts...)
	covered := map[string]bool{}
	for _, m := range mounts {
		t := filepath.Clean(m.Target)
		if covered[t] {
			return nil, badConfig("mount", "%s is the target of two mounts", t)
		}
		covered[t] = true
	}
	for _, v := range volumes {
		if v = filepath.Clean("/" + v); !covered[v] && v != "/" {
			covered[v] = true
			mounts = append(mounts, fsoverlay.Mount{Type: "volume", Target: v})
		}
	}
	return mounts, nil
}
