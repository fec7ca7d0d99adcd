package main

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox"
	"github.com/rootless-sbx/sbx/userns"
)

// maxHostAccess bounds what a range of --host-access expands to.
const maxHostAccess = 1024

// config turns the command line into a configuration, without the standard streams.
func (o *runOptions) config(args []string) (sandbox.Config, error) {
	var cfg sandbox.Config
	switch {
	case o.changed("rootfs"):
		args = append([]string{""}, args...)
	case len(args) == 0:
		return cfg, &usage{msg: "sbx run needs an image", fix: "try: sbx run --rm -p 8080:80 demo"}
	}
	if _, err := image.ParsePlatform(o.platform); err != nil {
		return cfg, fmt.Errorf("--platform: %w", err)
	}
	cfg = sandbox.Config{
		Name: o.name, Image: args[0], RootFS: o.rootfs, Cmd: args[1:], Pull: o.pull, Platform: o.platform, Insecure: o.insecure,
		WorkDir: o.workdir, User: o.user, StopSignal: o.stopSignal, GroupAdd: o.groups, Hostname: o.hostname, TTY: o.tty, Init: o.init,
		UserNS: userns.Mode(o.userns), StopTimeout: stopTimeout(o.stopTimeout),
		DNS: o.dns, DNSSearch: o.dnsSearch, DNSOptions: o.dnsOptions, AddHost: o.addHosts,
		MTU: o.mtu, LinkDriver: o.linkDriver, PortDriver: o.portDriver, PublishAll: o.publishAll, Expose: o.expose,
		ReadOnly: o.readOnly, StorageDriver: o.storageDriver,
		CapAdd: o.capAdd, CapDrop: o.capDrop, SecurityOpt: o.securityOpt, Resources: o.limits,
	}
	if o.changed("entrypoint") {
		cfg.Entrypoint = []string{}
		if o.entrypoint != "" {
			cfg.Entrypoint = []string{o.entrypoint}
		}
	}
	for _, parse := range []func(*sandbox.Config) error{
		o.parseEnv, o.parseLabels, o.parseNetworks, o.parseMounts, o.parsePorts, o.parseHostAccess, o.parseLimits, o.parseLife,
	} {
		if err := parse(&cfg); err != nil {
			return cfg, err
		}
	}
	return cfg, nil
}

// stopTimeout is Docker's: 0 kills at once, a negative number never.
func stopTimeout(seconds int) time.Duration {
	const most = math.MaxInt64 / int(time.Second)
	switch {
	case seconds == 0:
		return 1 // the zero value means the default
	case seconds < 0 || seconds > most:
		return math.MaxInt64
	}
	return time.Duration(seconds) * time.Second
}

// parseEnv reads files first: a variable on the command line wins.
func (o *runOptions) parseEnv(cfg *sandbox.Config) error {
	cfg.LookupEnv = os.LookupEnv
	for _, name := range o.envFiles {
		env, err := readKeyValues("--env-file", name, os.LookupEnv)
		if err != nil {
			return err
		}
		cfg.Env = append(cfg.Env, env...)
	}
	for _, e := range o.env {
		if strings.HasPrefix(e, "=") || e == "" {
			return &usage{msg: fmt.Sprintf("--env %q: no name before the =", e), fix: "write --env NAME=VALUE"}
		}
		cfg.Env = append(cfg.Env, e)
	}
	return nil
}

func (o *runOptions) parseLabels(cfg *sandbox.Config) error {
	cfg.Labels = map[string]string{}
	var list []string
	for _, name := range o.labelFiles {
		// A key alone is a label without a value, not one of the environment.
		l, err := readKeyValues("--label-file", name, func(string) (string, bool) { return "", true })
		if err != nil {
			return err
		}
		list = append(list, l...)
	}
	for _, l := range append(list, o.labels...) {
		k, v, _ := strings.Cut(l, "=")
		if k == "" {
			return &usage{msg: fmt.Sprintf("--label %q: no key before the =", l), fix: "write --label KEY=VALUE"}
		}
		cfg.Labels[k] = v
	}
	return nil
}

func readKeyValues(flag, name string, lookup func(string) (string, bool)) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	defer f.Close()
	list, err := sandbox.ParseEnvFile(f, name, lookup)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return list, nil
}

