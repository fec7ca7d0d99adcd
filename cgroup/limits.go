package cgroup

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/rootless-sbx/sbx/internal/wire"
)

// Limits of a workload, in the terms and with the JSON names of Docker's HostConfig.
// Zero means that nothing is asked for.
type Limits struct {
	// Memory in bytes, at least 6 MiB.
	Memory int64 `json:"Memory"`
	// MemorySwap is Memory and swap together; -1 is unlimited swap, 0 twice Memory.
	MemorySwap int64 `json:"MemorySwap"`
	// MemoryReservation is what the kernel tries to leave to the workload.
	MemoryReservation int64 `json:"MemoryReservation"`
	// NanoCPUs are processors times 10^9; CPUQuota and CPUPeriod, in microseconds, say
	// the same otherwise. A quota of -1 is none.
	NanoCPUs  int64 `json:"NanoCpus"`
	CPUQuota  int64 `json:"CpuQuota"`
	CPUPeriod int64 `json:"CpuPeriod"`
	// CPUShares is the weight among those that compete; 1024 is usual.
	CPUShares int64 `json:"CpuShares"`
	// CpusetCPUs and CpusetMems are lists as 0-2,7.
	CpusetCPUs string `json:"CpusetCpus"`
	CpusetMems string `json:"CpusetMems"`
	// PidsLimit is a number of threads; -1 is unlimited.
	PidsLimit int64 `json:"PidsLimit"`
	// BlkioWeight is 10 to 1000.
	BlkioWeight       int64          `json:"BlkioWeight"`
	BlkioWeightDevice []DeviceWeight `json:"BlkioWeightDevice"`
	// The rest is per second.
	DeviceReadBps   []DeviceRate `json:"BlkioDeviceReadBps"`
	DeviceWriteBps  []DeviceRate `json:"BlkioDeviceWriteBps"`
	DeviceReadIOPS  []DeviceRate `json:"BlkioDeviceReadIOps"`
	DeviceWriteIOPS []DeviceRate `json:"BlkioDeviceWriteIOps"`
}

// DeviceRate is a bound for one block device.
type DeviceRate struct {
	Path string `json:"Path"`
	Rate uint64 `json:"Rate"`
}

// DeviceWeight is a weight for one block device.
type DeviceWeight struct {
	Path   string `json:"Path"`
	Weight uint16 `json:"Weight"`
}

const (
	minMemory  = 6 << 20 // less does not even start a program
	minQuota   = 1000    // µs
	maxPeriod  = 1000000
	minShares  = 2
	maxShares  = 262144
	minWeight  = 10
	maxWeight  = 1000
	maxDevices = 64 // of each kind
	maxCPU     = 8191
)

// Zero says that nothing is asked for.
func (l *Limits) Zero() bool { return len(l.flags()) == 0 }

// flags are the flags of docker run that ask for these limits, with the controller
// that each needs.
func (l *Limits) flags() (list []flag) {
	for _, f := range []struct {
		flag
		set bool
	}{
		{flag{"memory", "memory"}, l.Memory != 0},
		{flag{"memory-swap", "memory"}, l.MemorySwap != 0},
		{flag{"memory-reservation", "memory"}, l.MemoryReservation != 0},
		{flag{"cpus", "cpu"}, l.NanoCPUs != 0},
		{flag{"cpu-quota", "cpu"}, l.CPUQuota != 0},
		{flag{"cpu-period", "cpu"}, l.CPUPeriod != 0},
		{flag{"cpu-shares", "cpu"}, l.CPUShares != 0},
		{flag{"cpuset-cpus", "cpuset"}, l.CpusetCPUs != ""},
		{flag{"cpuset-mems", "cpuset"}, l.CpusetMems != ""},
		{flag{"pids-limit", "pids"}, l.PidsLimit != 0},
		{flag{"blkio-weight", "io"}, l.BlkioWeight != 0},
		{flag{"blkio-weight-device", "io"}, len(l.BlkioWeightDevice) > 0},
		{flag{"device-read-bps", "io"}, len(l.DeviceReadBps) > 0},
		{flag{"device-write-bps", "io"}, len(l.DeviceWriteBps) > 0},
		{flag{"device-read-iops", "io"}, len(l.DeviceReadIOPS) > 0},
		{flag{"device-write-iops", "io"}, len(l.DeviceWriteIOPS) > 0},
	} {
		if f.set {
			list = append(list, f.flag)
		}
	}
	return list
}

