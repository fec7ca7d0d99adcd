package portfwd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The tests run in a user and network namespace of their own, which is "the
// host", with a second namespace behind a veth pair, "the lan", for clients with
// addresses of their own, and one more per guest.

const inNamespace = "PORTFWD_TEST_NS"

func TestMain(m *testing.M) {
	if os.Getenv(inNamespace) != "" {
		if err := setUpHost(); err != nil {
			fmt.Fprintln(os.Stderr, "set up the test's namespace:", err)
			os.Exit(1)
		}
		if hold := os.Getenv(holdEnv); hold != "" {
			os.Exit(holdPort(hold))
		}
		os.Exit(m.Run())
	}
	if slices.ContainsFunc(os.Args, func(a string) bool { return strings.HasPrefix(a, "-test.fuzz=") || a == "-test.fuzzworker" }) {
		// Parsers need no namespace, and a worker talks over inherited descriptors.
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState == nil {
			fmt.Fprintln(os.Stderr, "start the tests in a namespace of their own:", err)
			os.Exit(1)
		}
		os.Exit(max(1, cmd.ProcessState.ExitCode()))
	}
}

var (
	hostLan4   = netip.MustParseAddr("203.0.113.1")
	hostLan4b  = netip.MustParseAddr("203.0.113.2") // a second one, for the source of replies
	hostLan6   = netip.MustParseAddr("2001:db8:1::1")
	clientLan4 = netip.MustParseAddr("203.0.113.50")
	clientLan6 = netip.MustParseAddr("2001:db8:1::50")
	guest4     = netip.MustParseAddr("10.99.0.2")
	guest6     = netip.MustParseAddr("fd99::2")
	gateway4   = netip.MustParseAddr("10.99.0.1")
	gateway6   = netip.MustParseAddr("fd99::1")
)

// lan runs calls in the namespace of the clients. It lives as long as the tests.
var lan *netns

func setUpHost() error {
	if os.Getenv(holdEnv) != "" {
		return nil // started inside the namespace by a test
	}
	if err := linkUp("lo"); err != nil {
		return err
	}
	var err error
	if lan, err = newNetns(); err != nil {
		return err
	}
	la := netlink.NewLinkAttrs()
	la.Name = "lan0"
	veth := &netlink.Veth{LinkAttrs: la, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(lan.file.Fd()))}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth: %w", err)
	}
	if err := addAddrs("lan0", 24, hostLan4, hostLan4b, hostLan6); err != nil {
		return err
	}
	return lan.do(func() error {
		if err := linkUp("lo"); err != nil {
			return err
		}
		if err := addAddrs("eth0", 24, clientLan4, clientLan6); err != nil {
			return err
		}
		return waitReachable(hostLan4, hostLan6)
	})
}

// waitReachable waits until addresses answer: the kernel takes a new link's
// into use a moment after they were added.
func waitReachable(addrs ...netip.Addr) (err error) {
	for _, a := range addrs {
		for range 100 {
			_, err = net.DialTimeout("tcp", net.JoinHostPort(a.String(), "1"), 50*time.Millisecond)
			if errors.Is(err, syscall.ECONNREFUSED) {
				err = nil
				break
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func linkUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	return netlink.LinkSetUp(l)
}

// addAddrs gives a link addresses (IPv6: /64) and brings it up.
func addAddrs(link string, bits int, addrs ...netip.Addr) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	for _, a := range addrs {
		n := bits
		if a.Is6() {
			n = 64
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(n, a.BitLen())}}
		if a.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("add %s to %s: %w", a, link, err)
		}
	}
	return netlink.LinkSetUp(l)
}

// netns is a network namespace with a thread in it.
type netns struct {
	file *os.File
	work chan func()
	done chan struct{}
}

func newNetns() (*netns, error) {
	n := &netns{work: make(chan func()), done: make(chan struct{})}
	ready := make(chan error)
	go func() {
		defer close(n.done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.file, err = os.Open("/proc/thread-self/ns/net")
		}
		ready <- err
		for f := range n.work {
			f()
		}
	}()
	return n, <-ready
}

func (n *netns) do(f func() error) error {
	res := make(chan error, 1)
	n.work <- func() { res <- f() }
	return <-res
}

func (n *netns) close() {
	close(n.work)
	<-n.done
	n.file.Close()
}

// guest is a sandbox's network namespace; it implements Guest.
type guest struct {
	*netns
	v4, v6 netip.Addr
}

func (g *guest) Addr4() netip.Addr { return g.v4 }
func (g *guest) Addr6() netip.Addr { return g.v6 }

func (g *guest) Socket(_ context.Context, family, typ int) (f *os.File, err error) {
	err = g.do(func() error {
		fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "guest socket")
		return nil
	})
	return f, err
}

// newGuest makes a namespace with the guest's addresses on a link that leads nowhere.
func newGuest(t *testing.T) *guest {
	t.Helper()
	ns, err := newNetns()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.close)
	err = ns.do(func() error {
		if err := linkUp("lo"); err != nil {
			return err
		}
		la := netlink.NewLinkAttrs()
		la.Name = "eth0"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "peer0"}); err != nil {
			return err
		}
		if err := linkUp("peer0"); err != nil {
			return err
		}
		if err := addAddrs("eth0", 24, guest4, guest6); err != nil {
			return err
		}
		return waitReachable(guest4, guest6)
	})
	if err != nil {
		t.Fatal(err)
	}
	return &guest{netns: ns, v4: guest4, v6: guest6}
}

// listen makes a TCP listener in the namespace.
func (n *netns) listen(t *testing.T, network, addr string) *net.TCPListener {
	t.Helper()
	var l net.Listener
	if err := n.do(func() (err error) { l, err = net.Listen(network, addr); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

func (n *netns) listenUDP(t *testing.T, network, addr string) *net.UDPConn {
	t.Helper()
	var c net.PacketConn
	if err := n.do(func() (err error) { c, err = net.ListenPacket(network, addr); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

// tryDial connects from the namespace; a nil netns is the host.
func (n *netns) tryDial(network, addr string, f func(net.Conn) error) error {
	var c net.Conn
	call := func() (err error) { c, err = net.Dial(network, addr); return err }
	var err error
	if n == nil {
		err = call()
	} else {
		err = n.do(call)
	}
	if err != nil {
		return err
	}
	return f(c)
}

// dial returns a connection that is closed with the test.
func (n *netns) dial(t *testing.T, network, addr string) (c net.Conn) {
	t.Helper()
	if err := n.tryDial(network, addr, func(got net.Conn) error { c = got; return nil }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
