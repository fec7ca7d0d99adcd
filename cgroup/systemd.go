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
	ctx, cancel := context.WithTimeoutCause(ctx, systemdPatience, fmt.Errorf("no answer in %v", systemdPatience))
	defer cancel()
	conn, err := h.dialSystemd(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	unit := unitName(c.ID)
	start := func() error {
		return await(ctx, func(done chan<- string) (int, error) {
			return conn.StartTransientUnitContext(ctx, unit, "fail", []systemd.Property{
				systemd.PropDescription("sandbox " + c.Name),
				systemd.PropPids(uint32(c.PID)),
				{Name: "Delegate", Value: dbus.MakeVariant(true)},
				{Name: "CollectMode", Value: dbus.MakeVariant("inactive-or-failed")},
				// Or the default of systemd applies: a part of kernel.threads-max.
				{Name: "TasksMax", Value: dbus.MakeVariant(uint64(math.MaxUint64))},
			}, done)
		})
	}
	err = start()
	var derr dbus.Error
	if errors.As(err, &derr) && derr.Name == errUnitExists {
		// Of an earlier life of this sandbox, whose owner we are now.
		if err = await(ctx, func(done chan<- string) (int, error) {
			return conn.StopUnitContext(ctx, unit, "replace", done)
		}); err == nil {
			err = start()
		}
	}
	if err != nil {
		return "", fmt.Errorf("start %s: %w", unit, err)
	}
	groups, err := cgroups.ParseCgroupFile(fmt.Sprintf("/proc/%d/cgroup", c.PID))
	if err != nil {
		return "", fmt.Errorf("find the group of %s: %w", unit, err)
	}
	dir := path.Join(h.Mount, groups[""])
	if path.Base(dir) != unit {
		return "", fmt.Errorf("systemd says that it has started %s, but process %d is in %s", unit, c.PID, dir)
	}
	return dir, nil
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
