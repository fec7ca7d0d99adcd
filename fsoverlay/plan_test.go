package fsoverlay

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/internal/wire"
)

// job is what the test tells its pid 1.
type job struct {
	Spec      RootSpec
	Plan      Plan
	NoSetattr bool
	Check     string
	// Nested puts pid 1 into one more user namespace, as in a container whose
	// /proc is partly masked.
	Nested bool `json:"-"`
}

// initMain is pid 1: it mounts the root, applies the plan and runs one check.
func initMain() {
	out := json.NewEncoder(os.NewFile(4, "result"))
	var j job
	if err := json.NewDecoder(os.NewFile(3, "job")).Decode(&j); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	r := result{}
	notes, err := func() ([]string, error) {
		d, err := NewDriver(j.Spec.Driver, nil)
		if err != nil {
			return nil, err
		}
		if err := d.Mount(j.Spec); err != nil {
			return nil, err
		}
		return j.Plan.apply(&applier{root: -1, noSetattr: j.NoSetattr})
	}()
	r.Notes, r.Err = notes, wire.ToError("", err)
	if err == nil {
		initChecks[j.Check](&r)
		var st syscall.Stat_t
		for fd := 5; fd < 64; fd++ {
			if syscall.Fstat(fd, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFDIR {
				r.fail("descriptor %d is left open on a directory", fd)
			}
		}
	}
	if err := out.Encode(r); err != nil {
		os.Exit(3)
	}
	os.Exit(0)
}

type result struct {
	Notes  []string
	Err    *wire.Error
	Failed []string
}

func (r *result) fail(format string, a ...any) {
	r.Failed = append(r.Failed, fmt.Sprintf(format, a...))
}

func (r *result) want(ok bool, format string, a ...any) {
	if !ok {
		r.fail(format, a...)
	}
}

func (r *result) file(path, text string) {
	b, err := os.ReadFile(path)
	r.want(err == nil && string(b) == text, "%s: %q, %v; want %q", path, b, err, text)
}

func (r *result) errno(err error, want syscall.Errno, what string) {
	r.want(errors.Is(err, want), "%s: %v; want %v", what, err, want)
}

// runInit clones pid 1 with all namespaces of a sandbox.
func runInit(t *testing.T, j job) result {
	t.Helper()
	in, err := json.Marshal(j)
	must(t, err)
	jr, jw, err := os.Pipe()
	must(t, err)
	rr, rw, err := os.Pipe()
	must(t, err)
	defer rr.Close()
	go func() { jw.Write(in); jw.Close() }()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{envRole + "=" + roleInit}
	stderr := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = stderr, stderr
	cmd.ExtraFiles = []*os.File{jr, rw}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP,
		Pdeathsig:  syscall.SIGKILL,
	}
	for c := range uintptr(unix.CAP_LAST_CAP + 1) {
		cmd.SysProcAttr.AmbientCaps = append(cmd.SysProcAttr.AmbientCaps, c)
	}
	if j.Nested {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
		cmd.SysProcAttr.GidMappings = cmd.SysProcAttr.UidMappings
	}
	err = cmd.Start()
	jr.Close()
	rw.Close()
	must(t, err)
	var r result
	derr := json.NewDecoder(rr).Decode(&r)
	if err := errors.Join(cmd.Wait(), derr); err != nil {
		t.Fatalf("init: %v\n%s", err, stderr)
	}
	return r
}

// rootEnv is a root with one layer that looks like an image.
func rootEnv(t *testing.T, driver string) (*env, string) {
	e := newEnv(t, driver)
	l := e.layer()
	for _, d := range []string{"proc", "sys", "dev", "etc", "tmp", "home", "run"} {
		must(t, os.Mkdir(filepath.Join(l, d), 0o755))
	}
	must(t, os.Chmod(l+"/tmp", 0o777|fs.ModeSticky))
	return e, l
}

