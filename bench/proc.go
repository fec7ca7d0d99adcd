package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// tick is the unit of /proc's CPU times, the same on every architecture of Linux.
const tick = 0.01

func allPids() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func commandName(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return string(bytes.TrimSpace(b))
}

func commandLine(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return string(bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
}

// cpuOf is the CPU time of processes in seconds, user and system.
func cpuOf(pids []int) float64 {
	var sum float64
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err == nil {
			sum += parseStat(string(b))
		}
	}
	return sum
}

// parseStat reads utime and stime; the command name before them may hold anything.
func parseStat(stat string) float64 {
	i := strings.LastIndexByte(stat, ')')
	if i < 0 {
		return 0
	}
	f := strings.Fields(stat[i+1:])
	if len(f) < 13 {
		return 0
	}
	utime, _ := strconv.ParseFloat(f[11], 64)
	stime, _ := strconv.ParseFloat(f[12], 64)
	return (utime + stime) * tick
}

// machineCPU is the time in seconds that the machine's CPUs were busy.
func machineCPU() float64 {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	return parseMachine(string(b))
}

func parseMachine(stat string) float64 {
	line, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(line)
	var busy float64
	for i, s := range f {
		v, err := strconv.ParseFloat(s, 64)
		// user nice system idle iowait irq softirq; steal is not ours.
		if err == nil && i >= 1 && i <= 7 && i != 4 && i != 5 {
			busy += v
		}
	}
	return busy * tick
}

// residentOf is the resident memory (VmRSS) of processes in bytes, files they map
// included.
func residentOf(pids []int) float64 {
	var sum float64
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err == nil {
			sum += parseResident(string(b))
		}
	}
	return sum
}

func parseResident(status string) float64 {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, _ := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return kb * 1024
		}
	}
	return 0
}
