package cgroup

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"

	"github.com/docker/go-units"
)

// ParseBytes parses a size as 512m or 1g.
func ParseBytes(s string) (int64, error) {
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 {
		return 0, errors.New("want a size as 512m or 1g")
	}
	return n, nil
}

// ParseSwap parses --memory-swap: a size, or -1.
func ParseSwap(s string) (int64, error) {
	if s == "-1" {
		return -1, nil
	}
	return ParseBytes(s)
}

// ParseCPUs parses --cpus, a number as 1.5, into processors times 10^9.
func ParseCPUs(s string) (int64, error) {
	r, ok := new(big.Rat).SetString(s)
	// A fraction of a few digits can have a huge exponent.
	if !ok || len(s) > 32 || strings.ContainsAny(s, "eEpP/") || r.Sign() < 0 {
		return 0, errors.New("want a number of processors as 1.5")
	}
	r.Mul(r, big.NewRat(1e9, 1))
	switch {
	case !r.IsInt():
		return 0, errors.New("want at most 9 decimal places")
	case !r.Num().IsInt64():
		return 0, errors.New("too many processors")
	}
	return r.Num().Int64(), nil
}

// ParseDeviceBps parses DEVICE:RATE, bytes each second as 1mb.
func ParseDeviceBps(s string) (DeviceRate, error) {
	return parseRate(s, "a positive number of bytes, as 1mb", func(v string) (uint64, error) {
		n, err := units.RAMInBytes(v)
		return uint64(n), err
	})
}

// ParseDeviceIOPS parses DEVICE:RATE, operations each second.
func ParseDeviceIOPS(s string) (DeviceRate, error) {
	return parseRate(s, "a positive number", func(v string) (uint64, error) { return strconv.ParseUint(v, 10, 63) })
}

func parseRate(s, want string, parse func(string) (uint64, error)) (DeviceRate, error) {
	dev, v, err := splitDevice(s)
	if err != nil {
		return DeviceRate{}, err
	}
	n, err := parse(v)
	if err != nil || n == 0 || n > math.MaxInt64 {
		return DeviceRate{}, fmt.Errorf("want DEVICE:RATE with a rate that is %s", want)
	}
	return DeviceRate{Path: dev, Rate: n}, nil
}

// ParseDeviceWeight parses DEVICE:WEIGHT.
func ParseDeviceWeight(s string) (DeviceWeight, error) {
	dev, v, err := splitDevice(s)
	if err != nil {
		return DeviceWeight{}, err
	}
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil || n < minWeight || n > maxWeight {
		return DeviceWeight{}, fmt.Errorf("want DEVICE:WEIGHT with a weight from %d to %d", minWeight, maxWeight)
	}
	return DeviceWeight{Path: dev, Weight: uint16(n)}, nil
}

// splitDevice splits DEVICE:VALUE. Names of devices may have colons, as those below
// /dev/disk/by-path.
func splitDevice(s string) (dev, value string, err error) {
	i := strings.LastIndexByte(s, ':')
	if i <= 0 || i == len(s)-1 {
		return "", "", errors.New("want /dev/NAME:NUMBER")
	}
	if dev = s[:i]; !strings.HasPrefix(dev, "/dev/") {
		return "", "", errors.New("want a device below /dev, as /dev/NAME:NUMBER")
	}
	return dev, s[i+1:], nil
}
