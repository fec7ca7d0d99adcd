package workload

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// DefaultPath is the PATH of a workload whose image sets none.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Overrides is what the user said, to be laid over an image's configuration.
type Overrides struct {
	// Entrypoint replaces the image's if it is not nil, and then the image's
	// Cmd does not count. Empty, or one empty string, clears it.
	Entrypoint []string
	// Cmd replaces the image's if it is not empty.
	Cmd []string
	// Env has NAME=VALUE; NAME alone takes the value LookupEnv has, and
	// removes the variable if it has none.
	Env []string
	// LookupEnv is the caller's environment. Nil means an empty one.
	LookupEnv func(string) (string, bool)
	// WorkDir, User and StopSignal replace the image's if not empty.
	WorkDir, User, StopSignal string
	// Hostname becomes $HOSTNAME if not empty.
	Hostname string
	// TTY adds TERM=xterm, unless the image or Env sets TERM.
	TTY bool
	// Expose adds ports in the image's form, "80/tcp" or "80".
	Expose []string
	// Labels are added to the image's and win.
	Labels map[string]string
}

// Process is the result of MergeConfig.
type Process struct {
	Args         []string
	Env          []string
	Cwd          string
	User         string
	StopSignal   syscall.Signal
	Volumes      []string // absolute, clean, sorted
	ExposedPorts []string // "80/tcp", sorted
	Labels       map[string]string
}

// MergeConfig lays the user's wishes over an image's configuration by Docker's
// rules.
func MergeConfig(img v1.Config, o Overrides) (*Process, error) {
	p := &Process{
		Env:    mergeEnv(img.Env, o),
		User:   firstNonEmpty(o.User, img.User),
		Labels: map[string]string{},
	}
	entrypoint, cmd := o.Entrypoint, o.Cmd
	if entrypoint == nil {
		entrypoint = img.Entrypoint
		if len(cmd) == 0 {
			cmd = img.Cmd
		}
	}
	if len(entrypoint) == 1 && entrypoint[0] == "" {
		entrypoint = nil
	}
	p.Args = slices.Concat(entrypoint, cmd)
	if len(p.Args) == 0 {
		return nil, invalid("", "give a command after the image's name, the image has none", "no command specified")
	}
	if hasNUL(p.Args, p.Env) {
		return nil, invalid("", "", "an argument or environment variable contains a NUL byte")
	}

	switch {
	case o.WorkDir != "" && !path.IsAbs(o.WorkDir):
		return nil, invalid(CodeCwd, "give an absolute path", "the working directory %q is invalid, it needs to be an absolute path", o.WorkDir)
	case o.WorkDir != "":
		p.Cwd = path.Clean(o.WorkDir)
	default:
		p.Cwd = path.Join("/", img.WorkingDir)
	}

	sig := firstNonEmpty(o.StopSignal, img.StopSignal, "SIGTERM")
	var err error
	if p.StopSignal, err = ParseSignal(sig); err != nil {
		return nil, fmt.Errorf("stop signal: %w", err)
	}
	for v := range img.Volumes {
		v = path.Join("/", v)
		if v != "/" {
			p.Volumes = append(p.Volumes, v)
		}
	}
	slices.Sort(p.Volumes)
	p.Volumes = slices.Compact(p.Volumes)

	for port := range img.ExposedPorts {
		p.ExposedPorts = append(p.ExposedPorts, exposedPort(port))
	}
	for _, port := range o.Expose {
		p.ExposedPorts = append(p.ExposedPorts, exposedPort(port))
	}
	slices.Sort(p.ExposedPorts)
	p.ExposedPorts = slices.Compact(p.ExposedPorts)

	maps.Copy(p.Labels, img.Labels)
	maps.Copy(p.Labels, o.Labels)
	return p, nil
}

func firstNonEmpty(s ...string) string {
	for _, v := range s {
		if v != "" {
			return v
		}
	}
	return ""
}

func exposedPort(s string) string {
	s = strings.ToLower(s)
	if !strings.Contains(s, "/") {
		s += "/tcp"
	}
	return s
}

// mergeEnv keeps the order in which variables were first set: our defaults,
// the image's, the user's.
func mergeEnv(image []string, o Overrides) []string {
	var env []string
	set := func(kv string) {
		name, _, hasValue := strings.Cut(kv, "=")
		i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
		switch {
		case name == "":
		case !hasValue && i >= 0:
			env = slices.Delete(env, i, i+1)
		case !hasValue:
		case i >= 0:
			env[i] = kv
		default:
			env = append(env, kv)
		}
	}
	set("PATH=" + DefaultPath)
	if o.Hostname != "" {
		set("HOSTNAME=" + o.Hostname)
	}
	if o.TTY {
		set("TERM=xterm")
	}
	for _, kv := range image {
		set(kv)
	}
	for _, kv := range o.Env {
		if !strings.Contains(kv, "=") && o.LookupEnv != nil {
			if v, ok := o.LookupEnv(kv); ok {
				kv += "=" + v
			}
		}
		set(kv)
	}
	return env
}
