package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/rootless-sbx/sbx/internal/wire"
	"golang.org/x/sys/unix"
)

// Codes of errors that a user can do something about, see wire.Error.
const (
	CodeNoGroup      = "no-cgroup"
	CodeNoController = "no-cgroup-controller"
)

// Config says what group to make.
type Config struct {
	// ID names the group; Name is for people.
	ID, Name string
	// PID of the monitor, which New moves into the group.
	PID int
	// Limits of the workload; the zero value is none.
	Limits Limits
}

// Group is the part of the tree that belongs to one sandbox.
type Group struct {
	dir string
}

// New makes a group: the monitor is in it and the limits are set when New returns. The
// caller owns the sandbox, so that whatever has the id already is what was left of it.
// If New fails, the group is gone as soon as the monitor has ended.
func (h *Host) New(ctx context.Context, c Config) (*Group, error) {
	if err := h.Check(c.Limits); err != nil {
		return nil, err
	}
	reason, fix := h.Missing()
	if reason != "" {
		return nil, &wire.Error{Code: CodeNoGroup, Step: "make a cgroup", Msg: reason, Fix: fix}
	}
	if len(h.Sockets) > 0 {
		dir, err := h.startScope(ctx, c)
		if err == nil {
			g, err := divide(dir, c.PID, c.Limits)
			if err == nil {
				err = h.Keep(ctx, g, c.Limits)
			}
			return g, err
		}
		if h.Base == "" || ctx.Err() != nil {
			return nil, &wire.Error{Code: CodeNoGroup, Step: "ask the user's systemd for a cgroup", Msg: err.Error(), Fix: "see: systemctl --user status; journalctl --user -n 20"}
		}
	}
	dir := path.Join(h.Base, subtreeName(c.ID))
	if err := removeTree(ctx, dir); err != nil {
		return nil, err
	}
	enable(h.Base, h.Divisible)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, wire.ToError("make a cgroup", err)
	}
	g, err := divide(dir, 0, c.Limits)
	if err != nil {
		return nil, errors.Join(err, removeTree(context.WithoutCancel(ctx), dir))
	}
	return g, nil
}

func subtreeName(id string) string { return "sbx-" + id }

// divide makes the leaves of a new group and sets the limits. The order is the
// kernel's: first there is no process in dir itself, then it may pass controllers on.
func divide(dir string, pid int, l Limits) (*Group, error) {
	if pid > 0 {
		monitor := path.Join(dir, "monitor")
		if err := os.Mkdir(monitor, 0o755); err != nil {
			return nil, wire.ToError("make a cgroup", err)
		}
		if err := cgroups.WriteCgroupProc(monitor, pid); err != nil {
			return nil, wire.ToError("move the monitor into its cgroup", err)
		}
	}
	enable(dir, words(dir, "cgroup.controllers"))
	g := &Group{dir: dir}
	if err := os.Mkdir(g.box(), 0o755); err != nil {
		return nil, wire.ToError("make a cgroup", err)
	}
	return g, g.Set(l)
}

// enable passes controllers on to the groups below dir, one by one, as one that is
// refused must not keep the others back. Set tries again the ones that a limit needs,
// and reports them.
func enable(dir string, names []string) {
	for _, n := range names {
		if slices.Contains(allControllers, n) {
			_ = passOn(dir, n)
		}
	}
}

func passOn(dir, controller string) error {
	return cgroups.WriteFile(dir, "cgroup.subtree_control", "+"+controller)
}

// Open returns the group whose directory is dir.
func Open(dir string) (*Group, error) {
	g := &Group{dir: dir}
	if _, err := os.Stat(g.box()); err != nil {
		return nil, fmt.Errorf("open the sandbox's cgroup: %w", err)
	}
	return g, nil
}

// Dir is what Open takes.
func (g *Group) Dir() string { return g.dir }

func (g *Group) box() string { return path.Join(g.dir, "box") }

// Box opens the workload's group, for processes to be born in.
func (g *Group) Box() (*os.File, error) { return os.Open(g.box()) }

// words are those of a file of a group, none if it is not there.
func words(dir, file string) []string {
	s, err := cgroups.ReadFile(dir, file)
	if err != nil {
		return nil
	}
	return strings.Fields(s)
}

// Remove kills what is left of the workload and removes its group. The monitor's own
// goes when that has ended, by systemd.
func (g *Group) Remove(ctx context.Context) error {
	dir := g.dir
	if strings.HasSuffix(dir, ".scope") {
		dir = g.box()
	}
	return removeTree(ctx, dir)
}

// removeTree ends every process in and below dir, and removes it.
func removeTree(ctx context.Context, dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := kill(ctx, dir); err != nil {
		return err
	}
	if err := cgroups.RemovePath(dir); err != nil {
		return fmt.Errorf("remove the sandbox's cgroup: %w", err)
	}
	return nil
}

// List finds the groups of the sandbox with this id wherever they are: a scope of the
// user's systemd is in one of its slices, which contain each other.
func (h *Host) List(id string) ([]*Group, error) {
	var groups []*Group
	if h.Base != "" {
		groups = append(groups, &Group{dir: path.Join(h.Base, subtreeName(id))})
	}
	if len(h.Sockets) > 0 {
		err := filepath.WalkDir(h.managerDir(), func(p string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil // gone meanwhile
			case err != nil:
				return err
			case !d.IsDir():
			case d.Name() == unitName(id):
				groups = append(groups, &Group{dir: p})
				return fs.SkipDir
			case p != h.managerDir() && path.Ext(p) != ".slice":
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("look for the sandbox's cgroup: %w", err)
		}
	}
	return slices.DeleteFunc(groups, func(g *Group) bool {
		_, err := os.Stat(g.dir)
		return errors.Is(err, fs.ErrNotExist)
	}), nil
}

// Helpers are the processes beside the workload: the monitor and what it has started.
func (g *Group) Helpers() ([]int, error) {
	pids, err := cgroups.GetPids(path.Join(g.dir, "monitor"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil // it has gone, or is a subtree
	}
	return pids, err
}

// Clear kills everything in a group whose owner has gone, and removes it.
func (g *Group) Clear(ctx context.Context) error { return removeTree(ctx, g.dir) }
