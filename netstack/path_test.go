package netstack

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pathEnv names the test that runs in namespaces of its own.
const pathEnv = "NETSTACK_TEST_PATH"

// inOwnNamespace runs the test once more, in a user and network namespace where
// it may make a real network. It returns true in there.
func inOwnNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(pathEnv) == t.Name() {
		return true
	}
	args := []string{"-test.run=^" + t.Name() + "$", "-test.timeout=60s"}
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), pathEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in its own namespace: %v", err)
	}
	if err != nil || testing.Verbose() {
		t.Logf("%s", out)
	}
	return false
}

func ipCommand(args ...string) error {
	bin, err := exec.LookPath("ip") // Debian package iproute2
	if err != nil {
		bin = "/usr/sbin/ip"
	}
	if out, err := exec.Command(bin, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// The network of a path test: the test's own namespace is the host of the
// gateway.
//
//	host --- MTU 1500 --- router --- MTU 1400 --- server
var (
	pathRouter4, pathRouter6 = netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8:2::2")
	pathServer4, pathServer6 = netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8:113::2")
)

const pathEcho = 7777

// newPath makes the network. The router and the server echo datagrams.
func newPath(t *testing.T) {
	t.Helper()
	router, server := newGuest(t), newGuest(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	words := func(s string) request { return request{Args: strings.Fields(s)} }
	pid := func(g *guest) string { return fmt.Sprint(g.cmd.Process.Pid) }

	must(SetupLoopback())
	must(ipCommand(strings.Fields("link add h0 mtu 1500 type veth peer name r0 mtu 1500 netns " + pid(router))...))
	must(ipCommand(strings.Fields("link add r1 mtu 1400 netns " + pid(router) + " type veth peer name s0 mtu 1400 netns " + pid(server))...))
	for _, c := range []string{
		"link set h0 up", "addr add 192.0.2.1/24 dev h0", "addr add 2001:db8:2::1/64 dev h0 nodad",
	} {
		must(ipCommand(strings.Fields(c)...))
	}
	for _, c := range []string{
		"link set lo up", "link set r0 up", "link set r1 up",
		"addr add 192.0.2.2/24 dev r0", "addr add 2001:db8:2::2/64 dev r0 nodad",
		"addr add 203.0.113.1/24 dev r1", "addr add 2001:db8:113::1/64 dev r1 nodad",
	} {
		router.do("ip", words(c))
	}
	for _, c := range []string{
		"link set lo up", "link set s0 up",
		"addr add 203.0.113.2/24 dev s0", "addr add 2001:db8:113::2/64 dev s0 nodad",
		"route add default via 203.0.113.1", "route add default via 2001:db8:113::1",
	} {
		server.do("ip", words(c))
	}
	must(ipCommand("route", "add", "default", "via", "192.0.2.2"))
	must(ipCommand("route", "add", "default", "via", "2001:db8:2::2"))
	for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		router.do("set-sysctl", request{Addr: name, Text: "1"})
	}
	for _, g := range []*guest{router, server} {
		for _, name := range []string{"net/ipv4/icmp_ratelimit", "net/ipv6/icmp/ratelimit"} {
			g.do("set-sysctl", request{Addr: name, Text: "0"})
		}
		g.do("listen-udp", request{Network: "udp", Addr: fmt.Sprint(":", pathEcho)})
	}
	// For the echoes of the gateway.
	if _, err := writeSysctl("net/ipv4/ping_group_range", "0 0"); err != nil {
		t.Fatal(err)
	}
	// The links have no carrier for a moment.
	for _, a := range []netip.Addr{pathServer4, pathServer6} {
		for i := 0; ; i++ {
			if got, err := guestDatagrams(request{Network: "udp", Addr: hostPortOf(a, pathEcho), Sizes: []int{1}}); err == nil && strings.HasPrefix(got, "ok") {
				break
			} else if i == 100 {
				t.Fatalf("%s does not answer: %s, %v", a, got, err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// guestDatagrams sends one datagram of each size, once, and says what became of
// it: "ok" if its echo came. The last word is the MTU that the kernel has in
// mind. Mode, if not zero, is the socket's IP_MTU_DISCOVER plus one.
func guestDatagrams(req request) (string, error) {
	conn, err := net.Dial(req.Network, req.Addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	c := conn.(*net.UDPConn)
	level, optMode, optMTU := unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_MTU
	if c.RemoteAddr().(*net.UDPAddr).IP.To4() == nil {
		level, optMode, optMTU = unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_MTU
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return "", err
	}
	if req.Mode != 0 {
		cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, optMode, req.Mode-1) })
		if err = errors.Join(err, cerr); err != nil {
			return "", err
		}
	}
	if req.Timeout == 0 || req.Timeout > time.Second {
		req.Timeout = time.Second
	}
	var said []string
	for i, size := range req.Sizes {
		word, err := onceAround(c, uint64(i+1), size, req.Timeout)
		if err != nil {
			return "", err
		}
		said = append(said, word)
		time.Sleep(20 * time.Millisecond) // let the gateway read on, until nothing is left
	}
	mtu := 0
	cerr := raw.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), level, optMTU) })
	return strings.Join(append(said, fmt.Sprint(mtu)), " "), errors.Join(err, cerr)
}

func onceAround(c *net.UDPConn, seed uint64, size int, timeout time.Duration) (string, error) {
	want, err := io.ReadAll(randomBytes(seed, int64(size)))
	if err != nil {
		return "", err
	}
	var errno syscall.Errno
	if _, err := c.Write(want); errors.As(err, &errno) {
		return "send:" + unix.ErrnoName(errno), nil
	} else if err != nil {
		return "", err
	}
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	buf := make([]byte, 65536)
	n, err := c.Read(buf)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "lost", nil
	case errors.As(err, &errno):
		return "receive:" + unix.ErrnoName(errno), nil
	case err != nil:
		return "", err
	case string(buf[:n]) != string(want):
		return "", fmt.Errorf("echo of %d bytes differs (%d bytes)", size, n)
	}
	return "ok", nil
}

