package cgroup

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path"
	"strconv"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"github.com/opencontainers/cgroups"
)

// systemdPatience is how long the user's systemd may take to make a scope.
const systemdPatience = 30 * time.Second

const errUnitExists = "org.freedesktop.systemd1.UnitExists"

func unitName(id string) string { return "sbx-" + id + ".scope" }

// startScope asks the user's systemd for a scope that has the process in it and
// returns its directory. The process may be in a session's scope, from where only the
// system's manager can move it: the user's asks that in turn.
func (h *Host) startScope(ctx context.Context, c Config) (string, error) {
	unit := unitName(c.ID)
	if err := h.runScope(ctx, unit, "sandbox "+c.Name, c.PID, true); err != nil {
		return "", err
	}
	dir, err := h.groupOf(c.PID)
	if err == nil && path.Base(dir) != unit {
		err = fmt.Errorf("systemd says that it has started %s, but process %d is in %s", unit, c.PID, dir)
	}
	return dir, err
}

// groupOf is the directory of the group that a process is in.
func (h *Host) groupOf(pid int) (string, error) {
	groups, err := cgroups.ParseCgroupFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", fmt.Errorf("find the group of process %d: %w", pid, err)
	}
	return path.Join(h.Mount, groups[""]), nil
}

// Settle gives a process that serves sandboxes, but is no part of one, a scope of its own
// of the user's systemd, if he has one. It ends when they do, neither with the session in
// which it was started nor with the one of them that has started it; and it does not keep
// that session, and with it the user's systemd, alive when he has logged out.
func (h *Host) Settle(ctx context.Context, name, description string, pid int) error {
	if len(h.Sockets) == 0 {
		return nil
	}
	unit := fmt.Sprintf("sbx-%s-%d.scope", name, pid)
	dir, err := h.groupOf(pid)
	if err != nil || path.Base(dir) == unit {
		return err
	}
	err = h.runScope(ctx, unit, description, pid, false)
	var derr dbus.Error
	if errors.As(err, &derr) && derr.Name == errUnitExists {
		return nil // somebody else is at it
	}
	return err
}

// runScope makes a scope with the process in it. One that is there already, of an
// earlier life of the sandbox whose owner we are now, is ended if it is to be replaced.
func (h *Host) runScope(ctx context.Context, unit, description string, pid int, replace bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, systemdPatience, fmt.Errorf("no answer in %v", systemdPatience))
	defer cancel()
	conn, err := h.dialSystemd(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	start := func() error {
		return await(ctx, func(done chan<- string) (int, error) {
			return conn.StartTransientUnitContext(ctx, unit, "fail", []systemd.Property{
				systemd.PropDescription(description),
				systemd.PropPids(uint32(pid)),
				{Name: "Delegate", Value: dbus.MakeVariant(true)},
				{Name: "CollectMode", Value: dbus.MakeVariant("inactive-or-failed")},
				// Or the default of systemd applies: a part of kernel.threads-max.
				{Name: "TasksMax", Value: dbus.MakeVariant(uint64(math.MaxUint64))},
			}, done)
		})
	}
	err = start()
	var derr dbus.Error
	if replace && errors.As(err, &derr) && derr.Name == errUnitExists {
		if err = await(ctx, func(done chan<- string) (int, error) {
			return conn.StopUnitContext(ctx, unit, "replace", done)
		}); err == nil {
			err = start()
		}
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", unit, err)
	}
	return nil
}

// await starts a job and waits for its end.
func await(ctx context.Context, job func(done chan<- string) (int, error)) error {
	done := make(chan string, 1)
	if _, err := job(done); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("systemd's job ended as %q", result)
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// dialSystemd connects to the first socket that answers. The library opens two
// connections, one for answers and one for signals.
func (h *Host) dialSystemd(ctx context.Context) (*systemd.Conn, error) {
	var errs []error
	for _, s := range h.Sockets {
		conn, err := systemd.NewConnection(func() (*dbus.Conn, error) { return h.dial(ctx, s) })
		if err == nil {
			return conn, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", s, err))
	}
	return nil, errors.Join(errs...)
}

func (h *Host) dial(ctx context.Context, socket string) (*dbus.Conn, error) {
	conn, err := dbus.Dial("unix:path="+dbus.EscapeBusAddressValue(socket), dbus.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	if err = conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(h.uid))}); err == nil && path.Base(socket) == "bus" {
		err = conn.Hello() // systemd's own socket is no bus
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}
