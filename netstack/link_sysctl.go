package netstack

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// sysctlRoot is where the network sysctls are. They follow the namespace of
// the thread that opens them, so the mount may be another pid namespace's.
const sysctlRoot = "/proc/sys/"

const (
	// guestTCPBufMax is the ceiling of the kernel's buffer tuning in the
	// guest. The default of 6 MiB starves a 64 KiB MTU with any delay.
	guestTCPBufMax = 16 << 20
	// maxPingGID is the largest upper end of ping_group_range.
	maxPingGID = 1<<31 - 1
)

// setNamespaceSysctls tunes the guest's namespace. It returns one note for
// each setting that the kernel refused.
func setNamespaceSysctls() []string {
	notes := setSysctls(
		// As Docker does: a port below 1024 is no privilege in a namespace of
		// one's own.
		"net/ipv4/ip_unprivileged_port_start", "0",
		// The direct forwarder's ends of short connections wait here, all with the
		// guest's own address: without reuse the ports run out at 470 a second.
		"net/ipv4/tcp_tw_reuse", "1",
	)
	if r, err := pingGroupRange(); err != nil {
		notes = append(notes, fmt.Sprintf("ping_group_range not set: %v", err))
	} else {
		notes = append(notes, setSysctls("net/ipv4/ping_group_range", r)...)
	}
	notes = append(notes, setCongestionControl()...)
	for _, name := range []string{"net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem"} {
		notes = append(notes, raiseBuffer(name)...)
	}
	return notes
}

// shorten sums up what has one reason: a /proc/sys that is read-only, as inside
// other containers.
func shorten(notes []string) []string {
	if len(notes) < 3 {
		return notes
	}
	return []string{fmt.Sprintf("%d sysctls of the network namespace are as they were: no ports below 1024 and no ping for users, smaller buffers (%s)", len(notes), notes[0])}
}

// setSysctls writes pairs of name and value.
func setSysctls(pairs ...string) (notes []string) {
	for i := 0; i+1 < len(pairs); i += 2 {
		note, err := writeSysctl(pairs[i], pairs[i+1])
		if err != nil {
			note = err.Error()
		}
		if note != "" {
			notes = append(notes, note)
		}
	}
	return notes
}

// writeSysctl writes one value. A setting that does not exist or may not be
// written here gives a note, as the link works without it.
func writeSysctl(name, value string) (note string, err error) {
	err = os.WriteFile(sysctlRoot+name, []byte(value), 0)
	switch {
	case err == nil:
		return "", nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Sprintf("%s not set to %q: %v", strings.ReplaceAll(name, "/", "."), value, err), nil
	default:
		return "", fmt.Errorf("set %s to %q: %w", strings.ReplaceAll(name, "/", "."), value, err)
	}
}

func readSysctl(name string) (string, error) {
	b, err := os.ReadFile(sysctlRoot + name)
	return strings.TrimSpace(string(b)), err
}

// pingGroupRange lets every group of the guest ping. The kernel takes only
// groups that the user namespace maps.
func pingGroupRange() (string, error) {
	f, err := os.Open("/proc/self/gid_map")
	if err != nil {
		return "", err
	}
	defer f.Close()
	type span struct{ first, size uint64 }
	var spans []span
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		var in, out, n uint64
		if _, err := fmt.Sscan(sc.Text(), &in, &out, &n); err != nil {
			return "", fmt.Errorf("read /proc/self/gid_map: %w", err)
		}
		spans = append(spans, span{in, n})
	}
	if err := sc.Err(); err != nil {
		return "", err
	}
	if len(spans) == 0 {
		return "", errors.New("/proc/self/gid_map is empty")
	}
	slices.SortFunc(spans, func(a, b span) int { return int(int64(a.first) - int64(b.first)) })
	first, next := spans[0].first, spans[0].first
	for _, s := range spans {
		if s.first != next {
			break
		}
		next += s.size
	}
	last := min(next-1, maxPingGID)
	return strconv.FormatUint(first, 10) + "\t" + strconv.FormatUint(last, 10), nil
}

// raiseBuffer raises the last of the three values of tcp_rmem or tcp_wmem.
func raiseBuffer(name string) []string {
	cur, err := readSysctl(name)
	if err != nil {
		return []string{fmt.Sprintf("%s not raised: %v", strings.ReplaceAll(name, "/", "."), err)}
	}
	v := strings.Fields(cur)
	if len(v) != 3 {
		return []string{fmt.Sprintf("%s not raised: unexpected value %q", strings.ReplaceAll(name, "/", "."), cur)}
	}
	if n, err := strconv.Atoi(v[2]); err != nil || n >= guestTCPBufMax {
		return nil
	}
	v[2] = strconv.Itoa(guestTCPBufMax)
	return setSysctls(name, strings.Join(v, "\t"))
}
