package workload

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/rootless-sbx/sbx/sandbox/internal/workload/seccomp"
)

// SecurityOpts is the result of ParseSecurityOpts.
type SecurityOpts struct {
	// NoNewPrivs and Seccomp are for Spec.
	NoNewPrivs bool
	Seccomp    string // one with a name, or a text
	// SystemPathsUnconfined leaves out the masks and read-only mounts over
	// paths of /proc and /sys.
	SystemPathsUnconfined bool
}

// ParseSecurityOpts parses the arguments of --security-opt, KEY=VALUE or, as
// Docker once had it, KEY:VALUE. readFile gets the text of a seccomp profile.
// What sbx cannot do is an error; options that ask for nothing beyond what is
// the case anyway are accepted.
func ParseSecurityOpts(opts []string, readFile func(string) ([]byte, error)) (*SecurityOpts, error) {
	out := &SecurityOpts{}
	for _, opt := range opts {
		key, value, ok := strings.Cut(opt, "=")
		if !ok {
			key, value, ok = strings.Cut(opt, ":")
		}
		refuse := func(reason string) error {
			return invalid("", "leave it out", "--security-opt %s: %s", opt, reason)
		}
		switch {
		case key == "no-new-privileges":
			out.NoNewPrivs = true
			if ok {
				v, err := strconv.ParseBool(value)
				if err != nil {
					return nil, invalid("", "use true or false", "--security-opt %s: %q is neither true nor false", opt, value)
				}
				out.NoNewPrivs = v
			}
		case !ok || value == "":
			return nil, invalid("", "use no-new-privileges, seccomp=FILE, seccomp=unconfined or systempaths=unconfined",
				"--security-opt %s: a value is missing", opt)
		case key == "seccomp":
			text, err := seccompText(value, readFile)
			if err != nil {
				return nil, err
			}
			out.Seccomp = text
		case key == "systempaths":
			if value != "unconfined" {
				return nil, invalid("", "the only value is unconfined", "--security-opt %s: invalid value", opt)
			}
			out.SystemPathsUnconfined = true
		case key == "apparmor":
			if value != "unconfined" {
				return nil, refuse("an ordinary user cannot load or change to AppArmor profiles")
			}
		case key == "label":
			if value != "disable" {
				return nil, refuse("SELinux labels are not set: the sandbox keeps the label of its user")
			}
		default:
			return nil, refuse("there is no such option")
		}
	}
	return out, nil
}

func seccompText(value string, readFile func(string) ([]byte, error)) (string, error) {
	switch value {
	case seccomp.Unconfined, seccomp.Builtin32:
		return value, nil
	case seccomp.Builtin:
		return "", nil
	}
	text, err := readFile(value)
	if err != nil {
		return "", fmt.Errorf("read the seccomp profile: %w", err)
	}
	if len(strings.TrimSpace(string(text))) == 0 {
		return "", invalid(CodeSeccomp, "use seccomp=unconfined for no filter", "seccomp profile %s is empty", value)
	}
	// What is wrong with it shows here, not in a process without a terminal.
	if _, err := seccomp.Compile(string(text), nil); err != nil {
		return "", invalid(CodeSeccomp, "", "%s: %s", value, err)
	}
	return string(text), nil
}
