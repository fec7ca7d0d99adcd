package sandbox

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload/seccomp"
	"github.com/rootless-sbx/sbx/userns"
)

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
		if _, _, err := workload.ParseSysctl(k+"="+v, c.mode() == NetworkHost); err != nil {
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
	attachments, err := s.e.attachments(c.Networks)
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
		ID: s.id, Name: s.name, Hostname: s.hostname(), Image: cmp.Or(c.Image, c.RootFS), Labels: merged.Labels,
		Dir: s.dir.Path, RuntimeDir: s.e.runtimeDir, DataDir: s.e.dataDir, VolumesDir: s.e.Volumes().Root, EventsDir: s.e.events.Dir,
		Driver: s.driver, Lowers: s.lowers, Single: s.mapping.Mode == userns.ModeSingle,
		Mounts: mounts, SystemPathsUnconfined: sec.SystemPathsUnconfined, ReadOnly: c.ReadOnly, ShmSize: c.ShmSize,
		TTY: c.TTY, Rows: c.Rows, Cols: c.Cols, Init: c.Init, Sysctls: c.Sysctls,
		NetdLinger: s.e.linger, TakeStdin: c.Stdin != nil, Life: c.life(merged.StopSignal, img),
		Network: proto.Network{
			Mode: c.mode(), Attachments: attachments, Links: c.Links, MTU: c.MTU, LinkDriver: c.LinkDriver, HostAccess: c.HostAccess, Metadata: c.MetadataAccess,
			DNS: c.DNS, DNSSearch: c.DNSSearch, DNSOptions: c.DNSOptions, AddHost: c.AddHost,
			Ports: ports, PortDriver: c.PortDriver,
		},
		Process: workload.Spec{
			Args: merged.Args, Env: merged.Env, Cwd: merged.Cwd, User: merged.User, ExtraGroups: c.GroupAdd,
			CapAdd: c.CapAdd, CapDrop: c.CapDrop, NoNewPrivs: sec.NoNewPrivs, Seccomp: s.seccomp(sec.Seccomp),
			Rlimits: c.Ulimits, Terminal: c.TTY, Pdeathsig: pdeathsig(c.Init),
		},
	}
	if c.OOMScoreAdj != 0 {
		s.start.Process.OOMScoreAdj = &c.OOMScoreAdj
	}
	s.rec = &record.Config{
		Created: time.Now().UTC(), Image: c.Image, ImageID: s.imageID, RootFS: c.RootFS, Platform: c.Platform,
		UserNS: c.UserNS, StorageDriver: c.StorageDriver, Exposed: merged.ExposedPorts, Resources: c.Resources,
		AttachStdin: c.Stdin != nil, AttachStdout: c.Stdout != nil, AttachStderr: c.Stderr != nil,
	}
	s.rec.Entrypoint, s.rec.Cmd = splitCommand(merged.Args, c, img)
	return nil
}

// seccomp is the profile. Who asks for a platform of 32-bit programs wants these to
// have sockets; that an image says it is of one is not enough.
func (s *Sandbox) seccomp(asked string) string {
	if p, err := image.ParsePlatform(s.cfg.Platform); asked == "" && err == nil && p.Architecture == "386" {
		return seccomp.Builtin32
	}
	return asked
}

// splitCommand says which part of the command is the entrypoint.
func splitCommand(args []string, c *Config, img v1.Config) (entrypoint, cmd []string) {
	n := len(img.Entrypoint)
	if c.Entrypoint != nil {
		n = len(c.Entrypoint)
	}
	n = min(n, len(args))
	return args[:n], args[n:]
}

// life is what happens around the workload.
func (c *Config) life(stop syscall.Signal, img v1.Config) proto.Life {
	l := proto.Life{
		Detach: c.Detach, Keep: c.Keep, OpenStdin: c.OpenStdin || c.Stdin != nil, StdinOnce: c.StdinOnce || c.Stdin != nil,
		StopSignal: stop, StopTimeout: c.StopTimeout,
		Restart:     proto.Restart{Name: c.Restart.Name, Max: c.Restart.Max},
		Healthcheck: c.healthcheck(img.Healthcheck),
	}
	if driver := c.Log.Driver; c.Detach || c.Keep || driver != "" {
		l.Log = &proto.Log{Driver: cmp.Or(driver, "json-file"), MaxSize: c.Log.MaxSize, MaxFiles: c.Log.MaxFiles}
	}
	return l
}

// healthcheck lays the user's wishes over the image's.
func (c *Config) healthcheck(img *v1.HealthConfig) *proto.Healthcheck {
	h := &proto.Healthcheck{}
	if img != nil {
		*h = proto.Healthcheck{Test: img.Test, Interval: img.Interval, Timeout: img.Timeout, StartPeriod: img.StartPeriod, Retries: img.Retries}
	}
	if o := c.Health; o != nil {
		if len(o.Test) > 0 {
			h.Test = o.Test
		}
		h.Interval, h.Timeout = cmp.Or(o.Interval, h.Interval), cmp.Or(o.Timeout, h.Timeout)
		h.StartPeriod, h.StartInterval = cmp.Or(o.StartPeriod, h.StartPeriod), cmp.Or(o.StartInterval, h.StartInterval)
		h.Retries = cmp.Or(o.Retries, h.Retries)
	}
	if len(h.Test) < 2 {
		return nil // none, or NONE
	}
	return h
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
	if s.cfg.mode() == NetworkHost {
		if h, err := os.Hostname(); err == nil {
			return h
		}
	}
	return s.id[:12]
}

// ports are the published ones and, with PublishAll, those that are exposed.
func (s *Sandbox) ports(exposed []string) ([]portfwd.Spec, error) {
	c := &s.cfg
	specs := append([]portfwd.Spec(nil), c.Publish...)
	if c.PublishAll {
		more, err := portfwd.ParseExpose(exposed)
		if err != nil {
			return nil, &ConfigError{Field: "exposed port", Err: err}
		}
		have := map[string]bool{}
		key := func(p portfwd.Spec) string { return p.Proto + strconv.Itoa(p.ChildPort) }
		for _, p := range specs {
			have[key(p)] = true
		}
		for _, p := range more {
			if !have[key(p)] {
				specs = append(specs, p)
			}
		}
	}
	if len(specs) > 0 && c.mode() != NetworkDefault {
		s.notes = append(s.notes, fmt.Sprintf("published ports are ignored with --network %s", c.mode()))
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
		covered[filepath.Clean(m.Target)] = true
	}
	for _, v := range volumes {
		if v = filepath.Clean("/" + v); !covered[v] && v != "/" {
			covered[v] = true
			mounts = append(mounts, fsoverlay.Mount{Type: "volume", Target: v})
		}
	}
	if err := fsoverlay.CheckMounts(mounts); err != nil {
		return nil, &ConfigError{Field: "mount", Err: err}
	}
	return mounts, nil
}
