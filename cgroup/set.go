package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs2"
	"github.com/rootless-sbx/sbx/internal/wire"
	"golang.org/x/sys/unix"
)

const cpuPeriod = 100000 // µs, the kernel's and Docker's default

// Set changes the limits of the workload, while it runs too. What l does not ask for
// stays as it is.
func (g *Group) Set(l Limits) error {
	if l.Zero() {
		return nil
	}
	if err := l.Validate(); err != nil {
		return err
	}
	for _, f := range l.flags() {
		if err := g.need(f); err != nil {
			return err
		}
	}
	if err := g.checkUsage(l); err != nil {
		return err
	}
	r, err := g.resources(l)
	if err != nil {
		return err
	}
	m, err := fs2.NewManager(&cgroups.Cgroup{}, g.box())
	if err != nil {
		return err
	}
	if err := m.Set(r); err != nil {
		return g.explain(l, err)
	}
	return g.lift(l)
}

// lift gives the workload's shares of what is scarce to the whole group, for it is that
// which competes with other sandboxes; the workload has only the monitor beside it.
func (g *Group) lift(l Limits) error {
	var files []string
	if l.CPUShares != 0 {
		files = append(files, "cpu.weight")
	}
	if l.MemoryReservation != 0 {
		files = append(files, "memory.low")
	}
	if l.BlkioWeight != 0 || len(l.BlkioWeightDevice) > 0 {
		files = append(files, g.weightFile())
	}
	for _, f := range files {
		text, err := cgroups.ReadFile(g.box(), f)
		if err != nil {
			return wire.ToError("set the limits", err)
		}
		for line := range strings.Lines(text) {
			if err := cgroups.WriteFile(g.dir, f, strings.TrimSpace(line)); err != nil {
				return wire.ToError("set the limits", err)
			}
		}
	}
	return nil
}

// weightFile is the file for the weights of disks, "" if there is none.
func (g *Group) weightFile() string {
	for _, f := range []string{"io.bfq.weight", "io.weight"} {
		if _, err := os.Stat(path.Join(g.box(), f)); err == nil {
			return f
		}
	}
	return ""
}

// need makes sure that the workload's group has the controller.
func (g *Group) need(f flag) error {
	if slices.Contains(words(g.box(), "cgroup.controllers"), f.controller) {
		return nil
	}
	have := words(g.dir, "cgroup.controllers")
	if !slices.Contains(have, f.controller) {
		return lacking(f, "the group "+g.dir, have, FixDelegate)
	}
	if err := passOn(g.dir, f.controller); err != nil {
		return wire.ToError("--"+f.name+": enable the cgroup controller "+f.controller, err)
	}
	return nil
}

// checkUsage refuses a limit that is below what is in use and cannot be given back: the
// kernel would kill.
func (g *Group) checkUsage(l Limits) error {
	if l.Memory == 0 {
		return nil
	}
	st, err := g.Stats()
	if err != nil {
		return err
	}
	if used := st.Memory.Used(); l.Memory > 0 && used > uint64(l.Memory) {
		return &wire.Error{Step: "--memory", Msg: fmt.Sprintf("%s is less than the %s that are in use", units.BytesSize(float64(l.Memory)), units.BytesSize(float64(used))),
			Fix: "give it more, or stop it first"}
	}
	return nil
}

