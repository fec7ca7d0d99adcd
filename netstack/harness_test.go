package netstack

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/internal/ethtool"
	"github.com/rootless-sbx/sbx/internal/wire"
	"golang.org/x/sys/unix"
)

// guestEnv makes the test binary the guest of a test.
const guestEnv = "NETSTACK_TEST_GUEST"

func TestMain(m *testing.M) {
	if os.Getenv(guestEnv) != "" {
		if err := runGuest(); err != nil {
			fmt.Fprintln(os.Stderr, "guest:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// The transfers that both sides speak over TCP. The client's first bytes are
// header; then:
//
//	'U' upload    the client sends Size bytes and a FIN, the server answers with their sum
//	'D' download  the client sends a FIN, the server Size bytes and a FIN
//	'E' echo      the server sends back what it gets
//	'B' both      each side sends Size bytes at the same time, the server then the sum of what it got
type transfer struct {
	Op   byte
	Size int64
	Seed uint64
}

func (x transfer) header() []byte {
	b := []byte{x.Op}
	b = binary.BigEndian.AppendUint64(b, uint64(x.Size))
	return binary.BigEndian.AppendUint64(b, x.Seed)
}

func randomBytes(seed uint64, n int64) io.Reader {
	var s [32]byte
	binary.BigEndian.PutUint64(s[:], seed)
	return io.LimitReader(rand.NewChaCha8(s), n)
}

func sumOf(seed uint64, n int64) []byte {
	h := sha256.New()
	if _, err := io.Copy(h, randomBytes(seed, n)); err != nil {
		panic(err)
	}
	return h.Sum(nil)
}

// bufferedCopy hides ReadFrom and WriteTo, so that a big buffer is used.
func bufferedCopy(dst io.Writer, src io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 256<<10))
}

func serveTransfer(c *net.TCPConn) error {
	defer c.Close()
	var b [17]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return err
	}
	x := transfer{b[0], int64(binary.BigEndian.Uint64(b[1:])), binary.BigEndian.Uint64(b[9:])}
	switch x.Op {
	case 'U':
		h := sha256.New()
		if _, err := bufferedCopy(h, c); err != nil {
			return err
		}
		_, err := c.Write(h.Sum(nil))
		return err
	case 'D':
		_, err := bufferedCopy(c, randomBytes(x.Seed, x.Size))
		return err
	case 'E':
		_, err := bufferedCopy(c, c)
		return err
	case 'B':
		return serveBoth(c, x)
	case 'S': // sink, for throughput
		_, err := bufferedCopy(io.Discard, c)
		return err
	case 'Z': // zeros until the client goes
		buf := make([]byte, 256<<10)
		for {
			if _, err := c.Write(buf); err != nil {
				return nil
			}
		}
	}
	return fmt.Errorf("unknown transfer %q", x.Op)
}

func clientTransfer(c *net.TCPConn, x transfer) error {
	defer c.Close()
	if _, err := c.Write(x.header()); err != nil {
		return err
	}
	switch x.Op {
	case 'B':
		return clientBoth(c, x)
	case 'U':
		if _, err := bufferedCopy(c, randomBytes(x.Seed, x.Size)); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		if err := c.CloseWrite(); err != nil {
			return err
		}
		got, err := io.ReadAll(c)
		if err != nil {
			return fmt.Errorf("read the sum: %w", err)
		}
		if want := sumOf(x.Seed, x.Size); string(got) != string(want) {
			return fmt.Errorf("sum is %x, want %x", got, want)
		}
	case 'D':
		if err := c.CloseWrite(); err != nil {
			return err
		}
		h := sha256.New()
		n, err := bufferedCopy(struct{ hash.Hash }{h}, c)
		if err != nil || n != x.Size {
			return fmt.Errorf("received %d of %d bytes: %w", n, x.Size, err)
		}
		if got, want := h.Sum(nil), sumOf(x.Seed, x.Size); string(got) != string(want) {
			return fmt.Errorf("sum is %x, want %x", got, want)
		}
	}
	return nil
}

// serveTCP runs transfers on every connection of l until it is closed.
func serveTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go serveTransfer(c.(*net.TCPConn))
	}
}