type flag struct{ name, controller string }

// Check refuses limits that cannot be set here, as far as reading tells, and names
// what is missing and the file that the administrator must change.
func (h *Host) Check(l Limits) error {
	flags := l.flags()
	if len(flags) == 0 {
		return nil
	}
	if reason, fix := h.Missing(); reason != "" {
		return &wire.Error{Code: CodeNoGroup, Step: "--" + flags[0].name, Msg: "no limit can be set: " + reason, Fix: fix}
	}
	for _, f := range flags {
		if lack := h.Lacking([]string{f.controller}); len(lack.Controllers) > 0 {
			have, from, _ := h.Available()
			return lacking(f, from, have, lack.Fix)
		}
	}
	return nil
}

func lacking(f flag, from string, have []string, fix string) error {
	has := "none"
	if len(have) > 0 {
		has = "only " + strings.Join(have, " ")
	}
	return &wire.Error{Code: CodeNoController, Step: "--" + f.name, Fix: fix,
		Msg: fmt.Sprintf("it needs the cgroup controller %s, which %s does not have: %s", f.controller, from, has)}
}

// Validate checks what can be checked without a group, as Docker does.
func (l *Limits) Validate() error {
	for _, check := range []func() error{l.checkMemory, l.checkCPU, l.checkDevices} {
		if err := check(); err != nil {
			return err
		}
	}
	if l.PidsLimit < -1 {
		return fmt.Errorf("pids limit: %d; a positive number, or -1 for none", l.PidsLimit)
	}
	return nil
}

func (l *Limits) checkMemory() error {
	switch {
	case l.Memory != 0 && l.Memory < minMemory:
		return fmt.Errorf("memory: %d bytes; the minimum is 6MB", l.Memory)
	case l.MemorySwap < -1:
		return fmt.Errorf("memory swap: %d bytes; -1 is unlimited", l.MemorySwap)
	case l.MemorySwap > 0 && l.Memory == 0:
		return errors.New("memory swap: it is memory and swap together, so the memory must be limited too")
	case l.MemorySwap > 0 && l.MemorySwap < l.Memory:
		return errors.New("memory swap: it is memory and swap together, so it cannot be less than the memory")
	case l.MemoryReservation != 0 && l.MemoryReservation < minMemory:
		return fmt.Errorf("memory reservation: %d bytes; the minimum is 6MB", l.MemoryReservation)
	case l.Memory > 0 && l.MemoryReservation > l.Memory:
		return errors.New("memory reservation: it is more than the memory")
	}
	return nil
}

func (l *Limits) checkCPU() error {
	n := runtime.NumCPU()
	switch {
	case l.NanoCPUs > 0 && (l.CPUQuota != 0 || l.CPUPeriod != 0):
		return errors.New("cpus: it is a quota and a period, so neither can be given too")
	case l.NanoCPUs != 0 && (l.NanoCPUs < 1e7 || l.NanoCPUs > int64(n)*1e9):
		return fmt.Errorf("cpus: %s; from 0.01 to %d, as there are %d", cpus(l.NanoCPUs), n, n)
	case l.CPUPeriod != 0 && (l.CPUPeriod < minQuota || l.CPUPeriod > maxPeriod):
		return fmt.Errorf("cpu period: %d; from %d to %d microseconds", l.CPUPeriod, minQuota, maxPeriod)
	case l.CPUQuota != 0 && l.CPUQuota != -1 && l.CPUQuota < minQuota:
		return fmt.Errorf("cpu quota: %d; at least %d microseconds, or -1 for none", l.CPUQuota, minQuota)
	case l.CPUShares != 0 && (l.CPUShares < minShares || l.CPUShares > maxShares):
		return fmt.Errorf("cpu shares: %d; from %d to %d", l.CPUShares, minShares, maxShares)
	}
	if _, err := parseList(l.CpusetCPUs); err != nil {
		return fmt.Errorf("cpuset cpus: %w", err)
	}
	if _, err := parseList(l.CpusetMems); err != nil {
		return fmt.Errorf("cpuset mems: %w", err)
	}
	return nil
}

func cpus(nano int64) string { return strconv.FormatFloat(float64(nano)/1e9, 'g', -1, 64) }

