package boxdir

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/rootless-sbx/sbx/internal/atomicfile"
	"golang.org/x/sys/unix"
)

const pidName = "pid"

const (
	// killPatience is how long a process that was sent SIGKILL may take to be gone.
	killPatience = 10 * time.Second
	// endPatience is how long it usually takes at most; then it is looked at.
	endPatience = time.Second
)

// process names a process so that no other one is taken for it.
type process struct {
	PID   int    `json:"pid"`
	Start string `json:"start"` // field 22 of /proc/PID/stat
	PIDNS string `json:"pidns"` // the pid namespace that PID belongs to
	Boot  string `json:"boot"`
}

// Record writes down that pid, a child of this process, is the sandbox's pid 1.
func Record(path string, pid int) error {
	p := process{PID: pid}
	var err error
	if p.Start, err = startTime(pid); err == nil {
		p.PIDNS, p.Boot, err = here()
	}
	if err != nil {
		return fmt.Errorf("record the sandbox's process: %w", err)
	}
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(path, pidName), b, 0o600)
}

// Kill ends the recorded process, and with it every process of the sandbox, and
// returns when they have gone. The caller must be an owner of the directory.
func Kill(ctx context.Context, path string) error {
	const step = "end the sandbox's processes"
	b, err := atomicfile.Read(filepath.Join(path, pidName), maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	var p process
	if err := json.Unmarshal(b, &p); err != nil || p.PID <= 1 {
		return nil // cut short: written just before the monitor was killed, and init's death signal still held
	}
	ns, boot, err := here()
	if err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	if ns != p.PIDNS || boot != p.Boot {
		return nil // the number means nothing here
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: pidfd_open %d: %w", step, p.PID, err)
	}
	defer unix.Close(fd)
	if start, err := startTime(p.PID); err != nil || start != p.Start {
		if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return nil
		}
		return fmt.Errorf("%s: %w", step, err)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("%s: kill %d: %w", step, p.PID, err)
	}
	return waitEnd(ctx, fd, p.PID)
}

func waitEnd(ctx context.Context, fd, pid int) error {
	begin := time.Now()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
		switch {
		case n == 1:
			return nil
		case err != nil && err != unix.EINTR:
			return os.NewSyscallError("poll", err)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case time.Since(begin) > endPatience && onlyWaits(pid):
			return nil
		case time.Since(begin) > killPatience:
			return fmt.Errorf("end the sandbox's processes: %d still runs %v after SIGKILL", pid, killPatience)
		}
	}
}

// onlyWaits tells whether all threads of a killed pid 1 are at their end. It has given back
// memory and files, every process of its namespace was killed, and it stays until all of them
// are collected. A program of exec or a health check whose monitor was killed has as its
// parent the first process of the machine, or of the container in which sbx runs, and that
// one may never collect it.
func onlyWaits(pid int) bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, name := range threads {
		b, rerr := os.ReadFile(name)
		if errors.Is(rerr, fs.ErrNotExist) || errors.Is(rerr, unix.ESRCH) {
			continue
		}
		const exiting = 0x4 // PF_EXITING of linux/sched.h
		if flags, err := strconv.ParseUint(field(b, 9), 10, 64); err != nil || flags&exiting == 0 {
			return false
		}
	}
	return err == nil
}

// startTime is when a process was started; it tells a reused number.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	start, ok := parseStart(b)
	if !ok {
		return "", fmt.Errorf("/proc/%d/stat is cut short", pid)
	}
	return start, nil
}

// parseStart reads /proc/PID/stat.
func parseStart(stat []byte) (string, bool) {
	start := field(stat, 22)
	return start, start != ""
}

// field is one of /proc/PID/stat, as proc(5) counts them from the third, or "". The name,
// which is the second, is the process's own choice, parentheses and all.
func field(stat []byte, n int) string {
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) <= n-3 {
		return ""
	}
	return string(f[n-3])
}

// here names the pid namespace and the boot that a number is good for.
func here() (pidns, boot string, err error) {
	if pidns, err = os.Readlink("/proc/self/ns/pid"); err != nil {
		return "", "", err
	}
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return pidns, string(bytes.TrimSpace(b)), err
}