// serveUDP echoes datagrams until the socket is closed.
func serveUDP(c *net.UDPConn) {
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			c.WriteToUDPAddrPort(buf[:n], from)
		}
	}
}

// request is what a test asks of its guest.
type request struct {
	Network, Addr string
	Local         string
	Transfer      transfer
	Sizes         []int
	Timeout       time.Duration
	Config        GuestConfig
	Args          []string
	Text          string
	Mode          int
}

// response is the guest's answer to it.
type response struct {
	Link    GuestLink
	Text    string
	Elapsed time.Duration
	Rate    float64
}

// guest is a process in a user and network namespace of its own, linked to
// nothing yet.
type guest struct {
	t    testing.TB
	cmd  *exec.Cmd
	conn *wire.Conn
	// link is set by setup.
	link *os.File
	info GuestLink
}

func newGuest(t testing.TB) *guest {
	t.Helper()
	ours, theirs, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), guestEnv+"=1")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start a guest: %v", err)
	}
	theirs.Close()
	conn, err := wire.NewConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, cmd: cmd, conn: conn}
	served := make(chan struct{})
	go func() {
		defer close(served)
		conn.Serve(func(*wire.Message) {})
	}()
	t.Cleanup(func() {
		conn.Close()
		<-served
		if err := cmd.Wait(); err != nil {
			t.Errorf("guest: %v", err)
		}
	})
	return g
}

// in is the guest for a subtest.
func (g *guest) in(t testing.TB) *guest {
	c := *g
	c.t = t
	return &c
}

func (g *guest) try(op string, req request) (response, error) {
	var resp response
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	m, err := g.conn.Call(ctx, op, req, &resp)
	if err == nil && (op == "setup" || op == "uplink") {
		g.link, err = m.Take("link")
	}
	if m != nil {
		m.CloseFiles()
	}
	return resp, err
}

func (g *guest) do(op string, req request) response {
	g.t.Helper()
	resp, err := g.try(op, req)
	if err != nil {
		g.t.Fatalf("guest: %s %s %s: %v", op, req.Network, req.Addr, err)
	}
	return resp
}

// setup makes the guest's link.
func (g *guest) setup(cfg GuestConfig) {
	g.t.Helper()
	g.info = g.do("setup", request{Config: cfg}).Link
}

// runGuest answers requests until the test closes the connection.
func runGuest() error {
	conn, err := wire.NewConn(os.NewFile(3, "control"))
	if err != nil {
		return err
	}
	return conn.Serve(func(m *wire.Message) {
		go func() {
			var req request
			err := m.Decode(&req)
			var resp response
			var files []wire.File
			if err == nil {
				resp, files, err = guestOp(m.Type, req)
			}
			if err := conn.Reply(m, resp, err, files...); err != nil {
				fmt.Fprintln(os.Stderr, "guest: reply:", err)
			}
			for _, f := range files {
				f.File.Close()
			}
		}()
	})
}

