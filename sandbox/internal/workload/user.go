package workload

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// maxUserFile bounds the passwd and group files of an image, which are read
// into memory.
const maxUserFile = 16 << 20

// identity is who the workload will be.
type identity struct {
	uid, gid int
	groups   []int // supplementary, only ids that are mapped
	home     string
}

// resolveUser looks the user up in the files of the root. IDs the user
// namespace does not map are an error if they were asked for, and left out if
// they only come from the image's group file.
func resolveUser(spec, passwdPath, groupPath string, extra []string, uids, gids idRanges) (*identity, error) {
	const step = "find the user to run as"
	passwd, err := readUserFile(passwdPath)
	if err != nil {
		return nil, fail(CodeUser, step, passwdPath, err, "")
	}
	group, err := readUserFile(groupPath)
	if err != nil {
		return nil, fail(CodeUser, step, groupPath, err, "")
	}
	u, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		fix := "name a user of the image's /etc/passwd, or use a number"
		if errors.Is(err, user.ErrNoGroupEntries) {
			fix = "name a group of the image's /etc/group, or use a number"
		}
		return nil, fail(CodeUser, "", "", err, fix)
	}
	more, err := user.GetAdditionalGroups(extra, bytes.NewReader(group))
	if err != nil {
		return nil, fail(CodeUser, "", "", err, "name groups of the image's /etc/group, or use numbers")
	}
	if !uids.contain(u.Uid) {
		return nil, notMapped("user", spec, u.Uid, uids)
	}
	if !gids.contain(u.Gid) {
		return nil, notMapped("group of user", spec, u.Gid, gids)
	}
	for i, g := range more {
		if !gids.contain(g) {
			return nil, notMapped("group", extra[min(i, len(extra)-1)], g, gids)
		}
	}
	// The primary group is among the supplementary ones too, as with Docker: a
	// program that gives its gid away must not lose a negative permission.
	id := &identity{uid: u.Uid, gid: u.Gid, home: u.Home, groups: []int{u.Gid}}
	if id.home == "" {
		id.home = "/"
	}
	for _, g := range u.Sgids {
		if gids.contain(g) {
			id.groups = append(id.groups, g)
		}
	}
	id.groups = append(id.groups, more...)
	slices.Sort(id.groups)
	id.groups = slices.Compact(id.groups)
	return id, nil
}

// readUserFile reads a file an image controls: a missing one is empty, and
// nothing but a regular file is opened for reading, as a FIFO would block for
// ever.
func readUserFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxUserFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxUserFile {
		return nil, fmt.Errorf("larger than %d MiB", maxUserFile>>20)
	}
	return b, nil
}

// idRanges are the ids a user namespace maps, seen from inside. Nil means that
// they are not known, and that the kernel decides.
type idRanges []user.IDMap

func (r idRanges) contain(id int) bool {
	if r == nil {
		return true
	}
	return slices.ContainsFunc(r, func(m user.IDMap) bool {
		return int64(id) >= m.ID && int64(id)-m.ID < m.Count
	})
}

func (r idRanges) String() string {
	var parts []string
	for _, m := range r {
		s := strconv.FormatInt(m.ID, 10)
		if m.Count > 1 {
			s += "-" + strconv.FormatInt(m.ID+m.Count-1, 10)
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, ", ")
}

func notMapped(what, spec string, id int, r idRanges) error {
	if spec != "" && spec != strconv.Itoa(id) {
		what = fmt.Sprintf("%s %q", what, spec)
	}
	if len(r) == 1 && r[0].Count == 1 {
		return invalid(CodeUser,
			"install newuidmap and newgidmap (package uidmap) and give yourself subordinate ids in /etc/subuid and /etc/subgid, or run as "+r.String(),
			"%s is id %d, and this sandbox has no id but %s: it maps a single id, your own, because no subordinate ids could be used", what, id, r)
	}
	return invalid(CodeUser, "use an id of these ranges, or give yourself more subordinate ids in /etc/subuid and /etc/subgid",
		"%s is id %d, which is not mapped in the sandbox's user namespace (mapped: %s)", what, id, r)
}

// setIDs changes the groups and ids of this thread only. PR_SET_KEEPCAPS lets
// the permitted set survive; the caller trims it.
func setIDs(id *identity) error {
	if err := setGroups(id.groups); err != nil {
		return err
	}
	if err := prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fail(CodeUser, "keep capabilities over the change of user", "", err, "")
	}
	if _, _, e := unix.RawSyscall(sysSetresgid, uintptr(id.gid), uintptr(id.gid), uintptr(id.gid)); e != 0 {
		return fail(CodeUser, "become group", strconv.Itoa(id.gid), e, "")
	}
	if _, _, e := unix.RawSyscall(sysSetresuid, uintptr(id.uid), uintptr(id.uid), uintptr(id.uid)); e != 0 {
		return fail(CodeUser, "become user", strconv.Itoa(id.uid), e, "")
	}
	if err := prctl(unix.PR_SET_KEEPCAPS, 0, 0, 0, 0); err != nil {
		return fail(CodeUser, "stop keeping capabilities", "", err, "")
	}
	return nil
}

// setGroups sets the supplementary groups. A user namespace made without
// newgidmap denies setgroups; the caller's groups then stay, all of them
// shown as 65534 inside, and asking for others is an error.
func setGroups(groups []int) error {
	gids := make([]uint32, len(groups))
	for i, g := range groups {
		gids[i] = uint32(g)
	}
	var p unsafe.Pointer
	if len(gids) > 0 {
		p = unsafe.Pointer(&gids[0])
	}
	_, _, e := unix.RawSyscall(sysSetgroups, uintptr(len(gids)), uintptr(p), 0)
	if e == 0 {
		return nil
	}
	b, err := os.ReadFile("/proc/self/setgroups")
	denied := err == nil && strings.TrimSpace(string(b)) == "deny"
	if denied && !slices.ContainsFunc(groups, func(g int) bool { return g != 0 }) {
		return nil
	}
	fix := ""
	if denied {
		fix = "supplementary groups need newgidmap (package uidmap) and a range in /etc/subgid"
	}
	return fail(CodeUser, "set the supplementary groups", fmt.Sprint(groups), e, fix)
}