func (l *Limits) checkDevices() error {
	if l.BlkioWeight != 0 && (l.BlkioWeight < minWeight || l.BlkioWeight > maxWeight) {
		return fmt.Errorf("blkio weight: %d; from %d to %d", l.BlkioWeight, minWeight, maxWeight)
	}
	for _, d := range l.BlkioWeightDevice {
		if err := checkDevice(d.Path); err != nil {
			return err
		}
		if d.Weight < minWeight || d.Weight > maxWeight {
			return fmt.Errorf("blkio weight of %s: %d; from %d to %d", d.Path, d.Weight, minWeight, maxWeight)
		}
	}
	n := len(l.BlkioWeightDevice)
	for _, list := range [][]DeviceRate{l.DeviceReadBps, l.DeviceWriteBps, l.DeviceReadIOPS, l.DeviceWriteIOPS} {
		n = max(n, len(list))
		for _, d := range list {
			if err := checkDevice(d.Path); err != nil {
				return err
			}
			if d.Rate == 0 || d.Rate > math.MaxInt64 {
				return fmt.Errorf("rate of %s: %d is not a positive number", d.Path, d.Rate)
			}
		}
	}
	if n > maxDevices {
		return fmt.Errorf("%d devices; at most %d of a kind", n, maxDevices)
	}
	return nil
}

func checkDevice(path string) error {
	if !strings.HasPrefix(path, "/dev/") {
		return fmt.Errorf("device %q: not below /dev", path)
	}
	return nil
}

// parseList parses a list of numbers and ranges as 0-2,7, sorted; empty is none.
func parseList(s string) ([]int, error) {
	if s == "" {
		return nil, nil
	}
	var list []int
	for part := range strings.SplitSeq(s, ",") {
		from, to, ranged := strings.Cut(part, "-")
		if !ranged {
			to = from
		}
		a, err1 := strconv.ParseUint(from, 10, 16)
		b, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil || a > b || b > maxCPU {
			return nil, fmt.Errorf("%q is not a list of numbers as 0-2,7", s)
		}
		for n := a; n <= b; n++ {
			list = append(list, int(n))
		}
		if len(list) > 8*maxCPU {
			return nil, fmt.Errorf("%q is too long", s)
		}
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

// With returns the limits changed by those that u asks for, as docker update: what u
// leaves out stays.
func (l Limits) With(u Limits) (Limits, error) {
	if u.Memory > 0 && u.MemorySwap == 0 && l.MemorySwap > 0 && u.Memory > l.MemorySwap {
		return l, errors.New("memory: it is more than memory and swap together may be; change that too (--memory-swap)")
	}
	if u.NanoCPUs != 0 && (l.CPUQuota != 0 || l.CPUPeriod != 0) || l.NanoCPUs != 0 && (u.CPUQuota != 0 || u.CPUPeriod != 0) {
		return l, errors.New("cpus: the quota was given the other way (--cpus, or --cpu-quota and --cpu-period); keep to that")
	}
	for _, f := range []struct{ to, from *int64 }{
		{&l.Memory, &u.Memory}, {&l.MemorySwap, &u.MemorySwap}, {&l.MemoryReservation, &u.MemoryReservation},
		{&l.NanoCPUs, &u.NanoCPUs}, {&l.CPUQuota, &u.CPUQuota}, {&l.CPUPeriod, &u.CPUPeriod}, {&l.CPUShares, &u.CPUShares},
		{&l.PidsLimit, &u.PidsLimit}, {&l.BlkioWeight, &u.BlkioWeight},
	} {
		if *f.from != 0 {
			*f.to = *f.from
		}
	}
	for _, f := range []struct{ to, from *string }{{&l.CpusetCPUs, &u.CpusetCPUs}, {&l.CpusetMems, &u.CpusetMems}} {
		if *f.from != "" {
			*f.to = *f.from
		}
	}
	for _, f := range []struct{ to, from *[]DeviceRate }{
		{&l.DeviceReadBps, &u.DeviceReadBps}, {&l.DeviceWriteBps, &u.DeviceWriteBps},
		{&l.DeviceReadIOPS, &u.DeviceReadIOPS}, {&l.DeviceWriteIOPS, &u.DeviceWriteIOPS},
	} {
		if len(*f.from) > 0 {
			*f.to = *f.from
		}
	}
	if len(u.BlkioWeightDevice) > 0 {
		l.BlkioWeightDevice = u.BlkioWeightDevice
	}
	return l, l.Validate()
}
