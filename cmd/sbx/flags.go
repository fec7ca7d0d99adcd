package main

import (
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox"
	"github.com/rootless-sbx/sbx/userns"
	"github.com/urfave/cli/v2"
)

func strs(name, usage string, aliases ...string) cli.Flag {
	return &cli.StringSliceFlag{Name: name, Aliases: aliases, Usage: usage}
}

func str(name, usage string, aliases ...string) *cli.StringFlag {
	return &cli.StringFlag{Name: name, Aliases: aliases, Usage: usage}
}

func flag(name, usage string, aliases ...string) *cli.BoolFlag {
	return &cli.BoolFlag{Name: name, Aliases: aliases, Usage: usage}
}

// runFlags are docker run's, by its names; what sbx adds comes last.
func runFlags() []cli.Flag {
	flags := []cli.Flag{
		strs("add-host", "add a `NAME:IP` line to /etc/hosts; the IP may be host-gateway"),
		strs("cap-add", "add a `CAPABILITY`"),
		strs("cap-drop", "drop a `CAPABILITY`, or ALL"),
		str("cidfile", "write the sandbox's id to `FILE`, which must not exist"),
		strs("dns", "name `SERVER` to use instead of the network's"),
		strs("dns-option", "resolver `OPTION`", "dns-opt"),
		strs("dns-search", "search `DOMAIN`"),
		str("entrypoint", "replace the image's entrypoint with `COMMAND`; \"\" clears it"),
		strs("env", "set `NAME=VALUE`, or pass NAME on", "e"),
		strs("env-file", "read variables from `FILE`"),
		strs("expose", "`PORT[-END][/PROTO]` to publish with -P"),
		strs("group-add", "add the supplementary `GROUP`"),
		str("hostname", "`NAME` of the host inside", "h"),
		flag("init", "keep an init as pid 1 that reaps and forwards signals"),
		flag("interactive", "connect standard input", "i"),
		strs("label", "set the label `KEY=VALUE`", "l"),
		strs("mount", "mount by `type=bind|volume|tmpfs,source=...,target=...[,readonly]`"),
		str("name", "`NAME` of the sandbox"),
		&cli.StringFlag{Name: "network", Aliases: []string{"net"}, Value: sandbox.NetworkDefault, Usage: "`NETWORK`: default, none or host"},
		str("platform", "`OS/ARCH[/VARIANT]` of the image"),
		strs("publish", "publish `[[IP:][HOSTPORT]:]PORT[-END][/tcp|udp]`", "p"),
		flag("publish-all", "publish every exposed port on a random host port", "P"),
		&cli.StringFlag{Name: "pull", Value: sandbox.PullMissing, Usage: "pull the image: `missing`, always or never"},
		flag("quiet", "no progress of the pull", "q"),
		flag("read-only", "make the root file system read-only"),
		flag("rm", "remove the sandbox when it ends; a sandbox in the foreground always is"),
		strs("security-opt", "`OPTION`: no-new-privileges, seccomp=FILE|unconfined"),
		str("shm-size", "`SIZE` of /dev/shm (default: 64m)"),
		&cli.BoolFlag{Name: "sig-proxy", Value: true, Usage: "forward signals to the command"},
		str("stop-signal", "`SIGNAL` that asks the command to end"),
		&cli.IntFlag{Name: "stop-timeout", Value: 10, Usage: "`SECONDS` after which it is killed"},
		strs("sysctl", "set the namespaced `KEY=VALUE`"),
		strs("tmpfs", "mount a tmpfs at `PATH[:OPTIONS]`"),
		flag("tty", "give the command a terminal", "t"),
		strs("ulimit", "set the limit `TYPE=SOFT[:HARD]`"),
		str("user", "run as `USER[:GROUP]`", "u"),
		&cli.StringFlag{Name: "userns", Value: string(userns.ModeAuto), Usage: "ids: `auto`, single or keep-id"},
		strs("volume", "mount `[SOURCE:]TARGET[:OPTIONS]`", "v"),
		str("workdir", "working `DIRECTORY`", "w"),

		str("host-access", "let the sandbox reach `PORT[,PORT]` of the host's loopback at host.sbx.internal"),
		flag("insecure", "allow plain HTTP and unverified certificates for the pull"),
		str("link-driver", "network `DRIVER`: tap or packet"),
		&cli.IntFlag{Name: "mtu", Usage: "largest packet of the sandbox's device, in `BYTES`"},
		str("port-driver", "`DRIVER` of published ports: direct, stack or builtin"),
		str("rootfs", "run the root file system in `DIR` instead of an image"),
		str("storage-driver", "`DRIVER`: native, fuse or copy"),
	}
	for name, why := range unsupported {
		flags = append(flags, &cli.StringFlag{Name: name, Hidden: true, Usage: why})
	}
	for name, why := range unsupportedBool {
		flags = append(flags, &cli.BoolFlag{Name: name, Hidden: true, Usage: why})
	}
	return flags
}

