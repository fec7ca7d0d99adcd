package fsoverlay

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"github.com/moby/sys/mountinfo"
	"github.com/rootless-sbx/sbx/internal/inroot"
	"golang.org/x/sys/unix"
)

const (
	// ofFiles are the rights on a file itself; the others are on directories.
	ofFiles  = ll.AccessFSReadFile | ll.AccessFSWriteFile | ll.AccessFSTruncate
	anything = ofFiles | ll.AccessFSRemoveFile | ll.AccessFSRemoveDir | ll.AccessFSRefer |
		ll.AccessFSMakeReg | ll.AccessFSMakeDir | ll.AccessFSMakeSym |
		ll.AccessFSMakeSock | ll.AccessFSMakeFifo | ll.AccessFSMakeChar | ll.AccessFSMakeBlock

	// maxRules bounds what the kernel has to keep: one for each file beside a mount with
	// rules, or beside a directory above it.
	maxRules = 8192
)

// Landlock makes the rules of Mount.Allow, nil if the flags of the mounts say it all. It
// is called in the finished tree, before anybody else is in it: the rules are of files and
// not of paths, and stay with them, whatever is renamed later. Who calls
// landlock_restrict_self with them obeys them from then on.
//
// Landlock knows only what is allowed, beneath a directory, and a mount is beneath the
// directories above it. So what a mount is not to have, these cannot have for themselves:
// instead everything that is in them gets it, one by one, as it is now.
//
//	/           what all mounts with rules below bear
//	/bin, ...   anything
//	/work       what it gives
func Landlock(mounts []Mount) (*os.File, error) {
	if !slices.ContainsFunc(mounts, func(m Mount) bool { _, bears := m.access(); return bears != anything }) {
		return nil, nil
	}
	r := ruleset{}
	if err := r.locate(mounts); err != nil {
		return nil, err
	}
	for _, p := range r.places {
		r.handled |= anything &^ p.bears
	}
	if r.handled == 0 {
		return nil, nil
	}
	r.handled |= ll.AccessFSRefer // which is refused unless it is given
	if err := r.supported(); err != nil {
		return nil, err
	}
	fd, err := ll.LandlockCreateRuleset(&ll.RulesetAttr{HandledAccessFS: r.handled}, 0)
	if err != nil {
		return nil, fail(stepLandlock, "", err)
	}
	file := os.NewFile(uintptr(fd), "landlock")
	r.add = func(beneath int, access uint64) error {
		return ll.LandlockAddPathBeneathRule(fd, &ll.PathBeneathAttr{AllowedAccess: access, ParentFd: beneath}, 0)
	}
	root, err := inroot.OpenDir("/")
	if err == nil {
		err = r.grant(root, "/", anything)
		unix.Close(root)
	}
	// Programs without an input have it as /dev/stdin, of a mount that is not in the tree.
	if null, nerr := unix.Open("/dev/null", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); nerr == nil && err == nil {
		_, err = r.allow(null, "/dev/null", anything)
		unix.Close(null)
	}
	var mounted []*mountinfo.Info
	if err == nil {
		mounted, err = mountinfo.GetMounts(nil)
	}
	if err == nil {
		err = r.apart(mounted)
	}
	if err != nil {
		file.Close()
		return nil, fail(stepLandlock, "", err)
	}
	return file, nil
}

const stepLandlock = "make the rules of allow="

type ruleset struct {
	handled uint64 // what needs to be allowed
	add     func(beneath int, access uint64) error
	places  []place
	rules   []rule
}

// place is where a user's mount is in the finished tree.
type place struct {
	path         string
	target       string // as the user calls it
	gives, bears uint64
}

// rule allows access beneath the file at path.
type rule struct {
	path   string
	mount  uint64
	access uint64
}

// supported says what the kernel lacks. Older ones let pass what they do not know.
func (r *ruleset) supported() error {
	const ro = "leave allow= out of the mounts, or make them read-only, which needs no Landlock"
	abi, err := ll.LandlockGetABIVersion()
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return failf(CodeLandlock, stepLandlock, "", "ask the administrator to add landlock to the lsm= boot parameter; or "+ro, "Landlock is switched off in this kernel")
	case err != nil:
		return failf(CodeLandlock, stepLandlock, "", "use a kernel with CONFIG_SECURITY_LANDLOCK, Linux 5.19 or later; or "+ro, "Landlock is not available (%v)", err)
	case abi < 2:
		return failf(CodeLandlock, stepLandlock, "", "use Linux 5.19 or later; or "+ro, "with the Landlock of this kernel, ABI %d, nothing in the sandbox could be moved between directories", abi)
	case abi < 3 && r.handled&ll.AccessFSTruncate != 0:
		return failf(CodeLandlock, stepLandlock, "", "use Linux 6.2 or later, or allow write; or "+ro, "the Landlock of this kernel, ABI %d, cannot keep files from being cut short", abi)
	}
	return nil
}

