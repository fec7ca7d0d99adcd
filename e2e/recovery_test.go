package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// machine is a host in namespaces of the user's own, whose network and files of /etc
// a test may change as root of a real one: 10.9.0.2, behind the router 10.9.0.1, which
// is also the rest of the world: on 10.9.9.9 a web server, on port 7 an echo and on port 9
// one that says who asks, and on 10.9.9.53 and .54 name servers that know web.test, each another one.
// The first has names that it should not have, too, and 169.254.169.254 is that of a cloud.
type machine struct {
	t    *testing.T
	pid  int
	etc  string // the machine's /etc, from outside
	exec []string
}

const machineScript = `
mount --bind "$ETC" /etc
ip link set lo up
unshare --net sh -ec '
	echo $$ >"$DIR/world.tmp"; mv "$DIR/world.tmp" "$DIR/world"
	until ip link show world >/dev/null 2>&1; do sleep 0.02; done
	ip link set lo up
	ip link set world up
	ip addr add 10.9.0.1/24 dev world
	for a in 10.9.9.9 10.9.9.53 10.9.9.54 169.254.169.254; do ip addr add $a/32 dev lo; done
	"$DIR/probe" serve 10.9.9.9:80 169.254.169.254:80 >"$DIR/up1" &
	"$DIR/probe" echo 10.9.9.9:7 >"$DIR/up2" &
	"$DIR/probe" who 10.9.9.9:9 >"$DIR/up3" &
	"$DIR/probe" dns 10.9.9.53:53 web.test=10.9.9.9 one.test=192.0.2.1 \
		loop.test=127.0.0.1 six.test=fd00:9::9 cloud.test=169.254.169.254 me.test=10.9.0.2 >"$DIR/up4" &
	exec "$DIR/probe" dns 10.9.9.54:53 web.test=10.9.9.9 two.test=192.0.2.2 >"$DIR/up5"' &
until [ -e "$DIR/world" ]; do sleep 0.02; done
ip link add eth0 type veth peer name world
ip link set world netns "$(cat "$DIR/world")"
ip addr add 10.9.0.2/24 dev eth0
ip link set eth0 up
ip route add default via 10.9.0.1
echo 0 2147483647 2>/dev/null >/proc/sys/net/ipv4/ping_group_range || true
for n in 1 2 3 4 5; do until [ -s "$DIR/up$n" ]; do sleep 0.02; done; done # they serve
echo ready
wait
`

func newMachine(t *testing.T, e *harness.Env) *machine {
	t.Helper()
	m := &machine{t: t, etc: filepath.Join(e.Dir(), "etc")}
	exe, err := os.Executable()
	if err == nil {
		err = os.Symlink(exe, filepath.Join(e.Dir(), "probe"))
	}
	if err == nil {
		err = os.Mkdir(m.etc, 0o755)
	}
	for _, name := range []string{"passwd", "group", "nsswitch.conf", "ld.so.cache"} {
		var b []byte
		if b, err = os.ReadFile("/etc/" + name); err == nil {
			err = os.WriteFile(filepath.Join(m.etc, name), b, 0o644)
		}
		if err != nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	m.resolv("nameserver 10.9.9.53\n")
	cmd := exec.Command("unshare", "--user", "--map-auto", "--map-root-user", "--mount", "--net", "sh", "-ec", machineScript)
	cmd.Env = append(os.Environ(), "DIR="+e.Dir(), "ETC="+m.etc)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	m.pid = cmd.Process.Pid
	harness.Helper(m.pid)
	t.Cleanup(func() {
		_ = syscall.Kill(-m.pid, syscall.SIGKILL) // with its servers
		_ = cmd.Wait()                            // killed, as asked
	})
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatalf("the machine did not come up: %v: %s", err, stderr.String())
	}
	m.exec = []string{"nsenter", "--target", strconv.Itoa(m.pid), "--user", "--mount", "--net", "--preserve-credentials"}
	e.Prefix = m.exec
	return m
}

// do runs a command as root of the machine.
func (m *machine) do(script string) {
	m.t.Helper()
	line := append(append([]string{}, m.exec...), "sh", "-ec", script)
	if out, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
		m.t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// resolv writes resolv.conf in place.
func (m *machine) resolv(text string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.etc, "resolv.conf"), []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// ticks is the processor time that a process has used, in hundredths of a second.
func ticks(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	user, err1 := strconv.Atoi(f[11])
	system, err2 := strconv.Atoi(f[12])
	if err1 != nil || err2 != nil {
		t.Fatalf("%q", b)
	}
	return user + system
}

// TestHostChanges: name servers, routes and interfaces of the host come and go, and
// its processes stand still for a while; sandboxes get along without being started
// again, and nobody turns in circles meanwhile.
func TestHostChanges(t *testing.T) {
	e := harness.New(t, harness.BB)
	m := newMachine(t, e)
	detached(t, e, "box", harness.BB, "sleep", "1000")
	works := func() {
		t.Helper()
		until(t, e, "probe /", "exec", "box", "/probe", "get", "http://web.test/")
	}
	works()
	netd := e.Role("sbx-netd")
	if len(netd) != 1 {
		t.Fatalf("%d network processes", len(netd))
	}

	// Name servers: written, replaced, behind a link, none, and back.
	path := filepath.Join(m.etc, "resolv.conf")
	knows := func(yes, no string) {
		t.Helper()
		until(t, e, "192.0.2.", "exec", "box", "/probe", "lookup", yes)
		if out := e.Must("exec", "box", "/probe", "lookup", no); !strings.HasPrefix(out, "error") {
			t.Errorf("%s: %q of a server that is not asked any more", no, out)
		}
	}
	knows("one.test", "two.test")
	m.resolv("nameserver 10.9.9.54\n")
	knows("two.test", "one.test")
	other := filepath.Join(m.etc, "other")
	if err := os.WriteFile(other, []byte("nameserver 10.9.9.53\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	knows("one.test", "two.test")
	for _, name := range []string{"a", "b"} {
		text := map[string]string{"a": "nameserver 10.9.9.54\n", "b": "nameserver 10.9.9.53\n"}[name]
		if err := os.WriteFile(filepath.Join(m.etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(name, other); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(other, path); err != nil {
			t.Fatal(err)
		}
		if name == "a" {
			knows("two.test", "one.test")
		} else {
			knows("one.test", "two.test")
		}
	}
	m.resolv("")
	until(t, e, "error", "exec", "box", "/probe", "lookup", "one.test")
	m.resolv("nameserver 10.9.9.53\n")
	works()

	// The default route, and the interface.
	dial := []string{"exec", "box", "/probe", "dial", "tcp", "10.9.9.9:80"}
	m.do("ip route del default")
	until(t, e, "ENETUNREACH", dial...)
	before := ticks(t, netd[0])
	until(t, e, "error", "exec", "box", "/probe", "lookup", "none.test")
	m.do("ip route add default via 10.9.0.1")
	works()
	m.do("ip link set eth0 down")
	until(t, e, "ENETUNREACH", dial...)
	m.do("ip link set eth0 up; ip route add default via 10.9.0.1")
	works()

	// The network's process, the monitor and what they are asked for stand still.
	stopped := append(netd, e.Role("sbx-monitor")...)
	for _, pid := range stopped {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Second)
	for _, pid := range stopped {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	works()
	if now := e.Role("sbx-netd"); len(now) != 1 || now[0] != netd[0] {
		t.Errorf("network processes %v, was %v", now, netd)
	}
	if used := ticks(t, netd[0]) - before; used > 100 {
		t.Errorf("the network's process used %d ms of a processor while there was nothing to do", 10*used)
	}
}