// Flags of docker run that sbx knows and does not have: they say so.
var (
	unsupported = map[string]string{
		"memory": "needs cgroup delegation", "cpus": "needs cgroup delegation", "pids-limit": "needs cgroup delegation",
		"cpuset-cpus": "needs cgroup delegation", "memory-swap": "needs cgroup delegation", "cpu-shares": "needs cgroup delegation",
		"restart": "sandboxes run in the foreground", "detach-keys": "sandboxes run in the foreground",
		"device": "an ordinary user cannot make device nodes; bind one with --volume /dev/NAME:/dev/NAME",
		"gpus":   "bind the devices with --volume", "ip": "addresses are chosen by the network", "ip6": "addresses are chosen by the network",
		"pid": "every sandbox has its own", "ipc": "every sandbox has its own", "uts": "every sandbox has its own", "cgroupns": "every sandbox has its own",
		"log-driver": "output goes to the terminal", "log-opt": "output goes to the terminal", "runtime": "sbx is the runtime",
		"volumes-from": "name the volumes with --volume", "link": "sandboxes reach each other by address",
		"network-alias": "sandboxes reach each other by address", "mac-address": "addresses are chosen by the network",
		"health-cmd": "sandboxes run in the foreground", "isolation": "only on Windows",
	}
	unsupportedBool = map[string]string{
		"detach":     "sandboxes run in the foreground; put sbx into the background with &",
		"privileged": "it would need root; add single capabilities with --cap-add",
	}
)

// runConfig turns the command line into a configuration.
func runConfig(c *cli.Context) (sandbox.Config, error) {
	var cfg sandbox.Config
	for _, list := range []map[string]string{unsupported, unsupportedBool} {
		for name, why := range list {
			if c.IsSet(name) {
				return cfg, usagef("--%s is not supported: %s", name, why)
			}
		}
	}
	args := c.Args().Slice()
	if root := c.String("rootfs"); root != "" {
		args = append([]string{""}, args...)
	} else if len(args) == 0 {
		return cfg, usagef("sbx run needs an image; try: sbx run --rm -p 8080:80 demo")
	}
	cfg = sandbox.Config{
		Name: c.String("name"), Image: args[0], RootFS: c.String("rootfs"), Cmd: args[1:], Pull: c.String("pull"), Platform: c.String("platform"),
		Insecure: c.Bool("insecure"), WorkDir: c.String("workdir"), User: c.String("user"), StopSignal: c.String("stop-signal"),
		GroupAdd: c.StringSlice("group-add"), Hostname: c.String("hostname"), TTY: c.Bool("tty"), Init: c.Bool("init"),
		StopTimeout: time.Duration(c.Int("stop-timeout")) * time.Second, UserNS: userns.Mode(c.String("userns")),
		Network: c.String("network"), DNS: c.StringSlice("dns"), DNSSearch: c.StringSlice("dns-search"), DNSOptions: c.StringSlice("dns-option"),
		AddHost: c.StringSlice("add-host"), MTU: c.Int("mtu"), LinkDriver: c.String("link-driver"),
		PublishAll: c.Bool("publish-all"), Expose: c.StringSlice("expose"), PortDriver: c.String("port-driver"),
		ReadOnly: c.Bool("read-only"), StorageDriver: c.String("storage-driver"),
		CapAdd: c.StringSlice("cap-add"), CapDrop: c.StringSlice("cap-drop"), SecurityOpt: c.StringSlice("security-opt"),
	}
	if c.IsSet("entrypoint") {
		cfg.Entrypoint = []string{}
		if v := c.String("entrypoint"); v != "" {
			cfg.Entrypoint = []string{v}
		}
	}
	for _, parse := range []func(*cli.Context, *sandbox.Config) error{
		parseEnv, parseLabels, parseMounts, parsePorts, parseLimits,
	} {
		if err := parse(c, &cfg); err != nil {
			return cfg, err
		}
	}
	return cfg, nil
}

