package monitor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/sandbox/internal/confine"
)

// stages, in their order, are shed when the first init has been cloned, which has what the
// monitor had, and before the workload begins. What is started after them inherits them,
// other runs of the workload and programs beside it: they lose nothing that they would have.
//
// Capabilities are kept. Those that nobody needs have no power in a user namespace, and to
// drop each of them interrupts each thread: where the sandbox has a small share of a busy
// processor that took minutes.
func (m *monitor) stages() []confine.Stage {
	return []confine.Stage{{Name: "files", Shed: m.shedFiles}, {Name: "calls", Shed: m.shedCalls}}
}

// shed sheds, once. What stays is in the record.
func (m *monitor) shed() {
	if m.confined {
		return
	}
	m.confined = true
	kept := map[string]string{}
	confine.Shed(m.stages(), func(stage string, why error) { kept[stage] = why.Error() })
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.Kept = kept
}

// Reasons to keep the user's files.
var (
	errLibraries = errors.New("the program needs its libraries to be executed again")
	errFuse      = errors.New("fuse-overlayfs has directories open from before")
	errRestart   = errors.New("the restart policy mounts directories of the user's again, whatever is there by then")
)

// shedFiles leaves the sandbox's files and sbx's own, and what the kernel and /etc say of
// the machine. No directory is open here from before.
func (m *monitor) shedFiles() error {
	s := &m.spec
	own := m.userFiles()
	switch {
	case m.program == nil:
		return errLibraries
	case s.Driver == fsoverlay.DriverFuse:
		return errFuse
	case len(own) > 0 && s.Life.Restart.Name != "" && s.Life.Restart.Name != "no":
		return errRestart
	case !s.Life.Keep:
		own = nil // there is no other run
	}
	root := confine.Root{
		Needed: []string{"/proc", "/sys", "/dev/null", s.Dir, s.DataDir, s.RuntimeDir, s.VolumesDir, s.EventsDir},
		Wanted: slices.Concat([]string{"/etc", "/usr/share/zoneinfo"}, devices, confine.Resolvers("/etc/resolv.conf"), own),
	}
	nodes, err := filepath.Glob("/dev/tap[0-9]*") // macvtaps: uplinks of networks
	if err != nil {
		return err
	}
	root.Wanted = append(root.Wanted, nodes...)
	return root.Enter()
}

// whyStale explains another run's failure to mount what has been replaced: the restart
// policy was given to a monitor that had shed the rest.
func (m *monitor) whyStale(err error) error {
	if _, kept := m.state.Kept["files"]; kept || len(m.userFiles()) == 0 || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%w (the restart policy is younger than this start, of which the mounts are: sbx restart %s)", err, m.spec.Name)
}

// devices are those that a sandbox or its network is made with.
var devices = []string{"/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/fuse", "/dev/net/tun"}

// userFiles are what a sandbox has of the user's besides sbx's own directories. Another
// run has them too if a restart policy is given to it later.
func (m *monitor) userFiles() (list []string) {
	for _, b := range m.spec.Mounts {
		if b.Type == fsoverlay.TypeBind {
			list = append(list, b.Source)
		}
	}
	for _, l := range m.spec.Lowers {
		if !strings.HasPrefix(l, m.spec.DataDir+"/") {
			list = append(list, l)
		}
	}
	if ns := m.spec.Network.NetNSPath(); ns != "" {
		list = append(list, ns)
	}
	return list
}

// calls are those of ours that Docker's default profile does not allow: mounts,
// namespaces, and the birth of processes in other groups.
var calls = []specs.LinuxSyscall{
	{Action: specs.ActAllow, Names: strings.Fields(`
		mount umount umount2 mount_setattr move_mount open_tree fsopen fsconfig fsmount fspick pivot_root chroot
		setns unshare clone clone3 sethostname setdomainname
	`)},
	{Action: specs.ActAllow, Names: []string{"keyctl"}, Args: []specs.LinuxSeccompArg{
		{Index: 0, Value: unix.KEYCTL_JOIN_SESSION_KEYRING, Op: specs.OpEqualTo},
	}},
}

// shedCalls leaves the system calls that a program of the sandbox may make, and ours. If
// none of its programs may gain privileges, nor may we: all threads take that over from
// the one that loads the filter.
func (m *monitor) shedCalls() error {
	f, err := m.spec.Process.FilterAround(calls)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if m.spec.Process.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
		}
	}
	return f.LoadAll()
}
