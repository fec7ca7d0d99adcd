package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rootless-sbx/sbx/cgroup"
	"github.com/rootless-sbx/sbx/sandbox"
	"github.com/rootless-sbx/sbx/userns"
	"github.com/spf13/pflag"
)

// runOptions are the flags of sbx run as they were typed.
type runOptions struct {
	name, hostname, workdir, user, entrypoint, cidFile   string
	env, envFiles, labels, labelFiles, groups, attach    []string
	interactive, tty, init, rm, sigProxy, quiet, timings bool
	stopSignal                                           string
	stopTimeout                                          int

	creates, detach, noHealth                 bool // creates: it is sbx create
	restart, logDriver, detachKeys, healthCmd string
	logOpts                                   []string
	healthInterval, healthTimeout             time.Duration
	healthStartPeriod, healthStartInterval    time.Duration
	healthRetries                             int

	pull, platform, rootfs string
	insecure               bool

	networks, publish, expose, dns, dnsSearch, dnsOptions, addHosts, hostAccess []string
	publishAll, metadata                                                        bool
	place                                                                       placeOptions
	links                                                                       []string
	linkDriver, portDriver                                                      string
	mtu                                                                         int

	volumes, mounts, tmpfs []string
	readOnly               bool
	shmSize, storageDriver string

	userns                                         string
	capAdd, capDrop, securityOpt, ulimits, sysctls []string
	oomScoreAdj                                    int
	limits                                         cgroup.Limits

	changed func(flag string) bool
}

// Values that a flag takes; the first of them is the default.
var (
	pullPolicies   = []string{sandbox.PullMissing, sandbox.PullAlways, sandbox.PullNever}
	usernsModes    = []string{string(userns.ModeAuto), string(userns.ModeSingle), string(userns.ModeKeepID)}
	linkDrivers    = []string{"tap", "packet"}
	portDrivers    = []string{"direct", "stack", "builtin"}
	storageDrivers = []string{"native", "fuse", "copy"}
	logDrivers     = []string{"json-file", "none", "local", "journald"}
	attachStreams  = []string{"stdin", "stdout", "stderr"}
)

// aliases are other spellings, Docker's own.
var aliases = map[string]string{"net": "network", "dns-opt": "dns-option", "net-alias": "network-alias"}

// define adds docker run's flags by its names, with what sbx has besides.
func (o *runOptions) define(c *command) {
	fs := c.Flags()
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if full := aliases[name]; full != "" {
			name = full
		}
		return pflag.NormalizedName(name)
	})
	o.changed = fs.Changed
	group(fs, "Command", o.commandFlags)
	group(fs, "Life", o.lifeFlags)
	group(fs, "Image", o.imageFlags)
	group(fs, "Network and ports", o.networkFlags)
	group(fs, "Files", o.fileFlags)
	group(fs, "Privileges", o.securityFlags)
	group(fs, "Limits", o.limitFlags)
	defineUnsupported(fs)
}

// group puts the flags that define adds under a heading of the help.
func group(fs *pflag.FlagSet, title string, define func(*pflag.FlagSet)) {
	before := map[string]bool{}
	fs.VisitAll(func(f *pflag.Flag) { before[f.Name] = true })
	define(fs)
	fs.VisitAll(func(f *pflag.Flag) {
		if !before[f.Name] {
			f.Annotations = map[string][]string{groupKey: {title}}
		}
	})
}