func (e *env) start(t *testing.T, c PlanConfig, check string, edit ...func(*job)) result {
	t.Helper()
	d, err := NewDriver(e.spec.Driver, nil)
	must(t, err)
	before := mountCount(t)
	prep, err := d.Prepare(t.Context(), e.spec)
	must(t, err)
	defer func() {
		must(t, prep.Close())
		if n := mountCount(t); n != before {
			t.Errorf("%d mounts, %d before", n, before)
		}
	}()
	c.Root = e.spec.Merged
	p, err := BuildPlan(c)
	must(t, err)
	j := job{Spec: e.spec, Plan: p, Check: check}
	for _, f := range edit {
		f(&j)
	}
	r := runInit(t, j)
	for _, f := range r.Failed {
		t.Error(f)
	}
	return r
}

func TestPlanRange(t *testing.T) {
	if inUserns(t, roleRange) {
		planSuite(t, false)
	}
}

func TestPlanSingleID(t *testing.T) {
	if inUserns(t, roleSingle) {
		planSuite(t, true)
	}
}

func planSuite(t *testing.T, single bool) {
	for _, d := range Drivers {
		t.Run(d, func(t *testing.T) { planWhole(t, d, single, false) })
	}
	t.Run("without mount_setattr", func(t *testing.T) { planWhole(t, DriverNative, single, true) })
	t.Run("default", func(t *testing.T) {
		e, _ := rootEnv(t, DriverNative)
		r := e.start(t, PlanConfig{SingleID: single}, "default")
		if r.Err != nil || len(r.Notes) > 0 {
			t.Errorf("%v, notes %q", r.Err, r.Notes)
		}
	})
	t.Run("hostile image", func(t *testing.T) { planHostile(t, single) })
	t.Run("masked proc", func(t *testing.T) {
		must(t, unix.Mount("tmpfs", "/proc/sys", "tmpfs", unix.MS_RDONLY, ""))
		defer unix.Unmount("/proc/sys", unix.MNT_DETACH)
		e, _ := rootEnv(t, DriverNative)
		r := e.start(t, PlanConfig{SingleID: true}, "masked", func(j *job) { j.Nested = true })
		if r.Err != nil || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "/proc is that of the surrounding container") {
			t.Errorf("%v, notes %q", r.Err, r.Notes)
		}
	})
	t.Run("host network", func(t *testing.T) {
		e, _ := rootEnv(t, DriverNative)
		r := e.start(t, PlanConfig{SingleID: single, NetworkHost: true, MaskedPaths: []string{}, ReadonlyPaths: []string{}}, "host network")
		if r.Err != nil || len(r.Notes) > 0 {
			t.Errorf("%v, notes %q", r.Err, r.Notes)
		}
	})
	t.Run("the host's trees", func(t *testing.T) {
		e, _ := rootEnv(t, DriverNative)
		r := e.start(t, PlanConfig{SingleID: single, TTY: true, Mounts: []Mount{
			{Type: TypeBind, Source: "/dev", Target: "/dev"}, {Type: TypeBind, Source: "/sys", Target: "/sys", ReadOnly: true},
			{Type: TypeBind, Source: "/", Target: "/host", ReadOnly: true, Propagation: "rslave"},
			{Type: TypeBind, Source: "/proc", Target: "/hostproc"},
			{Type: TypeBind, Source: "/proc/uptime", Target: "/proc/uptime"},
		}}, "host trees")
		if r.Err != nil || len(r.Notes) > 0 {
			t.Errorf("%v, notes %q", r.Err, r.Notes)
		}
	})
	t.Run("detached fuse", func(t *testing.T) { planDetach(t, single) })
	t.Run("errors", func(t *testing.T) { planErrors(t, single) })
}

