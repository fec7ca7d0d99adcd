package portfwd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// tunStack is a Stack of the simplest kind: gVisor on a TUN device of the guest.
type tunStack struct{ s *stack.Stack }

const tunMTU = 65535

// newTunGuest makes a guest whose eth0 leads to a stack.
func newTunGuest(t *testing.T) (*guest, *tunStack) {
	t.Helper()
	ns, err := newNetns()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.close)
	fd := -1
	err = ns.do(func() (err error) {
		if err := linkUp("lo"); err != nil {
			return err
		}
		if fd, err = openTun("eth0"); err != nil {
			return err
		}
		if err := addAddrs("eth0", 24, guest4, guest6); err != nil {
			return err
		}
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		// Whole datagrams: fragments are not this package's business.
		if err := netlink.LinkSetMTU(l, tunMTU); err != nil {
			return err
		}
		for _, def := range []string{"0.0.0.0/0", "::/0"} {
			_, dst, err := net.ParseCIDR(def)
			if err != nil {
				return err
			}
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst}); err != nil {
				return fmt.Errorf("route %s: %w", def, err)
			}
		}
		return waitReachable(guest4, guest6)
	})
	if err != nil {
		t.Fatal(err)
	}
	return &guest{netns: ns, v4: guest4, v6: guest6}, newTunStack(t, fd)
}

func openTun(name string) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return -1, os.NewSyscallError("TUNSETIFF", err)
	}
	return fd, unix.SetNonblock(fd, true)
}

func newTunStack(t *testing.T, fd int) *tunStack {
	t.Helper()
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	ep, err := fdbased.New(&fdbased.Options{FDs: []int{fd}, MTU: tunMTU})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CreateNIC(1, ep); err != nil {
		t.Fatal(err)
	}
	s.SetPromiscuousMode(1, true)
	s.SetSpoofing(1, true)
	for _, gw := range []netip.Addr{gateway4, gateway6} {
		pa := tcpip.ProtocolAddress{Protocol: proto(gw), AddressWithPrefix: tcpip.AddrFromSlice(gw.AsSlice()).WithPrefix()}
		if err := s.AddProtocolAddress(1, pa, stack.AddressProperties{}); err != nil {
			t.Fatal(err)
		}
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}, {Destination: header.IPv6EmptySubnet, NIC: 1}})
	t.Cleanup(func() {
		s.Destroy()
		unix.Close(fd)
	})
	return &tunStack{s}
}

func proto(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

func (ts *tunStack) ForwardTCP(ctx context.Context, host *net.TCPConn, src, dst netip.AddrPort) error {
	defer host.Close()
	c, err := gonet.DialTCPWithBind(ctx, ts.s, full(src), full(dst), proto(dst.Addr()))
	if err != nil {
		reset(host)
		if strings.Contains(err.Error(), "refused") {
			return errors.Join(err, syscall.ECONNREFUSED)
		}
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { reset(host); c.Close() })
	defer stop()
	var wg sync.WaitGroup
	half := func(dst io.Writer, src io.Reader, end func() error) {
		if _, err := io.Copy(dst, src); err != nil {
			reset(host)
			c.Close()
			return
		}
		end()
	}
	wg.Go(func() { half(c, host, c.CloseWrite) })
	half(host, c, host.CloseWrite)
	wg.Wait()
	return nil
}

func (ts *tunStack) OpenUDP(src, dst netip.AddrPort, reply func([]byte)) (UDPFlow, error) {
	s, d := full(src), full(dst)
	c, err := gonet.DialUDP(ts.s, &s, &d, proto(dst.Addr()))
	if err != nil {
		return nil, err
	}
	f := &tunFlow{c: c}
	f.wg.Go(func() {
		b := make([]byte, maxDatagram)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			reply(b[:n])
		}
	})
	return f, nil
}

type tunFlow struct {
	c  *gonet.UDPConn
	wg sync.WaitGroup
}

func (f *tunFlow) Send(b []byte) error { _, err := f.c.Write(b); return err }
func (f *tunFlow) Close() error        { err := f.c.Close(); f.wg.Wait(); return err }