// resources says the same in the library's terms, which convert most of it.
func (g *Group) resources(l Limits) (*cgroups.Resources, error) {
	r := &cgroups.Resources{
		Memory: l.Memory, MemorySwap: l.MemorySwap, MemoryReservation: l.MemoryReservation,
		CpuQuota: l.CPUQuota, CpuPeriod: uint64(l.CPUPeriod), CpuWeight: cgroups.ConvertCPUSharesToCgroupV2Value(uint64(l.CPUShares)),
		CpusetCpus: l.CpusetCPUs, CpusetMems: l.CpusetMems, BlkioWeight: uint16(l.BlkioWeight),
	}
	if l.PidsLimit != 0 {
		r.PidsLimit = &l.PidsLimit
	}
	if l.NanoCPUs > 0 {
		r.CpuPeriod = cpuPeriod
		r.CpuQuota = l.NanoCPUs * cpuPeriod / 1e9
	}
	if l.Memory > 0 && l.MemorySwap == 0 {
		if _, err := os.Stat(path.Join(g.box(), "memory.swap.max")); err == nil {
			r.MemorySwap = 2 * l.Memory
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	for _, c := range []struct{ name, want, file string }{
		{"cpuset-cpus", l.CpusetCPUs, "cpuset.cpus.effective"}, {"cpuset-mems", l.CpusetMems, "cpuset.mems.effective"},
	} {
		if err := g.checkSet(c.name, c.want, c.file); err != nil {
			return nil, err
		}
	}
	return r, g.devices(l, r)
}

// checkSet refuses what is not there: the kernel would take it and do something else.
func (g *Group) checkSet(name, want, file string) error {
	if want == "" {
		return nil
	}
	text, err := cgroups.ReadFile(g.dir, file)
	if err != nil {
		return wire.ToError("--"+name, err)
	}
	text = strings.TrimSpace(text)
	have, err := parseList(text)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	asked, err := parseList(want)
	if err != nil {
		return err
	}
	for _, n := range asked {
		if !slices.Contains(have, n) {
			return &wire.Error{Step: "--" + name, Msg: fmt.Sprintf("%s is not there; there is %s", want, text)}
		}
	}
	return nil
}

func (g *Group) devices(l Limits, r *cgroups.Resources) error {
	for _, k := range []struct {
		name string
		from []DeviceRate
		to   *[]*cgroups.ThrottleDevice
	}{
		{"device-read-bps", l.DeviceReadBps, &r.BlkioThrottleReadBpsDevice},
		{"device-write-bps", l.DeviceWriteBps, &r.BlkioThrottleWriteBpsDevice},
		{"device-read-iops", l.DeviceReadIOPS, &r.BlkioThrottleReadIOPSDevice},
		{"device-write-iops", l.DeviceWriteIOPS, &r.BlkioThrottleWriteIOPSDevice},
	} {
		for _, d := range k.from {
			major, minor, err := blockDevice(k.name, d.Path)
			if err != nil {
				return err
			}
			*k.to = append(*k.to, cgroups.NewThrottleDevice(major, minor, d.Rate))
		}
	}
	if l.BlkioWeight == 0 && len(l.BlkioWeightDevice) == 0 {
		return nil
	}
	file := g.weightFile()
	if file == "" {
		return &wire.Error{Code: CodeNoController, Step: "--blkio-weight", Path: g.box(),
			Msg: "there is neither io.weight nor io.bfq.weight", Fix: "the kernel needs CONFIG_BLK_CGROUP_IOCOST, or the scheduler bfq for a device"}
	}
	var lines []string
	for _, d := range l.BlkioWeightDevice {
		major, minor, err := blockDevice("blkio-weight-device", d.Path)
		if err != nil {
			return err
		}
		weight := uint64(d.Weight)
		if file == "io.weight" {
			weight = cgroups.ConvertBlkIOToIOWeightValue(d.Weight)
		}
		lines = append(lines, fmt.Sprintf("%d:%d %d", major, minor, weight))
	}
	if len(lines) > 0 {
		r.Unified = map[string]string{file: strings.Join(lines, "\n")}
	}
	return nil
}

func blockDevice(name, dev string) (major, minor int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(dev, &st); err != nil {
		return 0, 0, &wire.Error{Step: "--" + name, Path: dev, Errno: err.(unix.Errno)}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, 0, &wire.Error{Step: "--" + name, Path: dev, Msg: "not a block device"}
	}
	return int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)), nil
}

// explain adds what the kernel's answer means where it is not obvious.
func (g *Group) explain(l Limits, err error) error {
	e := wire.ToError("set the limits", err)
	switch {
	case errors.Is(err, unix.ENODEV) && l.flags()[len(l.flags())-1].controller == "io":
		e.Fix = "name the whole disk, not a partition"
	case errors.Is(err, os.ErrNotExist) && l.MemorySwap != 0:
		e.Fix = "the kernel does not count swap: leave out --memory-swap, or boot with swapaccount=1"
	case errors.Is(err, unix.EBUSY):
		e.Fix = "more is in use than the new limit: free it first"
	}
	return e
}
