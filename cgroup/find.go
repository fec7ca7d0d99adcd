package cgroup

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Fixes that only an administrator can make.
const (
	FixDelegate = "ask the administrator for a file /etc/systemd/system/user@.service.d/delegate.conf with\n" +
		"[Service]\nDelegate=cpu cpuset io memory pids\nand to run: systemctl daemon-reload; then log in again"
	FixUnified = "ask the administrator to boot with systemd.unified_cgroup_hierarchy=1"
	fixLogin   = "log in through systemd (ssh, a desktop, machinectl shell, su --login where PAM opens a session; plain su and sudo keep the caller's) or loginctl enable-linger; in a container, mount a writable cgroup v2 and leave its root without processes"
)

var allControllers = []string{"cpu", "memory", "pids", "io", "cpuset"}

// Controllers are those that some limit needs.
func Controllers() []string { return slices.Clone(allControllers) }

// Options say where to look. The zero value looks at this process and this machine.
type Options struct {
	// Root is a directory that stands for "/"; empty is the real one.
	Root string
	// UID of the user; 0 is the process's own.
	UID int
	// RuntimeDir is the value of XDG_RUNTIME_DIR; /run/user/UID is tried too.
	RuntimeDir string
}

// Host is what Find found.
type Host struct {
	// Version is "v2", "hybrid" (v2 without controllers beside v1), "v1" or "none".
	Version string
	// Mount is where the v2 tree is, Path this process's group in it and Controllers
	// what that has.
	Mount, Path string
	Controllers []string
	// Top is what the root of the tree has: there is no more.
	Top []string
	// Sockets of the user's systemd: that of its bus, then its own.
	Sockets []string
	// Delegated is what the user's systemd may hand out; nil if that is not known.
	Delegated []string
	// Base is the group that may be divided without asking anybody, and Divisible
	// the controllers that its children get.
	Base      string
	Divisible []string

	inner bool // what is mounted is a part of the tree
	root  string
	uid   int
}

// Find looks for a part of the tree that belongs to the user. It asks nobody and
// changes nothing: that something is there does not mean that it works.
func Find(o Options) *Host {
	h := &Host{Version: "none", root: o.Root, uid: o.UID}
	if h.uid == 0 {
		h.uid = os.Geteuid()
	}
	text, err := h.read("/proc/self/cgroup")
	if err != nil {
		return h
	}
	v1, v2 := parseSelf(text)
	h.Mount = h.findMount()
	switch {
	case v2 == "" || h.Mount == "":
		h.Version = "v1"
		return h
	case v1:
		h.Version = "hybrid"
	default:
		h.Version = "v2"
	}
	h.Path = v2
	own := path.Join(h.Mount, v2)
	h.Controllers = h.words(path.Join(own, "cgroup.controllers"))
	_, err = os.Stat(h.real(path.Join(h.Mount, "cgroup.type")))
	h.inner = err == nil // the tree's root alone has none
	h.Top = h.words(path.Join(h.Mount, "cgroup.controllers"))
	h.findSystemd(o.RuntimeDir)
	h.findBase(own)
	return h
}

// parseSelf returns whether any version 1 controller is in use, and the version 2
// path, of /proc/self/cgroup.
func parseSelf(text string) (v1 bool, v2 string) {
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimRight(line, "\n"), ":", 3)
		switch {
		case len(f) != 3:
		case f[0] == "0" && f[1] == "":
			v2 = f[2]
		case f[1] != "" && !strings.HasPrefix(f[1], "name="):
			v1 = true
		}
	}
	return v1, v2
}

func (h *Host) findMount() string {
	f, err := os.Open(h.real("/proc/self/mountinfo"))
	if err != nil {
		return "" // as without a mount
	}
	defer f.Close()
	list, err := mountinfo.GetMountsFromReader(bufio.NewReader(f), nil)
	if err != nil {
		return ""
	}
	for _, m := range list {
		if m.FSType == "cgroup2" && !hidden(m, list) {
			return path.Clean(m.Mountpoint)
		}
	}
	return ""
}

// hidden says whether another mount lies over this one. Those below it are its parents.
func hidden(m *mountinfo.Info, list []*mountinfo.Info) bool {
	byID, parents := map[int]*mountinfo.Info{}, map[int]bool{}
	for _, o := range list {
		byID[o.ID] = o
	}
	for p := m; p != nil && !parents[p.ID]; p = byID[p.Parent] {
		parents[p.ID] = true
	}
	return slices.ContainsFunc(list, func(o *mountinfo.Info) bool {
		return !parents[o.ID] && strings.HasPrefix(m.Mountpoint+"/", strings.TrimSuffix(o.Mountpoint, "/")+"/")
	})
}