func (o *runOptions) commandFlags(fs *pflag.FlagSet) {
	fs.BoolVarP(&o.interactive, "interactive", "i", false, "connect standard input")
	fs.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
	lists(fs, &o.attach, "attach", "a", "connect this `STREAM` only: stdin, stdout or stderr", attachStreams...)
	lists(fs, &o.env, "env", "e", "set `NAME=VALUE`, or pass the caller's NAME on")
	lists(fs, &o.envFiles, "env-file", "", "read variables from `FILE`")
	fs.StringVarP(&o.workdir, "workdir", "w", "", "start in `DIR`")
	fs.StringVarP(&o.user, "user", "u", "", "run as `USER`[:GROUP]")
	lists(fs, &o.groups, "group-add", "", "add the supplementary `GROUP`")
	fs.StringVar(&o.entrypoint, "entrypoint", "", "replace the image's entrypoint with `COMMAND`; \"\" clears it")
	fs.BoolVar(&o.init, "init", false, "keep an init as pid 1 that reaps and forwards signals")
	fs.StringVar(&o.name, "name", "", "`NAME` of the sandbox")
	fs.StringVarP(&o.hostname, "hostname", "h", "", "`NAME` of the host inside")
	lists(fs, &o.labels, "label", "l", "set the label `KEY=VALUE`")
	lists(fs, &o.labelFiles, "label-file", "", "read labels from `FILE`")
	fs.StringVar(&o.cidFile, "cidfile", "", "write the sandbox's id to `FILE`, which must not exist")
	fs.BoolVar(&o.rm, "rm", false, "remove the sandbox when it ends")
	if o.creates {
		fs.StringVar(&o.stopSignal, "stop-signal", "", "`SIGNAL` that asks the command to end")
		fs.IntVar(&o.stopTimeout, "stop-timeout", 10, "`SECONDS` after which it is killed; -1 is never")
		return
	}
	fs.BoolVarP(&o.detach, "detach", "d", false, "leave the sandbox to itself, and print its id")
	fs.StringVar(&o.detachKeys, "detach-keys", defaultDetachKeys, "`KEYS` that leave the sandbox with its terminal to itself; not with --rm")
	fs.BoolVar(&o.sigProxy, "sig-proxy", true, "forward signals to the command")
	fs.BoolVar(&o.timings, "timings", false, "print how long each stage took, at the end")
	fs.StringVar(&o.stopSignal, "stop-signal", "", "`SIGNAL` that asks the command to end")
	fs.IntVar(&o.stopTimeout, "stop-timeout", 10, "`SECONDS` after which it is killed; -1 is never")
}

func (o *runOptions) lifeFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.restart, "restart", "no", "start it again when it ends: `POLICY` is no, on-failure[:N], always or unless-stopped")
	one(fs, &o.logDriver, "log-driver", "", "where its output is kept: `DRIVER` is json-file or none (default: json-file; none with --rm in the foreground)", logDrivers...)
	lists(fs, &o.logOpts, "log-opt", "", "`OPTION` of the log: max-size=SIZE or max-file=N")
	fs.StringVar(&o.healthCmd, "health-cmd", "", "`COMMAND` for the shell that checks whether it works")
	fs.DurationVar(&o.healthInterval, "health-interval", 0, "`TIME` between two checks (default 30s)")
	fs.DurationVar(&o.healthTimeout, "health-timeout", 0, "`TIME` that a check may take (default 30s)")
	fs.DurationVar(&o.healthStartPeriod, "health-start-period", 0, "`TIME` at the start in which failures do not count")
	fs.DurationVar(&o.healthStartInterval, "health-start-interval", 0, "`TIME` between two checks then (default 5s)")
	fs.IntVar(&o.healthRetries, "health-retries", 0, "`N` failures in a row make it unhealthy (default 3)")
	fs.BoolVar(&o.noHealth, "no-healthcheck", false, "leave out the image's check")
}

func (o *runOptions) imageFlags(fs *pflag.FlagSet) {
	one(fs, &o.pull, "pull", pullPolicies[0], "when to pull: `POLICY` is missing, always or never", pullPolicies...)
	fs.StringVar(&o.platform, "platform", "", "`PLATFORM` of the image, as OS/ARCH[/VARIANT]")
	fs.BoolVar(&o.insecure, "insecure", false, "allow plain HTTP and unverified certificates for the pull")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "no progress of the pull")
	fs.StringVar(&o.rootfs, "rootfs", "", "run the file system in `DIR` instead of an image")
}

