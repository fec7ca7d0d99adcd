package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// unsupportedFlag is a flag of docker run that sbx knows and does not have: it
// says so instead of shifting the arguments behind it.
type unsupportedFlag struct {
	name, short string
	boolean     bool
	harmless    []string // values that ask for what happens anyway
	why         string
	fix         string
}

// Reasons that several flags share.
const (
	whyCgroup   = "cgroup v2 has no such setting"
	whyOwn      = "every sandbox has its own"
	whyDevice   = "an ordinary user cannot make device nodes"
	whyPlatform = "an image is kept for one platform"
	whyWindows  = "only Windows has it"

	fixDevice = "bind a device that you may open: --volume /dev/NAME:/dev/NAME"
)

func unsupportedFlags() []unsupportedFlag {
	var list []unsupportedFlag
	same := func(why, fix string, names ...string) {
		for _, n := range names {
			name, short, _ := strings.Cut(n, "/")
			list = append(list, unsupportedFlag{name: name, short: short, why: why, fix: fix})
		}
	}
	same(whyCgroup, "", "cpu-rt-period", "cpu-rt-runtime", "memory-swappiness")
	same("the kernel counts it as memory", "use --memory", "kernel-memory")
	same("a sandbox has a systemd scope of its own, or a group in what the user was given", "", "cgroup-parent")
	same(whyDevice, fixDevice, "device", "device-cgroup-rule", "gpus")
	same("the kernel chooses it", "", "link-local-ip")
	same(whyWindows, "", "cpu-count", "cpu-percent", "io-maxbandwidth", "io-maxiops")
	same("annotations are for other runtimes", "use --label", "annotation")
	same("the host name has one part", "--hostname NAME.DOMAIN", "domainname")
	same("the writable layer is an ordinary directory of yours", "limit it with the file system's quotas", "storage-opt")
	same("volumes are directories below sbx's data directory", "", "volume-driver")
	same("volumes are named for each sandbox", "name the volumes: --volume NAME:TARGET", "volumes-from")
	return append(list,
		unsupportedFlag{name: "cgroupns", harmless: []string{"private"}, why: whyOwn},
		unsupportedFlag{name: "ipc", harmless: []string{"private", "shareable"}, why: whyOwn},
		unsupportedFlag{name: "isolation", harmless: []string{"default"}, why: whyWindows},
		unsupportedFlag{name: "pid", harmless: []string{"private"}, why: whyOwn},
		unsupportedFlag{name: "runtime", why: "sbx is the runtime"},
		unsupportedFlag{name: "uts", harmless: []string{"private"}, why: whyOwn},

		unsupportedFlag{name: "disable-content-trust", boolean: true, harmless: []string{"true", "false"}},
		unsupportedFlag{name: "oom-kill-disable", boolean: true, harmless: []string{"false"}, why: whyCgroup},
		unsupportedFlag{name: "privileged", boolean: true, harmless: []string{"false"}, why: "it would need root on this machine", fix: "add what is missing with --cap-add and --security-opt seccomp=unconfined"},
		unsupportedFlag{name: "use-api-socket", boolean: true, harmless: []string{"false"}, why: "there is no daemon with a socket"},
	)
}

// refuse adds flags of docker that a command does not have for the same reason.
func refuse(fs *pflag.FlagSet, why, fix string, names ...string) {
	for _, n := range names {
		defineRefused(fs, unsupportedFlag{name: n, why: why, fix: fix})
	}
}

func defineUnsupported(fs *pflag.FlagSet) { defineRefused(fs, unsupportedFlags()...) }

func defineRefused(fs *pflag.FlagSet, list ...unsupportedFlag) {
	for _, u := range list {
		f := fs.VarPF(&unsupportedValue{u}, u.name, u.short, u.why)
		f.Hidden = true
		if u.boolean {
			f.NoOptDefVal = "true"
		}
	}
}

// unsupportedValue refuses every value except the harmless ones.
type unsupportedValue struct{ unsupportedFlag }

func (v *unsupportedValue) String() string { return "" }

func (v *unsupportedValue) Type() string {
	if v.boolean {
		return "bool"
	}
	return "string"
}

func (v *unsupportedValue) Set(s string) error {
	if v.boolean {
		if b, err := strconv.ParseBool(s); err == nil {
			s = strconv.FormatBool(b)
		}
	}
	if slices.Contains(v.harmless, s) {
		return nil
	}
	return &unsupportedError{flag: v.name, value: s, why: v.why, fix: v.fix, others: len(v.harmless) > 0 && !v.boolean}
}

type unsupportedError struct {
	flag, value, why, fix string
	others                bool // other values are accepted
}

func (e *unsupportedError) Error() string {
	if e.others {
		return fmt.Sprintf("--%s %s is not supported: %s", e.flag, e.value, e.why)
	}
	return fmt.Sprintf("--%s is not supported: %s", e.flag, e.why)
}
