package harness

import (
	"os"
	"slices"
	"strconv"
	"strings"
)

// Role finds the processes below the test whose name (comm) or first argument is
// role: sbx-monitor, sbx-netd.
func (e *Env) Role(role string) []int {
	var out []int
	reap()
	for _, pid := range descendants(os.Getpid()) {
		dir := "/proc/" + strconv.Itoa(pid)
		comm, _ := os.ReadFile(dir + "/comm")
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		first, _, _ := strings.Cut(string(cmdline), "\x00")
		if strings.TrimSpace(string(comm)) == role || first == role || strings.HasSuffix(first, "/"+role) {
			out = append(out, pid)
		}
	}
	return out
}

// FindArg finds the processes below the test one of whose arguments is arg: a
// workload that was given a unique one.
func (e *Env) FindArg(arg string) []int {
	var out []int
	for _, pid := range descendants(os.Getpid()) {
		cmdline, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		if slices.Contains(strings.Split(string(cmdline), "\x00"), arg) {
			out = append(out, pid)
		}
	}
	return out
}

// InPIDNamespace tells whether a process is pid 1 of a namespace below ours.
func InPIDNamespace(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			f := strings.Fields(ids)
			return len(f) == 2 && f[1] == "1"
		}
	}
	return false
}