// findSystemd looks for the sockets of the user's systemd. XDG_RUNTIME_DIR may be
// unset, or another user's after su; with linger the directory is there all the same.
func (h *Host) findSystemd(runtimeDir string) {
	for _, dir := range []string{runtimeDir, fmt.Sprintf("/run/user/%d", h.uid)} {
		if !path.IsAbs(dir) || len(h.Sockets) > 0 {
			continue
		}
		for _, name := range []string{"bus", "systemd/private"} {
			s := path.Join(dir, name)
			if unix.Access(h.real(s), unix.W_OK) == nil {
				h.Sockets = append(h.Sockets, s)
			}
		}
	}
	if len(h.Sockets) > 0 {
		h.Delegated = h.words(path.Join(h.managerDir(), "cgroup.controllers"))
	}
}

// managerDir is the group of the user's systemd, below which are its scopes.
func (h *Host) managerDir() string {
	return path.Join(h.Mount, fmt.Sprintf("user.slice/user-%d.slice/user@%d.service", h.uid, h.uid))
}

// findBase looks from own upwards. The kernel lets a process be born only in a group
// that has an ancestor in common with its parent's which the user may write to.
func (h *Host) findBase(own string) {
	for dir := own; ; dir = path.Dir(dir) {
		if have, ok := h.divisible(dir); ok {
			h.Base, h.Divisible = dir, have
			return
		}
		if dir == h.Mount || len(dir) <= len(h.Mount) {
			return
		}
	}
}

// divisible says whether groups can be made in dir, and what they can have. One with
// processes can only pass on what it passes on already, except the tree's root.
func (h *Host) divisible(dir string) ([]string, bool) {
	for _, f := range []string{"", "cgroup.procs", "cgroup.subtree_control"} {
		if unix.Access(h.real(path.Join(dir, f)), unix.W_OK) != nil {
			return nil, false
		}
	}
	procs, err := h.read(path.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, false
	}
	if procs == "" || dir == h.Mount && !h.inner {
		return h.words(path.Join(dir, "cgroup.controllers")), true
	}
	have := h.words(path.Join(dir, "cgroup.subtree_control"))
	return have, len(have) > 0
}

// Available are the controllers that limits can count on, and whose they are. known
// is false if only trying will tell.
func (h *Host) Available() (have []string, from string, known bool) {
	switch {
	case len(h.Sockets) > 0:
		return h.Delegated, "the user's systemd", h.Delegated != nil
	case h.Base != "":
		return h.Divisible, "the group " + h.Base, true
	}
	return nil, "", true
}

// Missing says why no group at all can be had, and what to do; "" if one can.
func (h *Host) Missing() (reason, fix string) {
	switch {
	case h.Version == "none":
		return "there are no cgroups", "mount /proc and cgroup2"
	case h.Version == "v1":
		return "cgroup v2 is not mounted", FixUnified
	case len(h.Sockets) == 0 && h.Base == "":
		return "there is neither a systemd of the user nor a cgroup of his own", fixLogin
	}
	return "", ""
}

// Lack is what limits want and this host does not give.
type Lack struct {
	// Controllers that are not there.
	Controllers []string
	// Reason is set if none of them is in the whole tree, so that nobody can delegate it.
	Reason, Fix string
}

// Lacking compares the controllers that are wanted with those that are there.
func (h *Host) Lacking(want []string) Lack {
	var l Lack
	absent := 0
	have, _, known := h.Available()
	if !known {
		return l
	}
	for _, c := range want {
		if slices.Contains(have, c) {
			continue
		}
		l.Controllers = append(l.Controllers, c)
		if len(h.Top) > 0 && !slices.Contains(h.Top, c) {
			absent++
		}
	}
	switch {
	case len(l.Controllers) == 0:
	case len(have) == 0 && h.Version == "hybrid":
		l.Fix = FixUnified
	case absent == len(l.Controllers):
		l.Reason = "the kernel has no such controller"
		l.Fix = "a kernel with these controllers (those it has: " + path.Join(h.Mount, "cgroup.controllers") + ")"
		if h.inner {
			l.Reason = "this container has no such controller"
			l.Fix = "the container must be given a cgroup that has them (those it has: " + path.Join(h.Mount, "cgroup.controllers") + ")"
		}
	case len(h.Sockets) > 0:
		l.Fix = FixDelegate
	default:
		l.Fix = "ask the administrator to enable them in the cgroup.subtree_control of every group above " + h.Base
	}
	return l
}

func (h *Host) real(p string) string {
	if h.root == "" {
		return p
	}
	return filepath.Join(h.root, p)
}

// read reads a small file of the kernel's.
func (h *Host) read(p string) (string, error) {
	f, err := os.Open(h.real(p))
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	return strings.TrimSpace(string(b)), err
}

// words are those of a file; nil if it cannot be read: not ours to see, or not there.
func (h *Host) words(p string) []string {
	s, err := h.read(p)
	if err != nil {
		return nil
	}
	return append([]string{}, strings.Fields(s)...)
}