func planWhole(t *testing.T, driver string, single, noSetattr bool) {
	e, l := rootEnv(t, driver)
	write(t, l+"/data/seed", "seed")
	must(t, os.Chmod(l+"/data", 0o751))
	must(t, os.Mkdir(l+"/scratch", 0o711))
	host := e.path("host")
	write(t, host+"/rw/f", "rw")
	write(t, host+"/ro/f", "ro")
	must(t, os.Mkdir(host+"/ro/sub", 0o755))
	must(t, unix.Mount("tmpfs", host+"/ro/sub", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""))
	defer unix.Unmount(host+"/ro/sub", unix.MNT_DETACH)
	write(t, host+"/ro/sub/g", "g")
	write(t, host+"/file", "file")
	for _, n := range []string{"hosts", "hostname", "resolv.conf"} {
		write(t, host+"/"+n, n)
	}
	write(t, host+"/vol/_data/.keep", "")
	must(t, os.Remove(host+"/vol/_data/.keep"))
	c := PlanConfig{
		SingleID: single, ReadOnly: true, TTY: true, ShmSize: 1 << 20,
		Hosts: host + "/hosts", Hostname: host + "/hostname", ResolvConf: host + "/resolv.conf",
		Mounts: []Mount{
			{Type: TypeBind, Source: host + "/file", Target: "/deep/er/file"},
			{Type: TypeBind, Source: host + "/rw", Target: "/deep"},
			{Type: TypeBind, Source: host + "/ro", Target: "/ro", ReadOnly: true},
			{Type: TypeBind, Source: host + "/ro", Target: "/ro-top", ReadOnly: true, SubmountsWritable: true},
			{Type: TypeVolume, Source: "vol", DataDir: host + "/vol/_data", Target: "/data"},
			{Type: TypeTmpfs, Target: "/scratch", Size: 1 << 20, Attrs: NoSuid | NoDev | NoExec},
			{Type: TypeTmpfs, Target: "/run", ModeSet: true, Mode: 0o700, ReadOnly: true},
			{Type: TypeTmpfs, Target: "/new"},
		},
	}
	r := e.start(t, c, "whole", func(j *job) { j.NoSetattr = noSetattr })
	if r.Err != nil {
		t.Fatalf("%v", r.Err)
	}
	if len(r.Notes) > 0 {
		t.Errorf("notes: %q", r.Notes)
	}
	wantFile(t, host+"/rw/made", "made")
	wantFile(t, host+"/hosts", "hosts+")
	wantFile(t, host+"/vol/_data/seed", "seed")
	wantFile(t, host+"/vol/_data/mine", "mine")
	wantNames(t, host+"/vol", "_data", fillLock)
	if st := lstat(t, host+"/vol/_data"); st.Mode&0o7777 != 0o751 {
		t.Errorf("mode of the volume: %o", st.Mode)
	}
}

// planDetach lets the monitor's copy of a fuse mount go while pid 1 works.
func planDetach(t *testing.T, single bool) {
	e, l := rootEnv(t, DriverFuse)
	write(t, l+"/f", "f")
	sync := e.path("sync")
	must(t, os.Mkdir(sync, 0o755))
	prep, err := fuseDriver{log: slog.New(slog.DiscardHandler)}.Prepare(t.Context(), e.spec)
	must(t, err)
	defer prep.Close()
	p, err := BuildPlan(PlanConfig{Root: e.spec.Merged, SingleID: single, Mounts: []Mount{{Type: TypeBind, Source: sync, Target: "/sync"}}})
	must(t, err)
	detached := make(chan error, 1)
	go func() {
		detached <- func() error {
			if err := waitFor(sync + "/ready"); err != nil {
				return err
			}
			if err := prep.Detach(); err != nil {
				return err
			}
			if _, err := os.Stat(e.spec.Merged + "/f"); !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("the monitor still sees the root: %v", err)
			}
			return os.WriteFile(sync+"/go", nil, 0o644)
		}()
	}()
	r := runInit(t, job{Spec: e.spec, Plan: p, Check: "detached"})
	must(t, <-detached)
	if r.Err != nil || len(r.Failed) > 0 {
		t.Errorf("%v %q", r.Err, r.Failed)
	}
	select {
	case <-prep.Process.Done():
		if err := prep.Process.Wait(); err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("fuse-overlayfs outlives its last mount")
	}
	wantFile(t, e.spec.Upper+"/g", "g")
}

