package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fscommon"
)

// Keep tells systemd of the shares of l that the group has, if it is a scope: what is
// not in its own books it sets back when it loads its units again (daemon-reload). A
// group that has gone meanwhile needs nothing.
func (h *Host) Keep(ctx context.Context, g *Group, l Limits) error {
	err := h.keep(ctx, g, l)
	if _, gone := os.Stat(g.dir); errors.Is(gone, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (h *Host) keep(ctx context.Context, g *Group, l Limits) error {
	unit := path.Base(g.dir)
	if !strings.HasSuffix(unit, ".scope") || len(h.Sockets) == 0 {
		return nil
	}
	props, err := g.shares(l)
	if err != nil || len(props) == 0 {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, systemdPatience, fmt.Errorf("no answer in %v", systemdPatience))
	defer cancel()
	conn, err := h.dialSystemd(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetUnitPropertiesContext(ctx, unit, true, props...); err != nil {
		return fmt.Errorf("tell systemd of the shares of %s: %w", unit, err)
	}
	return nil
}

// shares are what lift has set, in systemd's terms. Weights of single disks are not: it
// leaves those alone.
func (g *Group) shares(l Limits) ([]systemd.Property, error) {
	var props []systemd.Property
	add := func(name string, value uint64) {
		props = append(props, systemd.Property{Name: name, Value: dbus.MakeVariant(value)})
	}
	if l.CPUShares != 0 {
		n, err := fscommon.GetCgroupParamUint(g.dir, "cpu.weight")
		if err != nil {
			return nil, err
		}
		add("CPUWeight", n)
	}
	if l.MemoryReservation != 0 {
		n, err := fscommon.GetCgroupParamUint(g.dir, "memory.low")
		if err != nil {
			return nil, err
		}
		add("MemoryLow", n)
	}
	if file := g.weightFile(); l.BlkioWeight != 0 && file != "" {
		text, err := cgroups.ReadFile(g.dir, file)
		if err != nil {
			return nil, err
		}
		first, _, _ := strings.Cut(strings.TrimPrefix(text, "default "), "\n")
		n, err := strconv.ParseUint(strings.TrimSpace(first), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s is %q: %w", file, text, err)
		}
		if file == "io.bfq.weight" && n > 100 {
			n = 100 + (n-100)*11 // its 1 to 1000 are 1 to 10000 in systemd's books
		}
		add("IOWeight", n)
	}
	return props, nil
}