func (o *runOptions) parseMounts(cfg *sandbox.Config) error {
	cwd, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("find the current directory: %w", err)
	}
	tmpfs := func(s, _ string) (fsoverlay.Mount, error) { return fsoverlay.ParseTmpfs(s) }
	for _, k := range []struct {
		values []string
		parse  func(s, cwd string) (fsoverlay.Mount, error)
	}{{o.volumes, fsoverlay.ParseVolume}, {o.mounts, fsoverlay.ParseMount}, {o.tmpfs, tmpfs}} {
		for _, v := range k.values {
			m, err := k.parse(v, cwd)
			if err != nil {
				return err
			}
			cfg.Mounts = append(cfg.Mounts, m)
		}
	}
	return nil
}

func (o *runOptions) parsePorts(cfg *sandbox.Config) (err error) {
	if cfg.Publish, err = portfwd.ParsePublish(o.publish); err != nil {
		return fmt.Errorf("--publish: %w", err)
	}
	return nil
}

func (o *runOptions) parseHostAccess(cfg *sandbox.Config) error {
	cfg.MetadataAccess = o.metadata
	for _, item := range strings.Split(strings.Join(o.hostAccess, ","), ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		from, to, ranged := strings.Cut(item, "-")
		if !ranged {
			to = from
		}
		first, err1 := strconv.ParseUint(from, 10, 16)
		last, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil || first == 0 || last < first {
			return usagef("--host-access %q is not a port between 1 and 65535 or a range of them", item)
		}
		for p := first; p <= last; p++ {
			if !slices.Contains(cfg.HostAccess, uint16(p)) {
				cfg.HostAccess = append(cfg.HostAccess, uint16(p))
			}
			if len(cfg.HostAccess) > maxHostAccess {
				return usagef("--host-access names more than %d ports", maxHostAccess)
			}
		}
	}
	return nil
}

func (o *runOptions) parseLife(cfg *sandbox.Config) (err error) {
	cfg.Keep = !o.rm
	if cfg.Restart, err = parseRestart(o.restart); err != nil {
		return err
	}
	switch cfg.Log.Driver = o.logDriver; o.logDriver {
	case "local", "journald": // there is one kind of file
		cfg.Log.Driver = "json-file"
	}
	for _, opt := range o.logOpts {
		k, v, _ := strings.Cut(opt, "=")
		var err error
		switch k {
		case "max-size":
			cfg.Log.MaxSize, err = units.RAMInBytes(v)
		case "max-file":
			cfg.Log.MaxFiles, err = strconv.Atoi(v)
		default:
			err = fmt.Errorf("there is no such option")
		}
		if err != nil {
			return &usage{msg: fmt.Sprintf("--log-opt %q: %v", opt, err), fix: "write it as max-size=10m or max-file=3"}
		}
	}
	h := sandbox.HealthConfig{Interval: o.healthInterval, Timeout: o.healthTimeout, StartPeriod: o.healthStartPeriod, StartInterval: o.healthStartInterval, Retries: o.healthRetries}
	switch {
	case o.noHealth && o.healthCmd != "":
		return usagef("--no-healthcheck and --health-cmd contradict each other")
	case o.noHealth:
		h.Test = []string{"NONE"}
	case o.healthCmd != "":
		h.Test = []string{"CMD-SHELL", o.healthCmd}
	}
	cfg.Health = &h
	return nil
}

func (o *runOptions) parseLimits(cfg *sandbox.Config) error {
	switch {
	case o.oomScoreAdj < 0:
		return &usage{msg: fmt.Sprintf("--oom-score-adj %d: an ordinary user cannot protect a process", o.oomScoreAdj), fix: "limit the others with --memory"}
	case o.oomScoreAdj > 1000:
		return usagef("--oom-score-adj %d: want a number from 0 to 1000", o.oomScoreAdj)
	}
	cfg.OOMScoreAdj = o.oomScoreAdj
	for _, u := range o.ulimits {
		l, err := units.ParseUlimit(u)
		if err != nil {
			return &usage{msg: fmt.Sprintf("--ulimit %q: %v", u, err), fix: "write it as nofile=1024:2048"}
		}
		cfg.Ulimits = append(cfg.Ulimits, *l)
	}
	cfg.Sysctls = map[string]string{}
	for _, s := range o.sysctls {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return &usage{msg: fmt.Sprintf("--sysctl %q has no value", s), fix: "write it as net.core.somaxconn=1024"}
		}
		cfg.Sysctls[k] = v
	}
	if v := o.shmSize; v != "" {
		n, err := units.RAMInBytes(v)
		if err != nil || n <= 0 {
			return &usage{msg: fmt.Sprintf("--shm-size %q is not a size", v), fix: "write it as 64m or 1g"}
		}
		cfg.ShmSize = n
	}
	return nil
}
