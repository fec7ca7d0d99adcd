package workload

import (
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"
)

// defaultCaps is Docker's default set.
var defaultCaps = []capability.Cap{
	capability.CAP_CHOWN,
	capability.CAP_DAC_OVERRIDE,
	capability.CAP_FSETID,
	capability.CAP_FOWNER,
	capability.CAP_MKNOD,
	capability.CAP_NET_RAW,
	capability.CAP_SETGID,
	capability.CAP_SETUID,
	capability.CAP_SETFCAP,
	capability.CAP_SETPCAP,
	capability.CAP_NET_BIND_SERVICE,
	capability.CAP_SYS_CHROOT,
	capability.CAP_KILL,
	capability.CAP_AUDIT_WRITE,
}

// capSet is a set of capabilities as the kernel's interface has it.
type capSet uint64

func (s capSet) has(c capability.Cap) bool { return s&(1<<uint(c)) != 0 }

// ParseCapabilities applies --cap-add and --cap-drop to Docker's default set
// by Docker's rules: names in any case, with or without CAP_; ALL in add gives
// every capability except those dropped; ALL in drop leaves those added;
// otherwise drop comes first and add wins. The result is sorted, in the form
// CAP_NAME. It checks names against those sbx knows, not against the running
// kernel, which may know fewer.
func ParseCapabilities(add, drop []string) ([]string, error) {
	set, err := capabilities(add, drop)
	if err != nil {
		return nil, err
	}
	return set.names(), nil
}

func capabilities(add, drop []string) (capSet, error) {
	addSet, addAll, err := parseCaps(add)
	if err != nil {
		return 0, err
	}
	dropSet, dropAll, err := parseCaps(drop)
	if err != nil {
		return 0, err
	}
	switch {
	case addAll:
		return allCaps() &^ dropSet, nil
	case dropAll:
		return addSet, nil
	}
	var set capSet
	for _, c := range defaultCaps {
		set |= 1 << uint(c)
	}
	return set&^dropSet | addSet, nil
}

func allCaps() capSet {
	var set capSet
	for _, c := range capability.ListKnown() {
		set |= 1 << uint(c)
	}
	return set
}

// parseCaps returns the named set; all is reported apart, because ALL has a
// meaning of its own in both lists.
func parseCaps(names []string) (set capSet, all bool, err error) {
	var unknown []string
	for _, name := range names {
		short := strings.TrimPrefix(strings.ToUpper(strings.TrimSpace(name)), "CAP_")
		if short == "ALL" {
			all = true
			continue
		}
		i := slices.IndexFunc(capability.ListKnown(), func(c capability.Cap) bool {
			return strings.EqualFold(c.String(), short)
		})
		if i < 0 {
			unknown = append(unknown, fmt.Sprintf("%q", name))
			continue
		}
		set |= 1 << uint(capability.ListKnown()[i])
	}
	if len(unknown) > 0 {
		var known []string
		for _, c := range capability.ListKnown() {
			known = append(known, strings.ToUpper(c.String()))
		}
		slices.Sort(known)
		return 0, false, invalid(CodeCapability, "use ALL or names of: "+strings.Join(known, ", "),
			"unknown capability %s", strings.Join(unknown, ", "))
	}
	return set, all, nil
}

func (s capSet) names() []string {
	out := []string{}
	for _, c := range capability.ListKnown() {
		if s.has(c) {
			out = append(out, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	slices.Sort(out)
	return out
}

// dropBounding removes everything else from the bounding set of this thread.
// A capability that was asked for but that the kernel does not have is an
// error, as a program told to have it would not work.
func dropBounding(keep capSet) error {
	last, err := capability.LastCap()
	if err != nil {
		return fail(CodeCapability, "read the last capability of the kernel", "", err, "")
	}
	for c := capability.Cap(0); c <= last; c++ {
		if keep.has(c) {
			continue
		}
		if err := prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			return fail(CodeCapability, "drop from the bounding set", "CAP_"+strings.ToUpper(c.String()), err, "")
		}
	}
	return nil
}

// supported removes what the running kernel does not know: only ALL may name
// those.
func (s capSet) supported(add []string) (capSet, error) {
	last, err := capability.LastCap()
	if err != nil {
		return 0, fail(CodeCapability, "read the last capability of the kernel", "", err, "")
	}
	known := capSet(1)<<(uint(last)+1) - 1
	named, _, err := parseCaps(add)
	if err != nil {
		return 0, err
	}
	if missing := named & s &^ known; missing != 0 {
		return 0, invalid(CodeCapability, "leave it out of --cap-add, or use a newer kernel",
			"the kernel does not have %s", strings.Join(missing.names(), ", "))
	}
	return s & known, nil
}

// setCaps sets the permitted, effective and inheritable sets of this thread
// only: unlike the functions of package syscall, which reach all threads.
func setCaps(permitted, effective capSet) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(effective), Permitted: uint32(permitted)},
		{Effective: uint32(effective >> 32), Permitted: uint32(permitted >> 32)},
	}
	_, _, e := unix.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0)
	if e != 0 {
		return e
	}
	return nil
}

func prctl(option int, a, b, c, d uintptr) error {
	_, _, e := unix.RawSyscall6(unix.SYS_PRCTL, uintptr(option), a, b, c, d, 0)
	if e != 0 {
		return e
	}
	return nil
}