func guestOp(op string, req request) (resp response, files []wire.File, err error) {
	start := time.Now()
	defer func() { resp.Elapsed = time.Since(start) }()
	if req.Timeout == 0 {
		req.Timeout = 30 * time.Second
	}
	switch op {
	case "setup":
		if err := SetupLoopback(); err != nil {
			return resp, nil, err
		}
		link, err := SetupGuest(req.Config)
		if err != nil {
			return resp, nil, err
		}
		resp.Link = *link
		resp.Link.File = nil
		return resp, []wire.File{{Name: "link", File: link.File}}, nil
	case "uplink":
		u, err := OpenUplink(req.Addr)
		if err != nil {
			return resp, nil, err
		}
		return response{Link: GuestLink{MTU: u.MTU}, Text: u.Name}, []wire.File{{Name: "link", File: u.File}}, nil
	case "join-group":
		resp.Text, err = guestJoinGroup(req)
		return resp, nil, err
	case "frame":
		return resp, nil, guestSendFrame(req)
	case "tagged":
		resp.Text, err = guestTagged(req)
		return resp, nil, err
	case "hide-tun": // as where the module is missing
		if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			return resp, nil, os.NewSyscallError("mount", err)
		}
		return resp, nil, os.NewSyscallError("mount", syscall.Mount("/dev/null", tunDevice, "", syscall.MS_BIND, ""))
	case "tcp":
		c, err := guestDial(req)
		if err != nil {
			return resp, nil, err
		}
		c.SetDeadline(time.Now().Add(req.Timeout))
		return resp, nil, clientTransfer(c.(*net.TCPConn), req.Transfer)
	case "redial":
		return resp, nil, guestRedial(req)
	case "dial":
		c, err := guestDial(req)
		if err != nil {
			return resp, nil, err
		}
		return resp, nil, c.Close()
	case "rate":
		resp.Rate, err = guestRate(req)
		return resp, nil, err
	case "listen":
		l, err := net.Listen(req.Network, req.Addr)
		if err != nil {
			return resp, nil, err
		}
		go serveTCP(l)
		return resp, nil, nil
	case "listen-udp":
		a, err := net.ResolveUDPAddr(req.Network, req.Addr)
		if err != nil {
			return resp, nil, err
		}
		c, err := net.ListenUDP(req.Network, a)
		if err != nil {
			return resp, nil, err
		}
		go serveUDP(c)
		return resp, nil, nil
	case "remote": // accept one connection, say whose it is
		l, err := net.Listen(req.Network, req.Addr)
		if err != nil {
			return resp, nil, err
		}
		defer l.Close()
		l.(*net.TCPListener).SetDeadline(time.Now().Add(req.Timeout))
		c, err := l.Accept()
		if err != nil {
			return resp, nil, err
		}
		defer c.Close()
		resp.Text = c.RemoteAddr().String()
		return resp, nil, nil
	case "hangup": // connect, say one byte, reset
		c, err := guestDial(req)
		if err != nil {
			return resp, nil, err
		}
		if _, err := c.Write([]byte{'E'}); err != nil {
			return resp, nil, err
		}
		return resp, nil, errors.Join(c.(*net.TCPConn).SetLinger(0), c.Close())
	case "read": // connect, and read until the end
		c, err := guestDial(req)
		if err != nil {
			return resp, nil, err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(req.Timeout))
		b, err := io.ReadAll(c)
		resp.Text = string(b)
		return resp, nil, err
	case "dns-tcp": // two queries on one connection
		c, err := guestDial(req)
		if err != nil {
			return resp, nil, err
		}
		defer c.Close()
		for range 2 {
			if _, err := c.Write([]byte("\x00\x05query")); err != nil {
				return resp, nil, err
			}
			var b [2]byte
			if _, err := io.ReadFull(c, b[:]); err != nil {
				return resp, nil, err
			}
			answer := make([]byte, binary.BigEndian.Uint16(b[:]))
			if _, err := io.ReadFull(c, answer); err != nil {
				return resp, nil, err
			}
			resp.Text += string(answer) + ";"
		}
		return resp, nil, nil
	case "exchange": // one datagram, its answer
		c, err := guestDial(req)
		if err != nil {
			return resp, nil, err
		}
		defer c.Close()
		if _, err := c.Write([]byte("query")); err != nil {
			return resp, nil, err
		}
		c.SetDeadline(time.Now().Add(req.Timeout))
		b := make([]byte, 65536)
		n, err := c.Read(b)
		resp.Text = string(b[:n])
		return resp, nil, err
	case "udp":
		return resp, nil, guestUDP(req)
	case "ping":
		return resp, nil, guestPing(req)
	case "jam":
		return resp, nil, guestJam(req)
	case "late":
		return resp, nil, guestLate(req)
	case "many":
		return resp, nil, guestMany(req)
	case "offload":
		return resp, nil, ethtool.Offload("eth0", req.Text)
	case "ip": // iproute2
		return resp, nil, ipCommand(req.Args...)
	case "set-sysctl":
		_, err := writeSysctl(req.Addr, req.Text)
		return resp, nil, err
	case "datagrams":
		resp.Text, err = guestDatagrams(req)
		return resp, nil, err
	case "segments":
		resp.Text, err = guestSegments(req)
		return resp, nil, err
	case "ttl":
		resp.Text, err = guestTrace(req)
		return resp, nil, err
	case "sysctl":
		resp.Text, err = readSysctl(req.Addr)
		return resp, nil, err
	}
	return resp, nil, fmt.Errorf("unknown operation %q", op)
}