// parseEnv reads files first: a variable on the command line wins.
func parseEnv(c *cli.Context, cfg *sandbox.Config) error {
	cfg.LookupEnv = os.LookupEnv
	for _, name := range c.StringSlice("env-file") {
		f, err := os.Open(name)
		if err != nil {
			return usagef("--env-file: %v", err)
		}
		env, err := sandbox.ParseEnvFile(f, name, os.LookupEnv)
		f.Close()
		if err != nil {
			return usagef("--env-file: %v", err)
		}
		cfg.Env = append(cfg.Env, env...)
	}
	for _, e := range c.StringSlice("env") {
		if strings.HasPrefix(e, "=") || e == "" {
			return usagef("--env %q: no name before the =", e)
		}
		cfg.Env = append(cfg.Env, e)
	}
	return nil
}

func parseLabels(c *cli.Context, cfg *sandbox.Config) error {
	cfg.Labels = map[string]string{}
	for _, l := range c.StringSlice("label") {
		k, v, _ := strings.Cut(l, "=")
		if k == "" {
			return usagef("--label %q: no key before the =", l)
		}
		cfg.Labels[k] = v
	}
	return nil
}

func parseMounts(c *cli.Context, cfg *sandbox.Config) error {
	cwd, err := os.Getwd()
	if err != nil {
		return err
	}
	tmpfs := func(s, _ string) (fsoverlay.Mount, error) { return fsoverlay.ParseTmpfs(s) }
	for _, k := range []struct {
		flag  string
		parse func(s, cwd string) (fsoverlay.Mount, error)
	}{{"volume", fsoverlay.ParseVolume}, {"mount", fsoverlay.ParseMount}, {"tmpfs", tmpfs}} {
		for _, v := range c.StringSlice(k.flag) {
			m, err := k.parse(v, cwd)
			if err != nil {
				return err
			}
			cfg.Mounts = append(cfg.Mounts, m)
		}
	}
	return nil
}

func parsePorts(c *cli.Context, cfg *sandbox.Config) (err error) {
	if cfg.Publish, err = portfwd.ParsePublish(c.StringSlice("publish")); err != nil {
		return usagef("--publish: %v", err)
	}
	for _, p := range strings.Split(c.String("host-access"), ",") {
		if p = strings.TrimSpace(p); p == "" {
			continue
		}
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return usagef("--host-access %s: %q is not a port between 1 and 65535", c.String("host-access"), p)
		}
		cfg.HostAccess = append(cfg.HostAccess, uint16(n))
	}
	return nil
}

func parseLimits(c *cli.Context, cfg *sandbox.Config) error {
	for _, u := range c.StringSlice("ulimit") {
		l, err := units.ParseUlimit(u)
		if err != nil {
			return usagef("--ulimit: %v", err)
		}
		cfg.Ulimits = append(cfg.Ulimits, *l)
	}
	cfg.Sysctls = map[string]string{}
	for _, s := range c.StringSlice("sysctl") {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return usagef("--sysctl %q is not KEY=VALUE", s)
		}
		cfg.Sysctls[k] = v
	}
	if v := c.String("shm-size"); v != "" {
		n, err := units.RAMInBytes(v)
		if err != nil || n <= 0 {
			return usagef("--shm-size %q is not a size such as 64m", v)
		}
		cfg.ShmSize = n
	}
	return nil
}
