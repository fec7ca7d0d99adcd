package doctor

import (
	"context"
	"os"
	"os/exec"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/userns"
)

// Status is the result of a check.
type Status string

const (
	// OK: nothing is missing.
	OK Status = "ok"
	// Degraded: sbx works, with something less.
	Degraded Status = "degraded"
	// Missing: what depends on it does not work.
	Missing Status = "missing"
)

// Check is one finding.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Detail is what was found and what follows from it.
	Detail string `json:"detail"`
	// Fix is what can be done; empty where nothing needs to be.
	Fix string `json:"fix,omitempty"`
	// Data has the values behind Detail, for programs.
	Data any `json:"data,omitempty"`
}

// Env says where to look. The zero value looks at this process and this machine,
// without a runtime directory.
type Env struct {
	// Root is a directory that stands for "/"; "" is the real one. Only what the
	// kernel itself must be asked (user namespaces, Landlock) is not under it.
	Root string
	// UID and GID of the user; 0 is the process's own. Groups: nil is the process's own.
	UID, GID int
	Groups   []int
	// UserName: "" leaves out what needs a name.
	UserName string
	// RuntimeDir is the value of XDG_RUNTIME_DIR.
	RuntimeDir string
	// Executable is the path for the AppArmor profile; "" is this program's.
	Executable string
	// Mapping is how ids would be resolved.
	Mapping userns.MappingConfig
	// LookPath finds programs; nil is exec.LookPath.
	LookPath func(string) (string, error)
	// Probe tries a user namespace; nil is userns.Probe.
	Probe func(context.Context) error
	// Landlock returns the ABI version; nil asks the kernel.
	Landlock func() (int, error)
}

// Run makes all checks. Its result is complete except when ctx ends meanwhile:
// then the remaining checks are left out.
func Run(ctx context.Context, env Env) []Check {
	env = env.complete()
	var out []Check
	for _, check := range []func(context.Context, Env) Check{
		checkKernel, checkUserNS, checkMaxUserNS, checkAppArmor, checkSubIDs, checkHelpers,
		checkTun, checkFuse, checkFuseOverlay, checkPing, checkLowPorts,
		checkCgroup, checkSeccomp, checkLandlock, checkRuntimeDir, checkLinger, checkContainer,
	} {
		if ctx.Err() != nil {
			return out
		}
		out = append(out, check(ctx, env))
	}
	return out
}

func (e Env) complete() Env {
	if e.UID == 0 {
		e.UID = os.Geteuid()
	}
	if e.GID == 0 {
		e.GID = os.Getegid()
	}
	if e.Groups == nil {
		if groups, err := os.Getgroups(); err == nil {
			e.Groups = groups
		}
	}
	if !slices.Contains(e.Groups, e.GID) {
		e.Groups = append(slices.Clone(e.Groups), e.GID)
	}
	if e.Executable == "" {
		e.Executable = "/proc/self/exe"
	}
	if e.Mapping.UID == 0 {
		e.Mapping.UID = e.UID
	}
	if e.Mapping.GID == 0 {
		e.Mapping.GID = e.GID
	}
	if e.Root != "" && e.Mapping.SubUIDFile == "" {
		e.Mapping.SubUIDFile = e.path("/etc/subuid")
	}
	if e.Root != "" && e.Mapping.SubGIDFile == "" {
		e.Mapping.SubGIDFile = e.path("/etc/subgid")
	}
	if e.LookPath == nil {
		e.LookPath = exec.LookPath
	}
	if e.Probe == nil {
		e.Probe = userns.Probe
	}
	if e.Landlock == nil {
		e.Landlock = landlockABI
	}
	return e
}

func landlockABI() (int, error) {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0, errno
	}
	return int(v), nil
}