func (o *runOptions) networkFlags(fs *pflag.FlagSet) {
	lists(fs, &o.publish, "publish", "p", "publish a port; `SPEC` is [[IP:][HOSTPORT[-END]]:]PORT[-END][/tcp|udp]")
	fs.BoolVarP(&o.publishAll, "publish-all", "P", false, "publish every exposed port on a random host port")
	lists(fs, &o.expose, "expose", "", "`PORT` to publish with -P, as PORT[-END][/tcp|udp]")
	lists(fs, &o.networks, "network", "", "`NETWORK` to be on, as eth0, eth1, ...: a name, or name=N,alias=A,ip=IP,ip6=IP,mac=MAC; or none, host, container:SANDBOX to share that one's, ns:PATH; also --net")
	o.place.define(fs, "network-alias")
	lists(fs, &o.links, "link", "", "know the sandbox of `NAME`[:ALIAS] by its alias, with its ports in the environment")
	fs.StringVar(&o.place.mac, "mac-address", "", "`MAC` address in the network (default: chosen)")
	fs.BoolVar(&o.metadata, "metadata-access", false, "let the sandbox reach the addresses at which a cloud tells its machines their secrets: 169.254.0.0/16 and some others")
	lists(fs, &o.hostAccess, "host-access", "", "let the sandbox reach `PORTS` of the host's loopback, as host.sbx.internal; 5432 or 80,8000-8010")
	lists(fs, &o.dns, "dns", "", "name server `IP` to use instead of the network's")
	lists(fs, &o.dnsSearch, "dns-search", "", "search `DOMAIN`")
	lists(fs, &o.dnsOptions, "dns-option", "", "resolver `OPTION`")
	lists(fs, &o.addHosts, "add-host", "", "add `NAME:IP` to /etc/hosts; IP may be host-gateway")
	fs.IntVar(&o.mtu, "mtu", 0, "largest packet of the device, in `BYTES` (default 65520)")
	one(fs, &o.linkDriver, "link-driver", "", "`DRIVER` of the device: tap or packet (default: the first that works)", linkDrivers...)
	one(fs, &o.portDriver, "port-driver", "", "`DRIVER` of published ports: direct, stack or builtin (default: chosen for each connection)", portDrivers...)
}

func (o *runOptions) fileFlags(fs *pflag.FlagSet) {
	lists(fs, &o.volumes, "volume", "v", "mount a directory or a volume; `SPEC` is [SOURCE:]TARGET[:OPTIONS], such as ro, or allow=read+write: what the command may do there, of read, write, create, mkdir, remove, symlink, special, exec")
	lists(fs, &o.mounts, "mount", "", "the same in words; `SPEC` is type=bind|volume|tmpfs, source=..., target=..., readonly, allow=read+write with commas between")
	lists(fs, &o.tmpfs, "tmpfs", "", "mount a tmpfs at `PATH`[:OPTIONS]")
	fs.BoolVar(&o.readOnly, "read-only", false, "make the root file system read-only")
	fs.StringVar(&o.shmSize, "shm-size", "", "`SIZE` of /dev/shm (default 64m)")
	one(fs, &o.storageDriver, "storage-driver", "", "`DRIVER` of the root: native, fuse or copy (default: the first that works)", storageDrivers...)
}

func (o *runOptions) securityFlags(fs *pflag.FlagSet) {
	one(fs, &o.userns, "userns", usernsModes[0], "user ids: `MODE` is auto, single or keep-id", usernsModes...)
	lists(fs, &o.capAdd, "cap-add", "", "add a `CAPABILITY`, or ALL")
	lists(fs, &o.capDrop, "cap-drop", "", "drop a `CAPABILITY`, or ALL")
	lists(fs, &o.securityOpt, "security-opt", "", "`OPTION`: no-new-privileges, seccomp=FILE, seccomp=unconfined, seccomp=builtin-32bit, systempaths=unconfined")
	lists(fs, &o.sysctls, "sysctl", "", "set the namespaced `KEY=VALUE`")
}

// one defines a flag with one value, of choices if there are any.
func one(fs *pflag.FlagSet, p *string, name, def, usage string, choices ...string) {
	*p = def
	fs.Var(&value{one: p, choices: choices}, name, usage)
}

// lists defines a flag that may be repeated. Commas belong to the values.
func lists(fs *pflag.FlagSet, p *[]string, name, short, usage string, choices ...string) {
	fs.VarP(&value{list: p, choices: choices}, name, short, usage)
}

// value is a flag's value; completion offers its choices too.
type value struct {
	one     *string
	list    *[]string
	choices []string
}

func (v *value) String() string {
	if v.one == nil {
		return ""
	}
	return *v.one
}

func (v *value) Type() string {
	if v.list != nil {
		return "list"
	}
	return "string"
}

func (v *value) Set(s string) error {
	if len(v.choices) > 0 && !slices.Contains(v.choices, s) {
		last := len(v.choices) - 1
		return fmt.Errorf("want %s or %s", strings.Join(v.choices[:last], ", "), v.choices[last])
	}
	if v.list != nil {
		*v.list = append(*v.list, s)
	} else {
		*v.one = s
	}
	return nil
}