// guestTrace sends datagrams with a TTL of 1, 2, ... and says who answered what.
func guestTrace(req request) (string, error) {
	to, err := netip.ParseAddrPort(req.Addr)
	if err != nil {
		return "", err
	}
	s, err := new(Network).newHostSocket(protoUDP, to.Addr().Is6())
	if err != nil {
		return "", err
	}
	defer s.close()
	var hops []string
	for ttl := range req.Sizes {
		if err := s.send(to, uint8(ttl+1), false, 0, [][]byte{[]byte("trace")}); err != nil && !pendingError(err) {
			return "", err
		}
		hop := "silence"
		for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if e, ok := s.readError(s.fd); ok {
				hop = fmt.Sprintf("%s:%d/%d", e.offender, e.what.typ, e.what.code)
				break
			}
		}
		// The error is pending on the socket, too.
		if _, _, err := unix.Recvfrom(s.fd, make([]byte, 1), unix.MSG_DONTWAIT); err == nil {
			return "", errors.New("a datagram came back")
		}
		hops = append(hops, hop)
	}
	return strings.Join(hops, " "), nil
}

func newPathLAN(t *testing.T) *lan {
	return newLAN(t, func(c *Config) { c.Redirect = nil })
}

// TestPathMTU is a link of 65520 bytes in front of an ordinary network.
func TestPathMTU(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	newPath(t)
	const modeDo, modeProbe = unix.IP_PMTUDISC_DO + 1, unix.IP_PMTUDISC_PROBE + 1
	sizes := []int{1, 1471, 1472, 1473, 2000, 9000, 30000, 60000, 1, 60000, 65000, 1452, 1453}
	all := strings.Repeat("ok ", len(sizes))
	for _, c := range []struct {
		name   string
		server [2]netip.Addr
		mode   int
		sizes  []int
		want   [2]string // over IPv4 and IPv6
	}{
		{"ordinary", [2]netip.Addr{pathRouter4, pathRouter6}, 0, sizes, [2]string{all + "1500", all + "1500"}},
		{"ordinary, big first", [2]netip.Addr{pathRouter4, pathRouter6}, 0, []int{60000, 60000}, [2]string{"ok ok 1500", "ok ok 1500"}},
		{"never cut", [2]netip.Addr{pathRouter4, pathRouter6}, modeDo, []int{1400, 5000, 5000, 1473, 1453, 1452},
			[2]string{"ok ok send:EMSGSIZE send:EMSGSIZE ok ok 1500", "ok ok send:EMSGSIZE send:EMSGSIZE send:EMSGSIZE ok 1500"}},
		{"probe", [2]netip.Addr{pathRouter4, pathRouter6}, modeProbe, []int{5000, 5000, 1400, 9000},
			[2]string{"ok receive:EMSGSIZE ok receive:EMSGSIZE 1500", "ok receive:EMSGSIZE ok receive:EMSGSIZE 1500"}},
		// Behind the narrow link it is as behind any router.
		{"narrow", [2]netip.Addr{pathServer4, pathServer6}, 0, []int{1300, 1450, 1450, 9000, 60000},
			[2]string{"ok receive:EMSGSIZE ok ok ok 1400", "ok receive:EMSGSIZE ok ok ok 1400"}},
		{"narrow, never cut", [2]netip.Addr{pathServer4, pathServer6}, modeDo, []int{1450, 1450, 1352},
			[2]string{"receive:EMSGSIZE send:EMSGSIZE ok 1400", "receive:EMSGSIZE send:EMSGSIZE ok 1400"}},
	} {
		for _, driver := range drivers {
			for i, server := range c.server {
				t.Run(fmt.Sprintf("%s/%s/%s", strings.ReplaceAll(c.name, " ", "-"), driver, server), func(t *testing.T) {
					forgetPaths(t)
					l := newPathLAN(t)
					g, _ := l.join(t, 0, driver, nil)
					got := g.do("datagrams", request{Network: "udp", Addr: hostPortOf(server, pathEcho), Sizes: c.sizes, Mode: c.mode}).Text
					if got != c.want[i] {
						t.Errorf("datagrams of %v bytes: %s, want %s", c.sizes, got, c.want[i])
					}
				})
			}
		}
	}
	t.Run("echo", func(t *testing.T) {
		l := newPathLAN(t)
		g, _ := l.join(t, 0, DriverTap, nil)
		for _, a := range []netip.Addr{pathRouter4, pathRouter6} {
			g.do("ping", request{Addr: a.String(), Sizes: []int{56, 1472, 1473, 9000, 60000}})
		}
	})
}

