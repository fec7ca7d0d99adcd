package security

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// outside is what a sandbox could reach if it got out: a file, a process, sockets, the
// settings of the machine.
type outside struct {
	e       *harness.Env
	canary  string // a file of the user's
	socket  string // a Unix socket, beside it
	secret  string // in the environment of sbx
	port    int    // of 127.0.0.1
	pid     int    // an ordinary process of the user's
	reached atomic.Int32
	before  map[string]string
}

const canaryText = "nobody has written here\n"

func newOutside(t *testing.T, e *harness.Env) *outside {
	dir := filepath.Join(e.Dir(), "outside")
	o := &outside{e: e, canary: filepath.Join(dir, "canary"), socket: filepath.Join(dir, "s"), secret: "sbx-canary-" + strconv.Itoa(os.Getpid())}
	must(t, os.Mkdir(dir, 0o755))
	must(t, os.WriteFile(o.canary, []byte(canaryText), 0o666))
	for _, l := range []net.Addr{
		&net.UnixAddr{Net: "unix", Name: o.socket}, &net.UnixAddr{Net: "unix", Name: "@" + o.secret}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)},
	} {
		ln, err := net.Listen(l.Network(), l.String())
		must(t, err)
		t.Cleanup(func() { ln.Close() })
		if a, ok := ln.Addr().(*net.TCPAddr); ok {
			o.port = a.Port
		}
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				o.reached.Add(1)
				c.Close()
			}
		}()
	}
	cmd := exec.Command("sleep", "1000")
	must(t, cmd.Start())
	o.pid = cmd.Process.Pid
	harness.Helper(o.pid)
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	e.Setenv("SBX_WITNESS=" + o.secret)
	o.before = o.look(t)
	return o
}

// settings are files of the host that every user can read.
var settings = []string{
	"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname",
	"/proc/sys/kernel/panic", "/proc/sys/kernel/sysrq", "/proc/sys/vm/overcommit_memory", "/proc/sys/net/ipv4/ip_forward",
	"/proc/sys/user/max_user_namespaces", "/proc/swaps", "/proc/self/cgroup", "/sys/kernel/uevent_helper",
}

// look is all that must stay as it is.
func (o *outside) look(t *testing.T) map[string]string {
	t.Helper()
	seen := map[string]string{"connections": strconv.Itoa(int(o.reached.Load()))}
	for _, f := range append([]string{o.canary}, settings...) {
		b, err := os.ReadFile(f)
		seen[f] = fmt.Sprintf("%s%v", b, err)
	}
	for _, f := range []string{o.canary, filepath.Dir(o.canary), harness.Binary()} {
		st, err := os.Stat(f)
		must(t, err)
		seen["stat "+f] = fmt.Sprint(st.Mode(), st.Size(), st.ModTime(), st.Sys().(*syscall.Stat_t).Ctim)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", o.pid))
	must(t, err)
	for line := range strings.Lines(string(status)) {
		for _, key := range []string{"TracerPid", "Uid", "Cpus_allowed", "SigPnd", "ShdPnd"} {
			if strings.HasPrefix(line, key+":") {
				seen["process "+key] = line
			}
		}
	}
	nice, err := unix.Getpriority(unix.PRIO_PROCESS, o.pid)
	must(t, err)
	seen["nice"] = strconv.Itoa(nice)
	adj, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", o.pid))
	must(t, err)
	seen["oom_score_adj"] = string(adj)
	var limit unix.Rlimit
	must(t, unix.Prlimit(o.pid, unix.RLIMIT_CORE, nil, &limit))
	seen["limit"] = fmt.Sprint(limit)
	var real, boot unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_REALTIME, &real))
	must(t, unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot))
	seen["clock"] = strconv.FormatInt((real.Sec-boot.Sec)/3600, 10) // an hour's difference is one
	return seen
}

// unchanged compares with how it was.
func (o *outside) unchanged(t *testing.T) {
	t.Helper()
	now := o.look(t)
	if maps.Equal(now, o.before) {
		return
	}
	for k, v := range o.before {
		if now[k] != v {
			t.Errorf("%s was %q, is %q", k, v, now[k])
		}
	}
	o.before = now
}

// words replaces what an attempt cannot know before: CANARY, SOCKET, PID and so on.
func (o *outside) words(list []string) []string {
	r := strings.NewReplacer("CANARY", o.canary, "SOCKET", o.socket, "SECRET", o.secret, "PORT", strconv.Itoa(o.port),
		"PID", strconv.Itoa(o.pid), "DIR", filepath.Dir(o.canary))
	out := make([]string, len(list))
	for i, w := range list {
		out[i] = r.Replace(w)
	}
	return out
}

// run makes an attempt in a sandbox and returns what came of it.
func (o *outside) run(t *testing.T, flags, try []string) string {
	t.Helper()
	args := append([]string{"run", "--rm"}, o.words(flags)...)
	r := o.e.In(t).Run(append(append(args, harness.BB, "/probe", "try"), o.words(try)...)...)
	if r.Code != 0 && r.Stdout == "" {
		return strings.TrimSpace(r.Stderr)
	}
	return lastLine(r.Stdout)
}

// onHost makes it where nothing is in the way, as the same user.
func (o *outside) onHost(t *testing.T, try []string) string {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self, append([]string{"try"}, o.words(try)...)...)
	cmd.Args[0] = "probe"
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return err.Error()
	}
	return lastLine(out.String())
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