func guestDial(req request) (net.Conn, error) {
	d := net.Dialer{Timeout: req.Timeout}
	c, err := d.Dial(req.Network, req.Addr)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Timeout() {
			return nil, syscall.ETIMEDOUT
		}
	}
	return c, err
}

// guestRedial connects from one and the same port, again and again, to a server that
// closes first.
func guestRedial(req request) error {
	local, err := net.ResolveTCPAddr(req.Network, req.Local)
	if err != nil {
		return err
	}
	d := net.Dialer{Timeout: 4 * time.Second, LocalAddr: local, Deadline: time.Now().Add(req.Timeout)}
	for range req.Sizes[0] {
		c, err := d.Dial(req.Network, req.Addr)
		for errors.Is(err, syscall.EADDRINUSE) { // its last ACK is on the way
			time.Sleep(time.Millisecond)
			c, err = d.Dial(req.Network, req.Addr)
		}
		if err != nil {
			return err
		}
		_, err = io.ReadAll(c)
		if err = errors.Join(err, c.Close()); err != nil {
			return err
		}
	}
	return nil
}

// guestRate sends ('S') or receives ('Z') for the timeout and returns Gbit/s.
func guestRate(req request) (float64, error) {
	d := req.Timeout
	req.Timeout = 10 * time.Second
	c, err := guestDial(req)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if _, err := c.Write(req.Transfer.header()); err != nil {
		return 0, err
	}
	buf, n, start := make([]byte, 256<<10), 0, time.Now()
	for time.Since(start) < d {
		var m int
		if req.Transfer.Op == 'S' {
			m, err = c.Write(buf)
		} else {
			m, err = c.Read(buf)
		}
		if err != nil {
			return 0, err
		}
		n += m
	}
	return float64(n) * 8 / 1e9 / time.Since(start).Seconds(), nil
}

// udpTries is how often a datagram is sent until its echo comes.
const udpTries = 12

// guestUDP sends one datagram of each size and waits for its echo, again if it
// does not come and there is time.
func guestUDP(req request) error {
	c, err := net.Dial(req.Network, req.Addr)
	if err != nil {
		return err
	}
	defer c.Close()
	wait, tries := req.Timeout, 1
	if wait > 2*time.Second {
		wait, tries = 500*time.Millisecond, udpTries
	}
	buf := make([]byte, 65536)
	for _, size := range req.Sizes {
		want, err := io.ReadAll(randomBytes(uint64(size), int64(size)))
		if err != nil {
			return err
		}
		for try := 1; ; try++ {
			err := udpEcho(c, want, buf, wait)
			if err == nil {
				break
			}
			// A lost datagram, or the kernel has learned the path's MTU now.
			again := errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.EMSGSIZE)
			if !again || try >= tries {
				return fmt.Errorf("%d bytes: %w", size, err)
			}
		}
	}
	return nil
}

func udpEcho(c net.Conn, want, buf []byte, wait time.Duration) error {
	if _, err := c.Write(want); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	for {
		n, err := c.Read(buf)
		switch {
		case err != nil:
			return fmt.Errorf("receive: %w", err)
		case string(buf[:n]) == string(want):
			return nil
		case n == len(want):
			return errors.New("the echo differs")
		}
		// One more echo of another datagram.
	}
}

