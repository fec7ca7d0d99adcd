package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
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
		ID: s.id, Name: s.name, Hostname: s.hostname(), Labels: merged.Labels,
		Dir: s.dir.Path, RuntimeDir: s.e.runtimeDir, VolumesDir: s.e.Volumes().Root,
		Driver: s.driver, Lowers: s.lowers, Single: s.mapping.Mode == userns.ModeSingle,
		Mounts: mounts, SystemPathsUnconfined: sec.SystemPathsUnconfined, ReadOnly: c.ReadOnly, ShmSize: c.ShmSize,
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