// forgetPaths makes the host's kernel forget what it learned of MTUs.
func forgetPaths(t *testing.T) {
	for _, family := range []string{"-4", "-6"} {
		if err := ipCommand(family, "route", "flush", "cache"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTraceroute is the way of a TTL: each hop of the real path answers.
func TestTraceroute(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	newPath(t)
	l := newPathLAN(t)
	g, _ := l.join(t, 0, DriverTap, nil)
	for _, c := range []struct {
		server, gateway, router netip.Addr
		expired, refused        string
	}{
		{pathServer4, l.cfg.Gateway4, pathRouter4, "11/0", "3/3"},
		{pathServer6, l.cfg.Gateway6, pathRouter6, "3/0", "1/4"},
	} {
		got := g.do("ttl", request{Addr: hostPortOf(c.server, pathEcho+1), Sizes: make([]int, 3)}).Text
		want := fmt.Sprintf("%s:%s %s:%s %s:%s", c.gateway, c.expired, c.router, c.expired, c.server, c.refused)
		if got != want {
			t.Errorf("hops to %s: %s, want %s", c.server, got, want)
		}
	}
}

// TestPingForbidden is a host whose groups may not use ping sockets: the log
// says so once.
func TestPingForbidden(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	if err := SetupLoopback(); err != nil {
		t.Fatal(err)
	}
	l := newLAN(t, nil)
	g, p := l.join(t, 0, DriverTap, nil)
	for _, a := range []netip.Addr{outside4, outside4, outside6} {
		if _, err := g.try("ping", request{Addr: a.String(), Sizes: []int{56}, Timeout: 200 * time.Millisecond}); err == nil {
			t.Errorf("an echo from %s without a ping socket", a)
		}
	}
	if n := strings.Count(l.log.String(), "ping_group_range"); n == 0 || strings.Count(l.log.String(), "no ICMP echo for sandboxes") != 1 {
		t.Errorf("log has %d mentions of the sysctl, want one warning:\n%s", n, l.log)
	}
	if n := p.Stats().Drops[DropPing.String()] + p.Stats().Drops[DropUDPSend.String()]; n != 3 {
		t.Errorf("%d echoes counted as dropped, want 3", n)
	}
	if _, err := os.Stat(filepath.Join(sysctlRoot, "net/ipv4/ping_group_range")); err != nil {
		t.Error(err)
	}
}
