package fsoverlay

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// DefaultShmSize is the size of /dev/shm unless the user says otherwise.
const DefaultShmSize = 64 << 20

// DefaultMaskedPaths are hidden and DefaultReadonlyPaths read-only, as with Docker.
var (
	DefaultMaskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
		"/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
		"/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	DefaultReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// PlanConfig is what a plan is made of.
type PlanConfig struct {
	// Root is the directory where the root file system is mounted.
	Root string
	// ReadOnly makes the root read-only; /dev, /dev/shm, tmpfs, volumes and binds
	// stay as they are.
	ReadOnly bool
	// Mounts are the user's. Volumes must have been through Volumes.Resolve.
	Mounts []Mount
	// Hosts, Hostname and ResolvConf are files in the sandbox's state directory
	// that appear, writable, in /etc. Empty: the image's own stay.
	Hosts, Hostname, ResolvConf string
	// ShmSize is the size of /dev/shm; 0 means DefaultShmSize.
	ShmSize int64
	// MaskedPaths and ReadonlyPaths; nil means Docker's, empty means none.
	MaskedPaths, ReadonlyPaths []string
	// NetworkHost says that init is in the host's network namespace, where a new
	// sysfs may not be mounted: the host's is bound read-only.
	NetworkHost bool
	// HostCgroupNS says that init has no cgroup namespace of its own.
	HostCgroupNS bool
	// CgroupWritable leaves /sys/fs/cgroup writable.
	CgroupWritable bool
	// SingleID says that only one id is mapped, so that group 5 (tty) does not exist.
	SingleID bool
	// TTY makes the file that MountConsole needs.
	TTY bool
}

// Order of the plan: stop propagation, take the root, /proc, /dev and what is in
// it, /sys, then files of /etc and the user's mounts by depth, then restrict, then
// pivot. Restrictions come last so that no mount of the user is hidden by luck or
// escapes them.

// BuildPlan makes the plan. It touches nothing.
func BuildPlan(c PlanConfig) (Plan, error) {
	if !path.IsAbs(c.Root) {
		return nil, failf(CodeInvalid, "mount plan", c.Root, "", "the root must be an absolute path")
	}
	if err := CheckMounts(c.Mounts); err != nil {
		return nil, err
	}
	user := map[string]bool{}
	for _, m := range c.Mounts {
		t := path.Clean(m.Target)
		if t == "/proc" || strings.HasPrefix(t, "/proc/") && !slices.Contains(procFiles, t) {
			return nil, failf(CodeTarget, "mount", t, "choose a target outside /proc", "nothing may be mounted there")
		}
		user[t] = true
	}
	p := Plan{{Kind: KindSlave}, {Kind: KindRoot, Source: c.Root}}
	p = append(p, procOps()...)
	p = append(p, devOps(&c, user)...)
	p = append(p, sysOps(&c, user)...)
	for _, m := range byDepth(withEtc(&c, user)) {
		ops, err := userOps(m)
		if err != nil {
			return nil, err
		}
		p = append(p, ops...)
	}
	if c.TTY && !user["/dev"] {
		p = append(p, Op{Kind: KindFile, Target: "/dev/console", NoLinks: true})
	}
	p = append(p, restrictOps(&c, user)...)
	return append(p, Op{Kind: KindPivot}), nil
}

// BuildFilesPlan makes the part of the plan that shows files to somebody outside: the
// root with volumes and bind mounts, and without what only a process in it has, such
// as proc, devices and tmpfs. "/" stays what it was.
func BuildFilesPlan(c PlanConfig) (Plan, error) {
	if err := CheckMounts(c.Mounts); err != nil {
		return nil, err
	}
	user := map[string]bool{}
	for _, m := range c.Mounts {
		user[path.Clean(m.Target)] = true
	}
	p := Plan{{Kind: KindSlave}, {Kind: KindRoot, Source: c.Root}}
	for _, m := range byDepth(withEtc(&c, user)) {
		if t := path.Clean(m.Target); m.Type == TypeTmpfs || KernelDir(t) {
			continue
		}
		ops, err := userOps(m)
		if err != nil {
			return nil, err
		}
		p = append(p, ops...)
	}
	if c.ReadOnly {
		p = append(p, Op{Kind: KindReadonly, Target: "/", TopOnly: true})
	}
	return p, nil
}

// KernelDir says whether a clean path is in one of the directories whose contents are
// the kernel's and not the sandbox's.
func KernelDir(p string) bool {
	for _, d := range KernelDirs {
		if p == d || strings.HasPrefix(p, d+"/") {
			return true
		}
	}
	return false
}

// KernelDirs are these directories.
var KernelDirs = []string{"/dev", "/proc", "/sys"}

func procOps() Plan {
	bind := &Op{Kind: KindBind, Source: "/proc", Target: "/proc", Attrs: ReadOnly | NoSuid | NoDev | NoExec, NoLinks: true, Outer: true,
		Optional: "/proc is that of the surrounding container, read-only and with its process numbers: a new one is refused because parts of it are masked"}
	return Plan{{Kind: KindMount, Type: "proc", Target: "/proc", Attrs: NoSuid | NoDev | NoExec, NoLinks: true, Else: bind}}
}

func devOps(c *PlanConfig, user map[string]bool) Plan {
	var p Plan
	if !user["/dev"] {
		p = append(p, Op{Kind: KindMount, Type: "tmpfs", Target: "/dev", Attrs: NoSuid | StrictAtime, NoLinks: true,
			Options: []string{"mode=0755", "size=65536k"}})
		for _, d := range []struct{ name, dev string }{
			{"null", "1:3"}, {"zero", "1:5"}, {"full", "1:7"}, {"random", "1:8"}, {"urandom", "1:9"}, {"tty", "5:0"},
		} {
			p = append(p, Op{Kind: KindDevice, Source: "/dev/" + d.name, Target: "/dev/" + d.name, Device: d.dev,
				Attrs: NoSuid | NoExec, NoLinks: true})
		}
		for _, l := range [][2]string{
			{"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"}, {"/proc/self/fd/1", "/dev/stdout"},
			{"/proc/self/fd/2", "/dev/stderr"}, {"/proc/kcore", "/dev/core"}, {"pts/ptmx", "/dev/ptmx"},
		} {
			p = append(p, Op{Kind: KindSymlink, Source: l[0], Target: l[1]})
		}
	}
	// With the host's /dev bound by the user these would cover parts of it, as
	// with Docker; they come after that mount.
	if user["/dev"] {
		return p
	}
	return append(p, devMounts(c, user)...)
}

func devMounts(c *PlanConfig, user map[string]bool) Plan {
	pts := []string{"newinstance", "ptmxmode=0666", "mode=0620"}
	if !c.SingleID {
		pts = append(pts, "gid=5")
	}
	shm := c.ShmSize
	if shm <= 0 {
		shm = DefaultShmSize
	}
	all := Plan{
		{Kind: KindMount, Type: "devpts", Target: "/dev/pts", Attrs: NoSuid | NoExec, Options: pts, NoLinks: true},
		{Kind: KindMount, Type: "mqueue", Target: "/dev/mqueue", Attrs: NoSuid | NoDev | NoExec, NoLinks: true,
			Optional: "no POSIX message queues in /dev/mqueue"},
		{Kind: KindMount, Type: "tmpfs", Target: "/dev/shm", Attrs: NoSuid | NoDev | NoExec, NoLinks: true,
			Options: []string{"mode=1777", fmt.Sprintf("size=%d", shm)}},
	}
	return slices.DeleteFunc(all, func(op Op) bool { return user[op.Target] })
}

func sysOps(c *PlanConfig, user map[string]bool) Plan {
	if user["/sys"] {
		return nil
	}
	const quiet = ReadOnly | NoSuid | NoDev | NoExec
	sys := Op{Kind: KindBind, Source: "/sys", Target: "/sys", Attrs: quiet, NoLinks: true}
	if c.NetworkHost {
		// The host's cgroup file systems come along, read-only.
		return Plan{sys}
	}
	sys.Outer = true
	sys.Optional = "/sys is that of the surrounding container: a new one is refused because parts of it are masked"
	p := Plan{{Kind: KindMount, Type: "sysfs", Target: "/sys", Attrs: quiet, NoLinks: true, Else: &sys}}
	if c.HostCgroupNS || user["/sys/fs/cgroup"] {
		return p
	}
	a := Attr(quiet)
	if c.CgroupWritable {
		a &^= ReadOnly
	}
	return append(p, Op{Kind: KindMount, Type: "cgroup2", Target: "/sys/fs/cgroup", Attrs: a, NoLinks: true,
		Optional: "no /sys/fs/cgroup in the sandbox"})
}

// withEtc adds the files of /etc that the user does not mount over.
func withEtc(c *PlanConfig, user map[string]bool) []Mount {
	var ms []Mount
	for _, f := range []struct{ source, target string }{
		{c.ResolvConf, "/etc/resolv.conf"}, {c.Hostname, "/etc/hostname"}, {c.Hosts, "/etc/hosts"},
	} {
		if f.source != "" && !user[f.target] {
			ms = append(ms, Mount{Type: TypeBind, Source: f.source, Target: f.target})
		}
	}
	return append(ms, c.Mounts...)
}

// procFiles are the only places in /proc that a user may mount on, as with runc:
// tools that show a container's share of the machine live on it.
var procFiles = []string{
	"/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime",
	"/proc/loadavg", "/proc/slabinfo",
}

func userOps(m Mount) (Plan, error) {
	t := path.Clean(m.Target)
	op := Op{Target: t, User: true, Propagation: m.Propagation}
	if slices.Contains(procFiles, t) {
		op.User, op.NoLinks = false, true
	}
	op.Attrs = m.attrs()
	switch m.Type {
	case TypeBind, TypeVolume:
		op.Kind, op.Source, op.TopOnly, op.AttrsTopOnly = KindBind, m.Source, m.NonRecursive, m.SubmountsWritable
		if m.Type == TypeBind {
			if !path.IsAbs(m.Source) {
				return nil, failf(CodeSource, "bind mount", t, "", "the host path %q is not absolute", m.Source)
			}
			return Plan{op}, nil
		}
		if !path.IsAbs(m.DataDir) {
			return nil, failf(CodeNoVolume, "volume", m.Source, "", "it has no data directory")
		}
		op.Source, op.Subpath = m.DataDir, m.Subpath
		if m.NoCopy || m.Subpath != "" {
			return Plan{op}, nil
		}
		return Plan{{Kind: KindCopyUp, Source: m.DataDir, Target: t, User: true, IfExists: true}, op}, nil
	case TypeTmpfs:
		op.Kind, op.Type = KindMount, "tmpfs"
		op.Attrs |= m.Attrs
		if m.Size > 0 {
			op.Options = append(op.Options, fmt.Sprintf("size=%d", m.Size))
		}
		if m.ModeSet {
			op.Options = append(op.Options, fmt.Sprintf("mode=%04o", m.Mode))
		} else {
			op.KeepMode = true
		}
		op.Options = append(op.Options, m.Options...)
		return Plan{op}, nil
	}
	return nil, failf(CodeInvalid, "mount", t, "use bind, volume or tmpfs", "unknown type %q", m.Type)
}

func restrictOps(c *PlanConfig, user map[string]bool) Plan {
	masked, ro := c.MaskedPaths, c.ReadonlyPaths
	if masked == nil {
		masked = DefaultMaskedPaths
	}
	if ro == nil {
		ro = DefaultReadonlyPaths
	}
	var p Plan
	if user["/dev"] {
		for _, op := range devMounts(c, user) {
			op.IfExists = true
			p = append(p, op)
		}
	}
	for _, t := range ro {
		p = append(p, Op{Kind: KindReadonly, Target: path.Clean(t), IfExists: true})
	}
	for _, t := range masked {
		p = append(p, Op{Kind: KindMask, Target: path.Clean(t), IfExists: true})
	}
	if c.ReadOnly {
		p = append(p, Op{Kind: KindReadonly, Target: "/", TopOnly: true})
	}
	return p
}