// guestSegments makes one write, which the kernel or the device cuts into
// datagrams of Mode bytes, and says which echoes come.
func guestSegments(req request) (string, error) {
	conn, err := net.Dial(req.Network, req.Addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		return "", err
	}
	cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, req.Mode) })
	if err = errors.Join(err, cerr); err != nil {
		return "", err
	}
	want, err := io.ReadAll(randomBytes(1, int64(req.Sizes[0])))
	if err != nil {
		return "", err
	}
	if _, err := conn.Write(want); err != nil {
		return "", err
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	var sizes []string
	buf := make([]byte, 65536)
	for len(want) > 0 {
		n, err := conn.Read(buf)
		if err != nil {
			return "", fmt.Errorf("after %v: %w", sizes, err)
		}
		if n > len(want) || string(buf[:n]) != string(want[:n]) {
			return "", fmt.Errorf("datagram %d differs (%d bytes)", len(sizes), n)
		}
		want, sizes = want[n:], append(sizes, fmt.Sprint(n))
	}
	return strings.Join(sizes, " "), nil
}

// guestPing sends echo requests of each size through a ping socket.
func guestPing(req request) error {
	a, err := netip.ParseAddr(req.Addr)
	if err != nil {
		return err
	}
	domain, proto := syscall.AF_INET, syscall.IPPROTO_ICMP
	if a.Is6() {
		domain, proto = syscall.AF_INET6, syscall.IPPROTO_ICMPV6
	}
	fd, err := syscall.Socket(domain, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, proto)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "ping")
	c, err := net.FilePacketConn(f)
	f.Close()
	if err != nil {
		return err
	}
	defer c.Close()
	for seq, size := range req.Sizes {
		msg, err := io.ReadAll(randomBytes(1, int64(icmpLen+size)))
		if err != nil {
			return err
		}
		msg[0], msg[1] = echoRequest(a.Is6()), 0
		binary.BigEndian.PutUint16(msg[6:], uint16(seq))
		if _, err := c.WriteTo(msg, &net.UDPAddr{IP: a.AsSlice()}); err != nil {
			return err
		}
		c.SetReadDeadline(time.Now().Add(min(req.Timeout, 5*time.Second)))
		buf := make([]byte, 65536)
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		if ip := from.(*net.UDPAddr).AddrPort().Addr().Unmap(); ip != a {
			return fmt.Errorf("reply from %s, want %s", ip, a)
		}
		if buf[0] != echoReply(a.Is6()) || string(buf[6:n]) != string(msg[6:]) {
			return fmt.Errorf("reply of %d bytes does not match the request of %d", n, len(msg))
		}
	}
	return nil
}

// lan is a network for tests and the addresses on it.
type lan struct {
	*Network
	log *logBuffer
}

var (
	testSubnet4 = netip.MustParsePrefix("10.99.0.0/24")
	testSubnet6 = netip.MustParsePrefix("fd99::/64")
	// outside4 and outside6 stand for hosts of the world; Redirect leads them to
	// the loopback of the test's host.
	outside4 = netip.MustParseAddr("198.51.100.1")
	outside6 = netip.MustParseAddr("2001:db8::1")
)

// toLoopback redirects the outside addresses and leaves the rest alone.
func toLoopback(proto string, src, dst netip.AddrPort) (netip.AddrPort, error) {
	switch dst.Addr() {
	case outside4:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dst.Port()), nil
	case outside6:
		return netip.AddrPortFrom(netip.IPv6Loopback(), dst.Port()), nil
	}
	return dst, syscall.ENETUNREACH
}

func newLAN(t testing.TB, edit func(*Config)) *lan {
	t.Helper()
	checkLeaks(t)
	return secondLAN(t, edit)
}

// secondLAN is one more, whose leaks the first one's check finds.
func secondLAN(t testing.TB, edit func(*Config)) *lan {
	t.Helper()
	log := &logBuffer{}
	cfg := Config{
		Name: "test", Subnet4: testSubnet4, Subnet6: testSubnet6, Redirect: toLoopback,
		Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if edit != nil {
		edit(&cfg)
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of the network:\n%s\n%+v", log, n.Stats())
		}
	})
	return &lan{n, log}
}

