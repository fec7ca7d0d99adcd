package cgroup

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary also plays a monitor and the workloads of a group.
func TestMain(m *testing.M) {
	if role, ok := strings.CutPrefix(os.Args[0], "cgroup-test-"); ok {
		roles[role]()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var roles = map[string]func(){
	"monitor": playMonitor,
	"sleep":   func() { time.Sleep(time.Hour) },
	"burn": func() {
		for n := uint64(1); n > 0; n += 2 {
		}
	},
	"hog": func() {
		for all := [][]byte{}; ; {
			all = append(all, bytes.Repeat([]byte{1}, 1<<20))
		}
	},
	// fork starts processes until it may not, and exits with the errno.
	"fork": func() {
		for {
			_, err := os.StartProcess("/proc/self/exe", []string{"cgroup-test-sleep"}, &os.ProcAttr{})
			if err != nil {
				var errno syscall.Errno
				if e, ok := err.(*os.PathError); ok {
					errno, _ = e.Err.(syscall.Errno)
				}
				os.Exit(int(errno))
			}
		}
	},
}

// playMonitor reads "ROLE DIR" and starts that workload in the group DIR: only who is
// in the scope himself may do that.
func playMonitor() {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		role, dir, _ := strings.Cut(in.Text(), " ")
		go func() {
			fmt.Println(startIn(role, dir))
		}()
	}
}

// startIn starts a workload in a group and returns "ROLE PID", or "ROLE: an error".
func startIn(role, dir string) string {
	fd, err := syscall.Open(dir, syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return role + ": " + err.Error()
	}
	defer syscall.Close(fd)
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{"cgroup-test-" + role}, SysProcAttr: &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}}
	if err := cmd.Start(); err != nil {
		return role + ": " + err.Error()
	}
	go func() {
		cmd.Wait()
		ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
		fmt.Printf("%s ended %d %d\n", role, ws.ExitStatus(), ws.Signal())
	}()
	return role + " " + strconv.Itoa(cmd.Process.Pid)
}

// monitor is the process that a group is made for.
type monitor struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader
}

func startMonitor(t *testing.T) *monitor {
	t.Helper()
	m := &monitor{t: t, cmd: &exec.Cmd{Path: "/proc/self/exe", Args: []string{"cgroup-test-monitor"}, Stderr: os.Stderr}}
	in, err := m.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	m.in, m.out = in, bufio.NewReader(out)
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.kill)
	return m
}

func (m *monitor) kill() {
	m.cmd.Process.Kill()
	m.cmd.Wait()
}

// start starts a workload in the group and returns its pid.
func (m *monitor) start(role string, g *Group) int {
	m.t.Helper()
	fmt.Fprintf(m.in, "%s %s\n", role, g.box())
	line := m.line()
	pid, err := strconv.Atoi(strings.TrimPrefix(line, role+" "))
	if err != nil {
		m.t.Fatalf("start %s: %s", role, line)
	}
	return pid
}

// ended waits for the end of a workload.
func (m *monitor) ended(role string) (status int, signal syscall.Signal) {
	m.t.Helper()
	line := m.line()
	var sig int
	if _, err := fmt.Sscanf(line, role+" ended %d %d", &status, &sig); err != nil {
		m.t.Fatalf("%s: %s", role, line)
	}
	return status, syscall.Signal(sig)
}

func (m *monitor) line() string {
	m.t.Helper()
	line, err := m.out.ReadString('\n')
	if err != nil {
		m.t.Fatalf("the monitor: %v", err)
	}
	return strings.TrimSpace(line)
}

// eventually waits until fn no longer fails; the test's own timeout is the limit.
func eventually(t *testing.T, fn func() error) {
	t.Helper()
	end := time.Now().Add(time.Minute)
	for {
		err := fn()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
