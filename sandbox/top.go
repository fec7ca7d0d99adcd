package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rootless-sbx/sbx/sandbox/internal/record"
)

// Process is one of a sandbox's processes, as the host sees it.
type Process struct {
	PID, PPID int
	UID       string
	TTY       string // "?" without one
	Started   time.Time
	CPU       time.Duration
	Threads   int
	Memory    uint64 // resident bytes, with what it shares with others
	Command   string

	reaped time.Duration // CPU of those that have ended, its children and theirs
}

// hertz is what /proc counts in on every architecture.
const hertz = 100

// Top lists the processes of a sandbox that runs, by number.
func (s *Sandbox) Top(ctx context.Context) ([]Process, error) {
	st, err := s.look(ctx)
	if err != nil {
		return nil, err
	}
	if st.PID == 0 {
		return nil, s.notRunning(st)
	}
	all, err := processes()
	if err != nil {
		return nil, err
	}
	list := members(st, all)
	if len(list) == 0 {
		return nil, s.notRunning(nil)
	}
	slices.SortFunc(list, func(a, b Process) int { return a.PID - b.PID })
	return list, nil
}

// members are those of a sandbox.
func members(st *record.State, all map[int]Process) (list []Process) {
	children := map[int][]int{}
	for pid, p := range all {
		children[p.PPID] = append(children[p.PPID], pid)
	}
	// All descend from pid 1, except what Exec has started: the monitor's children
	// in a pid namespace below its own.
	queue := []int{st.PID}
	for _, pid := range children[st.MonitorPID] {
		if pid != st.PID && pidDepth(pid) > pidDepth(st.MonitorPID) {
			queue = append(queue, pid)
		}
	}
	for ; len(queue) > 0; queue = queue[1:] {
		if p, ok := all[queue[0]]; ok {
			list = append(list, p)
			queue = append(queue, children[p.PID]...)
		}
	}
	return list
}

// processes are all of the machine's.
func processes() (map[int]Process, error) {
	boot, err := bootTime()
	if err != nil {
		return nil, err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	all := map[int]Process{}
	for _, d := range dirs {
		p, err := readProcess(d, boot)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return nil, err
		}
		all[p.PID] = p
	}
	return all, nil
}

func readProcess(dir string, boot time.Time) (p Process, err error) {
	p.PID, _ = strconv.Atoi(filepath.Base(dir)) // only digits
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return p, err
	}
	// The name is the process's own choice, parentheses and all.
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	f := strings.Fields(string(stat[end+1:]))
	if open < 0 || end < open || len(f) < 22 {
		return p, fmt.Errorf("%s/stat is cut short", dir)
	}
	n := func(i int) int64 { v, _ := strconv.ParseInt(f[i], 10, 64); return v } // the kernel's
	p.PPID = int(n(1))
	p.CPU = time.Duration(n(11)+n(12)) * time.Second / hertz
	p.reaped = time.Duration(n(13)+n(14)) * time.Second / hertz
	p.Threads = int(n(17))
	p.Memory = uint64(n(21)) * uint64(os.Getpagesize())
	p.Started = boot.Add(time.Duration(n(19)) * time.Second / hertz)
	p.TTY = "?"
	if dev := n(4); dev>>8&0xfff >= 136 && dev>>8&0xfff <= 143 {
		p.TTY = fmt.Sprintf("pts/%d", (dev>>8&0xfff-136)<<8|dev&0xff|dev>>12&0xfff00)
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return p, err
	}
	p.UID = strconv.Itoa(int(fi.Sys().(*syscall.Stat_t).Uid))
	cmd, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return p, err
	}
	p.Command = strings.TrimSpace(strings.ReplaceAll(string(cmd), "\x00", " "))
	if p.Command == "" {
		p.Command = "[" + string(stat[open+1:end]) + "]"
	}
	return p, nil
}

// pidDepth is how many pid namespaces a process is in, 0 if it has ended.
func pidDepth(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	return parseDepth(string(b))
}

// parseDepth reads /proc/PID/status.
func parseDepth(status string) int {
	for line := range strings.Lines(status) {
		if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			return len(strings.Fields(ids))
		}
	}
	return 0
}

func bootTime() (time.Time, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}, err
	}
	return parseBoot(string(b))
}

// parseBoot reads /proc/stat.
func parseBoot(stat string) (time.Time, error) {
	for line := range strings.Lines(stat) {
		if v, ok := strings.CutPrefix(line, "btime "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return time.Unix(n, 0), err
		}
	}
	return time.Time{}, errors.New("/proc/stat has no btime")
}
