package workload

import (
	"fmt"
	"strings"

	units "github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// ParseUlimit parses --ulimit NAME=SOFT[:HARD], -1 meaning unlimited.
func ParseUlimit(s string) (units.Ulimit, error) {
	u, err := units.ParseUlimit(s)
	if err != nil {
		return units.Ulimit{}, invalid(CodeUlimit, "write NAME=SOFT[:HARD], e.g. nofile=1024:4096",
			"invalid ulimit %q: %s", s, strings.TrimPrefix(err.Error(), "invalid ulimit argument: "))
	}
	if u.Soft < -1 || u.Hard < -1 {
		return units.Ulimit{}, invalid(CodeUlimit, "-1 means unlimited", "invalid ulimit %q: negative limit", s)
	}
	return *u, nil
}

// setRlimit goes through prlimit of x/sys/unix, which tells package syscall:
// Exec would restore the limit of open files that Go raised at start-up.
func setRlimit(u units.Ulimit) error {
	r, err := u.GetRlimit()
	if err != nil {
		return invalid(CodeUlimit, "", "%s", err)
	}
	var old unix.Rlimit
	if err := unix.Prlimit(0, r.Type, nil, &old); err != nil {
		return fail(CodeUlimit, "read ulimit", u.Name, err, "")
	}
	limit := unix.Rlimit{Cur: r.Soft, Max: r.Hard}
	if err := unix.Prlimit(0, r.Type, &limit, nil); err != nil {
		fix := ""
		if err == unix.EPERM && (limit.Max > old.Max) {
			fix = fmt.Sprintf("an ordinary user cannot raise a hard limit: ask for at most %s, or raise yours in /etc/security/limits.conf", limitString(old.Max))
		}
		return fail(CodeUlimit, "set ulimit", u.String(), err, fix)
	}
	return nil
}

func limitString(v uint64) string {
	if v == unix.RLIM_INFINITY {
		return "unlimited"
	}
	return fmt.Sprint(v)
}