func waitFor(path string) error {
	for range 1000 {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("%s does not appear", path)
}

func planErrors(t *testing.T, single bool) {
	for _, c := range []struct {
		name  string
		mount Mount
		code  string
		setup func(l string)
	}{
		{"no source", Mount{Type: TypeBind, Source: "/nonexistent/x", Target: "/x"}, CodeSource, nil},
		{"file on directory", Mount{Type: TypeBind, Source: "/etc/passwd", Target: "/home"}, CodeTarget, nil},
		{"directory on file", Mount{Type: TypeBind, Source: "/etc", Target: "/f"}, CodeTarget, func(l string) { write(t, l+"/f", "") }},
		{"through a file", Mount{Type: TypeBind, Source: "/etc", Target: "/f/x"}, CodeTarget, func(l string) { write(t, l+"/f", "") }},
		{"link into proc", Mount{Type: TypeBind, Source: "/etc/passwd", Target: "/l/attr/exec"}, CodeTarget,
			func(l string) { must(t, os.Symlink("proc/1", l+"/l")) }},
		{"link to proc", Mount{Type: TypeTmpfs, Target: "/l"}, CodeTarget, func(l string) { must(t, os.Symlink("/proc", l+"/l")) }},
		{"link loop", Mount{Type: TypeTmpfs, Target: "/l"}, CodeTarget, func(l string) { must(t, os.Symlink("l", l+"/l")) }},
		{"proc is a link", Mount{Type: TypeTmpfs, Target: "/tmp"}, CodeTarget, func(l string) {
			must(t, os.Remove(l+"/proc"))
			must(t, os.Symlink("tmp", l+"/proc"))
		}},
		{"dev is a link", Mount{Type: TypeTmpfs, Target: "/tmp"}, CodeTarget, func(l string) {
			must(t, os.Remove(l+"/dev"))
			must(t, os.Symlink("/../../../../etc", l+"/dev"))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, l := rootEnv(t, DriverNative)
			if c.setup != nil {
				c.setup(l)
			}
			r := e.start(t, PlanConfig{SingleID: single, Mounts: []Mount{c.mount}}, "default")
			if r.Err == nil || r.Err.Code != c.code || r.Err.Step == "" || r.Err.Path == "" {
				t.Errorf("%#v", r.Err)
			}
			t.Log(r.Err)
		})
	}
}

// planHostile has links of the image lead everywhere; all must stay inside.
func planHostile(t *testing.T, single bool) {
	e, l := rootEnv(t, DriverNative)
	outside := e.path("outside")
	must(t, os.Mkdir(outside, 0o755))
	must(t, os.Symlink(outside, l+"/abs"))
	must(t, os.Symlink(strings.Repeat("../", 40)+outside, l+"/rel"))
	must(t, os.Symlink("/proc/1/root"+outside, l+"/magic"))
	must(t, os.Symlink("../run/systemd/resolve/stub-resolv.conf", l+"/etc/resolv.conf"))
	must(t, os.Symlink("/abs/hosts", l+"/etc/hosts"))
	src := e.path("src")
	write(t, src+"/f", "f")
	write(t, e.path("resolv"), "nameserver 10.0.0.1\n")
	write(t, e.path("hosts"), "hosts")
	r := e.start(t, PlanConfig{SingleID: single, ResolvConf: e.path("resolv"), Hosts: e.path("hosts"), Mounts: []Mount{
		{Type: TypeBind, Source: src, Target: "/abs/in"},
		{Type: TypeBind, Source: src + "/f", Target: "/rel/file"},
		{Type: TypeTmpfs, Target: "/rel/../abs/tmpfs"},
	}}, "hostile")
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	wantNames(t, outside)
	// The magic link would lead out of the root if it were followed.
	r = e.start(t, PlanConfig{SingleID: single, Mounts: []Mount{{Type: TypeBind, Source: src, Target: "/magic"}}}, "default")
	if r.Err == nil {
		t.Error("a mount through /proc/1/root succeeded")
	}
	wantNames(t, outside)
}

var initChecks = map[string]func(*result){
	"default": func(r *result) {
		checkMounts(r, "/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup", "/dev/null",
			"/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
		r.want(os.WriteFile("/tmp/x", nil, 0o644) == nil, "the root is not writable")
		_, err := os.Stat("/dev/console")
		r.errno(err, unix.ENOENT, "console without TTY")
		checkDefaults(r)
	},
	"whole": func(r *result) {
		checkDefaults(r)
		r.errno(os.WriteFile("/tmp/x", nil, 0o644), unix.EROFS, "write to the root")
		r.errno(os.Remove("/home"), unix.EROFS, "remove from the root")
		for _, d := range []string{"/dev", "/dev/shm", "/deep", "/data", "/scratch", "/new"} {
			err := os.WriteFile(d+"/made", []byte("made"), 0o644)
			r.want(err == nil, "write to %s: %v", d, err)
		}
		r.file("/deep/f", "rw")
		r.file("/deep/er/file", "file")
		r.file("/ro/f", "ro")
		r.file("/ro/sub/g", "g")
		r.errno(os.WriteFile("/ro/f", nil, 0o644), unix.EROFS, "write to a read-only bind")
		r.errno(os.WriteFile("/ro/sub/g", nil, 0o644), unix.EROFS, "write below a read-only bind")
		r.errno(os.WriteFile("/ro-top/f", nil, 0o644), unix.EROFS, "write to the top of a read-only bind")
		r.want(os.WriteFile("/ro-top/sub/g", []byte("g"), 0o644) == nil, "below a read-only bind with writable submounts")
		r.file("/data/seed", "seed")
		os.WriteFile("/data/mine", []byte("mine"), 0o644)
		r.file("/etc/hostname", "hostname")
		r.file("/etc/resolv.conf", "resolv.conf")
		f, err := os.OpenFile("/etc/hosts", os.O_APPEND|os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString("+")
			f.Close()
		}
		r.want(err == nil, "append to /etc/hosts: %v", err)
		for p, want := range map[string]uint32{"/scratch": 0o711, "/run": 0o700, "/new": 0o1777, "/dev/shm": 0o1777} {
			var st unix.Stat_t
			err := unix.Stat(p, &st)
			r.want(err == nil && st.Mode&0o7777 == want, "%s: mode %o, %v", p, st.Mode, err)
		}
		r.errno(os.WriteFile("/run/x", nil, 0o644), unix.EROFS, "write to a read-only tmpfs")
		r.errno(os.WriteFile("/dev/shm/big", make([]byte, 2<<20), 0o644), unix.ENOSPC, "over the size of /dev/shm")
		r.errno(os.WriteFile("/scratch/big", make([]byte, 2<<20), 0o644), unix.ENOSPC, "over the size of a tmpfs")
		m := mountAt(r, "/ro/sub")
		for _, o := range []string{"ro", "nosuid", "nodev"} {
			r.want(slices.Contains(strings.Split(m.Options, ","), o), "/ro/sub lost %s: %s", o, m.Options)
		}
		checkConsole(r)
	},
	"masked": func(r *result) {
		var st unix.Statfs_t
		r.want(unix.Statfs("/proc", &st) == nil && st.Type == unix.PROC_SUPER_MAGIC, "/proc: type %#x", st.Type)
		_, err := os.Stat("/proc/self/status")
		r.want(err == nil, "%v", err)
		es, err := os.ReadDir("/proc/sys")
		r.want(err == nil && len(es) == 0, "the mask of the surrounding container is gone: %d, %v", len(es), err)
		self, err := os.Readlink("/proc/self")
		r.want(err == nil, "%v", err)
		es, err = os.ReadDir("/proc")
		r.want(err == nil, "%v", err)
		for _, e := range es {
			n := e.Name()
			if n[0] < '0' || n[0] > '9' {
				continue
			}
			if _, err := os.Stat("/proc/" + n + "/status"); n == self {
				r.want(err == nil, "its own process: %v", err)
			} else if err == nil {
				// One that was started meanwhile: seen, but not to be touched.
				r.errno(os.WriteFile("/proc/"+n+"/oom_score_adj", []byte("1000"), 0), unix.EROFS, "write to an outer process")
			}
		}
		_, err = os.Stat("/proc/1/status")
		r.errno(err, unix.ENOENT, "the outer pid 1")
		r.want(os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0) == nil, "write to its own oom_score_adj")
		r.errno(os.WriteFile("/proc/loadavg", nil, 0), unix.EROFS, "write to /proc")
	},
	"host network": func(r *result) {
		r.errno(os.Mkdir("/sys/x", 0o755), unix.EROFS, "mkdir in /sys")
		ms, err := mountinfo.GetMounts(mountinfo.PrefixFilter("/sys"))
		r.want(err == nil && len(ms) > 0, "%d mounts below /sys, %v", len(ms), err)
		for _, m := range ms {
			r.want(slices.Contains(strings.Split(m.Options, ","), "ro"), "%s is %s", m.Mountpoint, m.Options)
		}
		_, err = os.ReadFile("/proc/interrupts")
		r.want(err == nil, "without masks: %v", err)
	},
	"host trees": func(r *result) {
		r.want(os.WriteFile("/dev/null", []byte("x"), 0) == nil, "write to /dev/null")
		r.want(mountAt(r, "/dev/shm").FSType == "tmpfs", "no /dev/shm of the sandbox")
		checkConsole(r)
		r.errno(os.WriteFile("/host/etc/x", nil, 0o644), unix.EROFS, "write to the host")
		r.errno(os.WriteFile("/host/tmp/sbx-test-write", nil, 0o644), unix.EROFS, "write to the host")
		_, err := os.Stat("/host/etc/passwd")
		r.want(err == nil, "%v", err)
		ms, err := mountinfo.GetMounts(mountinfo.PrefixFilter("/host"))
		r.want(err == nil && len(ms) > 0, "%d mounts below /host, %v", len(ms), err)
		for _, m := range ms {
			r.want(slices.Contains(strings.Split(m.Options, ","), "ro"), "%s is %s", m.Mountpoint, m.Options)
		}
	},
	"detached": func(r *result) {
		r.want(os.WriteFile("/sync/ready", nil, 0o644) == nil, "no /sync")
		err := waitFor("/sync/go")
		r.want(err == nil, "%v", err)
		r.file("/f", "f")
		err = os.WriteFile("/g", []byte("g"), 0o644)
		r.want(err == nil, "%v", err)
	},
	"hostile": func(r *result) {
		r.file("/etc/resolv.conf", "nameserver 10.0.0.1\n")
		r.file("/run/systemd/resolve/stub-resolv.conf", "nameserver 10.0.0.1\n")
		r.file("/etc/hosts", "hosts")
		r.file("/abs/in/f", "f")
		r.file("/rel/file", "f")
		r.want(mountAt(r, mustLink(r, "/abs")+"/tmpfs").FSType == "tmpfs", "no tmpfs behind the link")
	},
}

func mustLink(r *result, p string) string {
	s, err := os.Readlink(p)
	r.want(err == nil, "%v", err)
	return s
}

func mountAt(r *result, path string) mountinfo.Info {
	ms, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
	if err != nil || len(ms) != 1 {
		r.fail("mounts at %s: %d, %v", path, len(ms), err)
		return mountinfo.Info{}
	}
	return *ms[0]
}

// checkMounts wants exactly these mount points besides masks and read-only paths.
func checkMounts(r *result, want ...string) {
	ms, err := mountinfo.GetMounts(nil)
	r.want(err == nil, "%v", err)
	extra := append(slices.Clone(DefaultMaskedPaths), DefaultReadonlyPaths...)
	got := map[string]bool{}
	for _, m := range ms {
		got[m.Mountpoint] = true
		if !slices.Contains(want, m.Mountpoint) && !slices.Contains(extra, m.Mountpoint) {
			r.fail("unexpected mount: %s (%s)", m.Mountpoint, m.FSType)
		}
	}
	for _, w := range want {
		r.want(got[w], "no mount at %s", w)
	}
}

func checkDefaults(r *result) {
	if p, err := os.Readlink("/proc/self"); err != nil || p != "1" {
		r.fail("/proc/self is %q, %v; want 1", p, err)
	}
	for _, d := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		var st unix.Stat_t
		err := unix.Stat("/dev/"+d, &st)
		r.want(err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR, "/dev/%s: %o %v", d, st.Mode, err)
	}
	r.want(os.WriteFile("/dev/null", []byte("x"), 0) == nil, "write to /dev/null")
	r.errno(os.WriteFile("/dev/full", []byte("x"), 0), unix.ENOSPC, "write to /dev/full")
	for l, want := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
		"stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"} {
		got, err := os.Readlink("/dev/" + l)
		r.want(got == want, "/dev/%s -> %q, %v", l, got, err)
	}
	for _, p := range DefaultMaskedPaths {
		st, err := os.Stat(p)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			r.fail("%s: %v", p, err)
		case st.IsDir():
			es, err := os.ReadDir(p)
			r.want(err == nil && len(es) == 0, "%s is not empty: %d, %v", p, len(es), err)
			r.errno(os.Mkdir(p+"/x", 0o755), unix.EROFS, "mkdir in "+p)
		default:
			b, err := os.ReadFile(p)
			r.want(err == nil && len(b) == 0, "%s shows %d bytes, %v", p, len(b), err)
		}
	}
	err := os.WriteFile("/proc/sys/kernel/domainname", []byte("x"), 0)
	r.errno(err, unix.EROFS, "write to /proc/sys")
	for _, p := range []string{"/sys", "/sys/fs/cgroup"} {
		err := os.Mkdir(p+"/x", 0o755)
		r.errno(err, unix.EROFS, "mkdir in "+p)
	}
	_, err = os.Stat("/sys/class/net/lo")
	r.want(err == nil, "a sysfs of the own network namespace: %v", err)
	var st unix.Statfs_t
	r.want(unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC, "/sys/fs/cgroup: type %#x", st.Type)
	wd, err := os.Getwd()
	r.want(wd == "/", "working directory %q, %v", wd, err)
	ms, err := mountinfo.GetMounts(nil)
	r.want(err == nil, "%v", err)
	for _, m := range ms {
		r.want(!strings.Contains(m.Optional, "shared") && !strings.Contains(m.Optional, "master"), "%s is not private: %s", m.Mountpoint, m.Optional)
	}
}

func checkConsole(r *result) {
	master, slave, err := OpenConsole()
	if err != nil {
		r.fail("console: %v", err)
		return
	}
	defer master.Close()
	defer slave.Close()
	con, err := os.OpenFile("/dev/console", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		r.fail("console: %v", err)
		return
	}
	defer con.Close()
	if _, err := con.WriteString("hello\n"); err != nil {
		r.fail("console: %v", err)
	}
	b := make([]byte, 16)
	n, err := master.Read(b)
	r.want(string(b[:n]) == "hello\r\n", "console says %q, %v", b[:n], err)
	var a, c unix.Stat_t
	r.want(unix.Fstat(int(slave.Fd()), &a) == nil && unix.Fstat(int(con.Fd()), &c) == nil && a.Rdev == c.Rdev, "not the same terminal")
	r.want(MountConsole(master) != nil, "a master was mounted as console")
}
