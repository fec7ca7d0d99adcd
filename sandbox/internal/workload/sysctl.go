package workload

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxSysctl bounds a value; the kernel takes less than a page.
const maxSysctl = 4095

var ipcSysctls = []string{
	"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
	"kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
}

// ParseSysctl parses and checks --sysctl NAME=VALUE. Only settings that belong
// to a namespace of the sandbox are allowed, and hostNetwork says that the
// network namespace is not one of them.
func ParseSysctl(s string, hostNetwork bool) (name, value string, err error) {
	name, value, ok := strings.Cut(s, "=")
	name, value = strings.TrimSpace(name), strings.TrimSpace(value)
	if !ok || name == "" {
		return "", "", invalid(CodeSysctl, "write NAME=VALUE", "invalid sysctl %q", s)
	}
	if err := checkSysctl(name, value, hostNetwork); err != nil {
		return "", "", err
	}
	return name, value, nil
}

func checkSysctl(name, value string, hostNetwork bool) error {
	file, err := sysctlFile(name)
	if err != nil {
		return err
	}
	dotted := strings.ReplaceAll(file, "/", ".")
	switch {
	case strings.HasPrefix(file, "net/"):
		if hostNetwork {
			return invalid(CodeSysctl, "leave out --network host, or set it on the host",
				"sysctl %q is not allowed with the host's network: it would change the host", name)
		}
	case strings.HasPrefix(file, "fs/mqueue/"), slices.Contains(ipcSysctls, dotted):
	case dotted == "kernel.hostname":
		return invalid(CodeSysctl, "use --hostname", "sysctl %q is not allowed", name)
	default:
		return invalid(CodeSysctl, "allowed are net.*, fs.mqueue.*, "+strings.Join(ipcSysctls, ", "),
			"sysctl %q is not allowed: it does not belong to a namespace of the sandbox", name)
	}
	if value == "" || len(value) > maxSysctl || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return invalid(CodeSysctl, "", "sysctl %q: the value is empty, too long or has control characters", name)
	}
	return nil
}

// sysctlFile turns a name into a path below /proc/sys by the rules of
// sysctl(8): whichever of "." and "/" comes first separates, and the other one
// is a literal character of the other kind (net.ipv4.conf.eth0/100.mtu).
func sysctlFile(name string) (string, error) {
	file := name
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		file = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	for part := range strings.SplitSeq(file, "/") {
		if part == "" || part == "." || part == ".." {
			return "", invalid(CodeSysctl, "", "invalid sysctl name %q", name)
		}
	}
	if strings.ContainsFunc(file, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "", invalid(CodeSysctl, "", "invalid sysctl name %q", name)
	}
	return file, nil
}

// ApplySysctls writes values that ParseSysctl accepted. It is called in init,
// in the namespaces of the sandbox, while /proc/sys is still writable.
func ApplySysctls(values map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		// Checked again: init does not rely on its caller. Whether the
		// network is the host's, only the caller knows.
		if err := checkSysctl(name, values[name], false); err != nil {
			return err
		}
		file, err := sysctlFile(name)
		if err != nil {
			return err
		}
		file = filepath.Join("/proc/sys", file)
		if err := writeSysctl(file, values[name]); err != nil {
			fix := ""
			switch {
			case errors.Is(err, unix.ENOENT):
				fix = "this kernel has no such setting, or not for namespaces other than the host's"
			case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
				fix = "the kernel lets only the host's root change it"
			case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE):
				fix = "the kernel does not take this value"
			}
			return fail(CodeSysctl, "set sysctl "+name+"="+values[name], file, err, fix)
		}
	}
	return nil
}

func writeSysctl(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