// addresses of the i-th guest.
func guestConfig(i int, driver string, mtu int) GuestConfig {
	a4 := netip.AddrFrom4([4]byte{10, 99, 0, byte(10 + i)})
	a6 := netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x99, 15: byte(10 + i)})
	return GuestConfig{
		Driver: driver, MTU: mtu, MAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(10 + i)},
		Addrs:    []netip.Prefix{netip.PrefixFrom(a4, 24), netip.PrefixFrom(a6, 64)},
		Gateways: []netip.Addr{testSubnet4.Addr().Next(), testSubnet6.Addr().Next()},
	}
}

func portConfig(i int, g *guest) PortConfig {
	c := guestConfig(i, "", 0)
	return PortConfig{
		ID: fmt.Sprint("guest", i), MAC: c.MAC, Addr4: c.Addrs[0].Addr(), Addr6: c.Addrs[1].Addr(),
		Link: g.link, Driver: g.info.Driver, HdrLen: g.info.HdrLen,
	}
}

// join makes a guest and attaches it.
func (l *lan) join(t testing.TB, i int, driver string, edit func(*PortConfig)) (*guest, *Port) {
	t.Helper()
	g := newGuest(t)
	g.setup(guestConfig(i, driver, l.cfg.MTU))
	pc := portConfig(i, g)
	if edit != nil {
		edit(&pc)
	}
	p, err := l.Attach(pc)
	if err != nil {
		t.Fatal(err)
	}
	return g, p
}

// listenTCP serves transfers on a loopback address of the host and returns the
// port.
func listenTCP(t testing.TB, addr string) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go serveTCP(l)
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func listenUDP(t testing.TB, addr string) uint16 {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(addr)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go serveUDP(c)
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// refusingPort returns a port of a loopback address that refuses, and that nobody
// else gets until the test ends: it is bound, but does not listen, or only to
// one that never sends.
func refusingPort(t testing.TB, network, addr string) netip.AddrPort {
	t.Helper()
	a := netip.MustParseAddr(addr)
	domain, typ := unix.AF_INET, unix.SOCK_STREAM
	if a.Is6() {
		domain = unix.AF_INET6
	}
	if network == "udp" {
		typ = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	sockaddr := func(port int) unix.Sockaddr {
		if a.Is6() {
			return &unix.SockaddrInet6{Addr: a.As16(), Port: port}
		}
		return &unix.SockaddrInet4{Addr: a.As4(), Port: port}
	}
	if err := unix.Bind(fd, sockaddr(0)); err != nil {
		t.Fatal(err)
	}
	if network == "udp" {
		if err := unix.Connect(fd, sockaddr(9)); err != nil {
			t.Fatal(err)
		}
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(a, uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(a, uint16(sa.Port))
	}
	t.Fatalf("socket name is a %T", sa)
	return netip.AddrPort{}
}

// logBuffer collects log lines.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// checkLeaks fails the test if it leaves goroutines or descriptors behind. It
// must come before whatever the test starts.
func checkLeaks(t testing.TB) {
	t.Helper()
	if _, ok := t.(*testing.F); ok { // whose goroutine for signals is none of ours
		c := make(chan os.Signal, 1)
		signal.Notify(c, unix.SIGWINCH)
		signal.Stop(c)
	}
	goroutines, fds := runtime.NumGoroutine(), countFDs(t)
	t.Cleanup(func() {
		var g, f int
		for range 200 {
			g, f = runtime.NumGoroutine(), countFDs(t)
			if g <= goroutines && f <= fds {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		buf := make([]byte, 1<<20)
		t.Errorf("leak: %d goroutines before, %d after; %d descriptors before, %d after\n%s",
			goroutines, g, fds, f, buf[:runtime.Stack(buf, true)])
	})
}

func countFDs(t testing.TB) int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range d {
		// The runtime's poller opens its own at its first use and keeps them.
		if l, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(l, "anon_inode:[event") {
			n++
		}
	}
	return n
}