// locate finds out where the targets are: the image's links may lead elsewhere.
func (r *ruleset) locate(mounts []Mount) error {
	for _, m := range mounts {
		at, dir, err := mountedAt(m.Target)
		switch {
		case err != nil && m.Allow == 0:
			continue // hidden by another mount
		case err != nil:
			return failf(CodeTarget, stepLandlock, m.Target, "choose another target", "nothing of it is seen there: %v", err)
		}
		p := place{path: at, target: m.Target}
		if p.gives, p.bears = m.access(); !dir { // in which nothing is made
			p.bears |= anything &^ ofFiles
		}
		if i := slices.IndexFunc(r.places, func(q place) bool { return q.path == at }); i >= 0 {
			if q := r.places[i]; q.gives != p.gives {
				return failf(CodeTarget, stepLandlock, m.Target, "leave one of them out", "in this image it is the same place as %s", q.target)
			}
			continue
		}
		r.places = append(r.places, p)
	}
	return nil
}

// mountedAt is the path, without links, of what is mounted on target.
func mountedAt(target string) (at string, dir bool, err error) {
	fd, err := unix.Open(target, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", false, err
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_TYPE, &st); err != nil {
		return "", false, fmt.Errorf("statx: %w", err)
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return "", false, errors.New("another mount hides it")
	}
	at, err = inroot.ReadlinkAt(unix.AT_FDCWD, inroot.FdPath(fd))
	return at, st.Mode&unix.S_IFMT == unix.S_IFDIR, err
}

// grant allows access beneath the file at path, but in the places below what they give.
func (r *ruleset) grant(fd int, at string, access uint64) error {
	if i := slices.IndexFunc(r.places, func(p place) bool { return p.path == at }); i >= 0 {
		access = r.places[i].gives
	}
	common, names := access, []string(nil)
	for _, p := range r.places {
		if rel, ok := below(p.path, at); ok && rel != "" {
			common &= p.bears
			name, _, _ := strings.Cut(rel, "/")
			names = append(names, name)
		}
	}
	dir, err := r.allow(fd, at, common)
	if err != nil || !dir || len(names) == 0 {
		return err
	}
	if (access^common)&r.handled != 0 {
		if names, err = inroot.Names(fd, "."); err != nil {
			return fmt.Errorf("list %s, which is above a mount with rules: %w", at, err)
		}
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		sub, err := unix.Openat(fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // gone, or nobody's to open: without a rule it is refused
		}
		err = r.grant(sub, path.Join(at, name), access)
		unix.Close(sub)
		if err != nil {
			return err
		}
	}
	return nil
}

// allow adds one rule.
func (r *ruleset) allow(fd int, at string, access uint64) (dir bool, err error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_TYPE|unix.STATX_MNT_ID, &st); err != nil {
		return false, fmt.Errorf("statx %s: %w", at, err)
	}
	access &= r.handled
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		dir = true
	case unix.S_IFLNK:
		return false, nil // the file counts that it leads to
	default:
		access &= ofFiles
	}
	if access == 0 {
		return dir, nil
	}
	if len(r.rules) == maxRules {
		return dir, failf(CodeTooMany, stepLandlock, path.Dir(at), "choose a target with few files beside it and beside what is above it, such as /work",
			"a mount with rules is below it, and each of its files needs one: limit %d", maxRules)
	}
	r.rules = append(r.rules, rule{at, st.Mnt_id, access})
	if err := r.add(fd, access); err != nil {
		return dir, fmt.Errorf("landlock_add_rule %s: %w", at, err)
	}
	return dir, nil
}

// apart refuses rules of files which are in another place with less rights too: they would
// have the same there.
func (r *ruleset) apart(mounts []*mountinfo.Info) error {
	byID := map[uint64]*mountinfo.Info{}
	for _, m := range mounts {
		byID[uint64(m.ID)] = m
	}
	for _, m := range mounts {
		p, restricted := r.governs(m.Mountpoint)
		if !restricted {
			continue
		}
		for _, rule := range r.rules {
			on := byID[rule.mount]
			if rule.access&^p.bears == 0 || on == nil || on.Major != m.Major || on.Minor != m.Minor {
				continue
			}
			rel, _ := below(rule.path, on.Mountpoint)
			rel, inside := below(path.Join(on.Root, rel), m.Root)
			if !inside || path.Join(m.Mountpoint, rel) == rule.path { // it is what is seen there
				continue
			}
			return failf(CodeTarget, stepLandlock, p.target, "give both the same allow=, or leave one of them out",
				"%s has files of it with other rights, and rules are of files, whatever their path", rule.path)
		}
	}
	return nil
}

// governs finds the mount of the user that something mounted at a path belongs to.
func (r *ruleset) governs(at string) (p place, restricted bool) {
	p.bears = anything
	for _, q := range r.places {
		if _, ok := below(at, q.path); ok && len(q.path) >= len(p.path) {
			p = q
		}
	}
	return p, r.handled&^p.bears != 0
}

// below says whether a path is dir or below it, and where there.
func below(p, dir string) (rel string, ok bool) {
	if p == dir {
		return "", true
	}
	return strings.CutPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}
