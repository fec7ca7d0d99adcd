package main

import (
	"errors"
	"strconv"

	"github.com/rootless-sbx/sbx/cgroup"
	"github.com/spf13/pflag"
)

func (o *runOptions) limitFlags(fs *pflag.FlagSet) {
	resourceFlags(fs, &o.limits)
	fs.IntVar(&o.oomScoreAdj, "oom-score-adj", 0, "`NUMBER` from 0 to 1000: how much sooner than others it is killed when the machine's memory is used up")
	lists(fs, &o.ulimits, "ulimit", "", "limit each process; `LIMIT` is TYPE=SOFT[:HARD]")
	l := &o.limits
	for _, f := range []struct {
		to          *[]cgroup.DeviceRate
		parse       func(string) (cgroup.DeviceRate, error)
		name, usage string
	}{
		{&l.DeviceReadBps, cgroup.ParseDeviceBps, "device-read-bps", "bytes read in a second, as `DEVICE:RATE` like /dev/sda:1mb"},
		{&l.DeviceWriteBps, cgroup.ParseDeviceBps, "device-write-bps", "bytes written in a second, as `DEVICE:RATE`"},
		{&l.DeviceReadIOPS, cgroup.ParseDeviceIOPS, "device-read-iops", "reads in a second, as `DEVICE:RATE`"},
		{&l.DeviceWriteIOPS, cgroup.ParseDeviceIOPS, "device-write-iops", "writes in a second, as `DEVICE:RATE`"},
	} {
		limit(fs, "list", f.name, "", f.usage, appends(f.to, f.parse))
	}
	limit(fs, "list", "blkio-weight-device", "", "weight for one device, as `DEVICE:WEIGHT`", appends(&l.BlkioWeightDevice, cgroup.ParseDeviceWeight))
}

// resourceFlags adds the flags of docker run that docker update has too.
func resourceFlags(fs *pflag.FlagSet, l *cgroup.Limits) {
	for _, f := range []struct {
		to                 *int64
		parse              func(string) (int64, error)
		name, short, usage string
	}{
		{&l.Memory, cgroup.ParseBytes, "memory", "m", "`SIZE` of the memory, as 512m"},
		{&l.MemorySwap, cgroup.ParseSwap, "memory-swap", "", "`SIZE` of memory and swap together; -1 is unlimited swap (default: twice the memory)"},
		{&l.MemoryReservation, cgroup.ParseBytes, "memory-reservation", "", "`SIZE` of the memory that the kernel tries to leave"},
		{&l.NanoCPUs, cgroup.ParseCPUs, "cpus", "", "`NUMBER` of processors, as 1.5"},
		{&l.CPUQuota, wholeNumber, "cpu-quota", "", "`MICROSECONDS` of processor time in each period"},
		{&l.CPUPeriod, wholeNumber, "cpu-period", "", "`MICROSECONDS` of a period (default 100000)"},
		{&l.CPUShares, wholeNumber, "cpu-shares", "c", "`WEIGHT` where several compete for processors; 1024 is usual"},
		{&l.PidsLimit, pidsLimit, "pids-limit", "", "`NUMBER` of processes and threads; -1 is unlimited"},
		{&l.BlkioWeight, wholeNumber, "blkio-weight", "", "`WEIGHT` where several compete for disks, 10 to 1000"},
	} {
		limit(fs, "string", f.name, f.short, f.usage, sets(f.to, f.parse))
	}
	word := func(s string) (string, error) { return s, nil }
	limit(fs, "string", "cpuset-cpus", "", "processors to run on, a `LIST` as 0-2,7", sets(&l.CpusetCPUs, word))
	limit(fs, "string", "cpuset-mems", "", "memory nodes to use, a `LIST`", sets(&l.CpusetMems, word))
}

func wholeNumber(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, errors.New("want a whole number")
	}
	return n, nil
}

// pidsLimit is unlimited for 0 too, as with Docker.
func pidsLimit(s string) (int64, error) {
	n, err := wholeNumber(s)
	if err == nil && n <= 0 {
		n = -1
	}
	return n, err
}

func sets[T any](to *T, parse func(string) (T, error)) func(string) error {
	return func(s string) (err error) {
		*to, err = parse(s)
		return err
	}
}

func appends[T any](to *[]T, parse func(string) (T, error)) func(string) error {
	return func(s string) error {
		v, err := parse(s)
		if err == nil {
			*to = append(*to, v)
		}
		return err
	}
}

func limit(fs *pflag.FlagSet, typ, name, short, usage string, set func(string) error) {
	fs.VarP(&limitValue{typ: typ, set: set}, name, short, usage)
}

// limitValue is a flag that is parsed into a limit at once.
type limitValue struct {
	typ string
	set func(string) error
}

func (v *limitValue) String() string     { return "" }
func (v *limitValue) Type() string       { return v.typ }
func (v *limitValue) Set(s string) error { return v.set(s) }
