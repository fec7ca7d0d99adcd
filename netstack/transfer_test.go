package netstack

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/internal/dgram"
	"github.com/rootless-sbx/sbx/internal/ethtool"
	"github.com/rootless-sbx/sbx/internal/impair"
	"golang.org/x/sys/unix"
)

// testSeed is the seed of a test's random sizes and impairments. A failure names
// it; SBX_TEST_SEED=N gives the same run again.
func testSeed(t testing.TB) uint64 {
	t.Helper()
	seed := rand.Uint64N(1e6)
	if s := os.Getenv("SBX_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal("SBX_TEST_SEED:", err)
		}
	}
	t.Logf("SBX_TEST_SEED=%d", seed)
	return seed
}

// long tells whether there is time for the heavier variants.
func long() bool { return os.Getenv("SBX_TEST_LONG") != "" }

// choppyCopy writes in pieces of random sizes: one byte, odd ones, large ones.
func choppyCopy(dst io.Writer, src io.Reader, seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 2))
	buf := make([]byte, 200<<10)
	for {
		size := 1 + rng.IntN(len(buf))
		if rng.IntN(2) == 0 {
			size = 1 + rng.IntN(3000)
		}
		n, err := io.ReadFull(src, buf[:size])
		if _, werr := dst.Write(buf[:n]); werr != nil {
			return werr
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// otherSeed is the seed of the bytes that come back.
func otherSeed(seed uint64) uint64 { return ^seed }

func serveBoth(c *net.TCPConn, x transfer) error {
	sent := make(chan error, 1)
	go func() { sent <- choppyCopy(c, randomBytes(otherSeed(x.Seed), x.Size), otherSeed(x.Seed)) }()
	h := sha256.New()
	_, err := bufferedCopy(h, c)
	if err = errors.Join(err, <-sent); err != nil {
		return err
	}
	_, err = c.Write(h.Sum(nil))
	return err
}

func clientBoth(c *net.TCPConn, x transfer) error {
	sent := make(chan error, 1)
	go func() {
		err := choppyCopy(c, randomBytes(x.Seed, x.Size), x.Seed)
		sent <- errors.Join(err, c.CloseWrite())
	}()
	h := sha256.New()
	n, err := bufferedCopy(h, io.LimitReader(c, x.Size))
	if err != nil || n != x.Size {
		return fmt.Errorf("received %d of %d bytes: %w", n, x.Size, err)
	}
	if err := <-sent; err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if got, want := h.Sum(nil), sumOf(otherSeed(x.Seed), x.Size); string(got) != string(want) {
		return fmt.Errorf("sum of what came is %x, want %x", got, want)
	}
	got, err := io.ReadAll(c)
	if err != nil {
		return fmt.Errorf("read the sum: %w", err)
	}
	if want := sumOf(x.Seed, x.Size); string(got) != string(want) {
		return fmt.Errorf("sum at the other side is %x, want %x", got, want)
	}
	return nil
}

// The offloads of the guest's device, of package ethtool.
var offloads = []string{ethtool.All, ethtool.NoSegments, ethtool.None}

// station is a guest with what it takes to transfer over each path.
type station struct {
	*guest
	lan  *lan
	port *Port
}

func (l *lan) station(t testing.TB, i int, driver string, bad *impair.Config) *station {
	t.Helper()
	g := newGuest(t)
	g.setup(guestConfig(i, driver, l.cfg.MTU))
	if bad != nil {
		g.impair(t, *bad)
	}
	p, err := l.Attach(portConfig(i, g))
	if err != nil {
		t.Fatal(err)
	}
	g.do("listen", request{Network: "tcp", Addr: ":9000"})
	g.do("listen-udp", request{Network: "udp", Addr: ":9000"})
	return &station{g, l, p}
}

// path is one way between two places, with a client that transfers over it.
type path struct {
	name string
	tcp  func(transfer) error
	udp  func(sizes []int) error
}

// paths are all ways that begin or end at a guest: out, published through the
// stack, and to another guest.
func (s *station) paths(tcp, udp map[bool]uint16, other *station) []path {
	var out []path
	for _, v6 := range []bool{false, true} {
		if v6 && s.lan.cfg.MTU < minMTU6 {
			continue
		}
		family, outside, self, peer := "v4", outside4, s.port.cfg.Addr4, other.port.cfg.Addr4
		client := netip.MustParseAddrPort("192.0.2.7:0")
		if v6 {
			family, outside, self, peer = "v6", outside6, s.port.cfg.Addr6, other.port.cfg.Addr6
			client = netip.MustParseAddrPort("[2001:db8::7]:0")
		}
		from := func(tcp, udp string) path {
			return path{
				tcp: func(x transfer) error {
					_, err := s.try("tcp", request{Network: "tcp", Addr: tcp, Transfer: x, Timeout: 50 * time.Second})
					return err
				},
				udp: func(sizes []int) error {
					_, err := s.try("udp", request{Network: "udp", Addr: udp, Sizes: sizes, Timeout: 20 * time.Second})
					return err
				},
			}
		}
		exit := from(hostPortOf(outside, tcp[v6]), hostPortOf(outside, udp[v6]))
		exit.name = s.port.cfg.ID + " out/" + family
		switched := from(hostPortOf(peer, 9000), hostPortOf(peer, 9000))
		switched.name = s.port.cfg.ID + " switch/" + family
		published := path{
			name: s.port.cfg.ID + " published/" + family,
			tcp:  func(x transfer) error { return s.lan.publishedTCP(client, netip.AddrPortFrom(self, 9000), x) },
			udp:  func(sizes []int) error { return s.lan.publishedUDP(client, netip.AddrPortFrom(self, 9000), sizes) },
		}
		out = append(out, exit, switched, published)
	}
	return out
}

// publishedTCP is a client of the host that transfers with a guest.
func (l *lan) publishedTCP(client, guest netip.AddrPort, x transfer) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return err
	}
	host, err := ln.Accept()
	if err != nil {
		return errors.Join(err, c.Close())
	}
	forwarded := make(chan error, 1)
	go func() { forwarded <- l.ForwardTCP(context.Background(), host.(*net.TCPConn), client, guest) }()
	err = c.SetDeadline(time.Now().Add(50 * time.Second))
	return errors.Join(err, clientTransfer(c.(*net.TCPConn), x), <-forwarded)
}

func (l *lan) publishedUDP(client, guest netip.AddrPort, sizes []int) error {
	replies := make(chan []byte, 64)
	f, err := l.OpenUDP(client, guest, func(segment int, pieces ...[]byte) {
		dgram.Cut(segment, pieces, func(a, b []byte) bool {
			select {
			case replies <- flatCopy(a, b):
			default:
			}
			return true
		})
	})
	if err != nil {
		return err
	}
	defer f.Close()
	for _, size := range sizes {
		want, err := io.ReadAll(randomBytes(uint64(size), int64(size)))
		if err != nil {
			return err
		}
		if err := echoed(func(b []byte) error { return f.Send(0, b) }, replies, want); err != nil {
			return err
		}
	}
	return nil
}

// echoed sends a datagram until its echo comes.
func echoed(send func([]byte) error, replies <-chan []byte, want []byte) error {
	for range udpTries {
		if err := send(want); err != nil {
			return fmt.Errorf("send %d bytes: %w", len(want), err)
		}
		timeout := time.After(500 * time.Millisecond)
	next:
		select {
		case got := <-replies:
			if string(got) == string(want) {
				return nil
			}
			if len(got) != len(want) {
				goto next // a duplicate of an earlier one
			}
			return fmt.Errorf("echo of %d bytes differs", len(want))
		case <-timeout:
		}
	}
	return fmt.Errorf("no echo of %d bytes in %d tries", len(want), udpTries)
}

// transferAll uses all paths at once, in both directions.
func transferAll(t *testing.T, paths []path, rng *rand.Rand, maxSize int64, maxDatagram int) {
	t.Helper()
	var wg sync.WaitGroup
	for _, p := range paths {
		x := transfer{'B', rng.Int64N(maxSize), rng.Uint64()}
		sizes := []int{1 + rng.IntN(maxDatagram), 1 + rng.IntN(2000), 1 + rng.IntN(maxDatagram)}
		wg.Go(func() {
			err := p.tcp(x)
			if errors.Is(err, syscall.EHOSTUNREACH) {
				err = p.tcp(x) // a bad link may have lost three ARP requests in a row
			}
			if err != nil {
				t.Errorf("%s: %d bytes, seed %d: %v", p.name, x.Size, x.Seed, err)
			}
		})
		wg.Go(func() {
			if err := p.udp(sizes); err != nil {
				t.Errorf("%s: datagrams of %d bytes: %v", p.name, sizes, err)
			}
		})
	}
	wg.Wait()
}

var transferMTUs = []int{576, 1280, 1500, 9000, DefaultMTU}

// TestTransfers is random data over every path at once, with every MTU and all
// offloads of the guest.
func TestTransfers(t *testing.T) {
	rng := rand.New(rand.NewPCG(testSeed(t), 0))
	for _, mtu := range transferMTUs {
		t.Run(fmt.Sprint(mtu), func(t *testing.T) {
			l := newLAN(t, func(c *Config) { c.MTU = mtu })
			tcp := map[bool]uint16{false: listenTCP(t, "127.0.0.1"), true: listenTCP(t, "::1")}
			udp := map[bool]uint16{false: listenUDP(t, "127.0.0.1"), true: listenUDP(t, "::1")}
			tap, packet := l.station(t, 0, DriverTap, nil), l.station(t, 1, DriverPacket, nil)
			for i, mode := range offloads {
				t.Run(mode, func(t *testing.T) {
					// One of them has another mode: what it sends must suit the other.
					tap.in(t).do("offload", request{Text: mode})
					packet.in(t).do("offload", request{Text: offloads[(i+1)%len(offloads)]})
					before := tap.port.Stats().FromGuest
					transferAll(t, append(tap.paths(tcp, udp, packet), packet.paths(tcp, udp, tap)...), rng, 4<<20, 65000)
					after := tap.port.Stats().FromGuest
					size := (after.Bytes - before.Bytes) / (after.Frames - before.Frames)
					if super := size > uint64(ethLen+mtu); mode != ethtool.All && super || mode == ethtool.All && !super && mtu <= 1500 {
						t.Errorf("frames of %d bytes on average with offload %s", size, mode)
					}
				})
			}
			for _, s := range []*station{tap, packet} {
				for name, n := range s.port.Stats().Drops {
					switch name {
					case DropNeighbor.String(), DropGroup.String(), DropPolicy.String(): // what any kernel sends by itself
					case DropLinkWrite.String(), DropFragments.String(): // a full queue: TCP and the test send again
					default:
						t.Errorf("%s: %d frames dropped: %s", s.info.Driver, n, name)
					}
				}
			}
		})
	}
}

// impair puts a bad wire between the guest's end of the link and ours.
func (g *guest) impair(t testing.TB, cfg impair.Config) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.SetNonblock(int(g.link.Fd()), true); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(g.link.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	inside, outside := os.NewFile(uintptr(fd), "guest's link"), os.NewFile(uintptr(fds[1]), "wire")
	if err := g.link.Close(); err != nil {
		t.Fatal(err)
	}
	g.link = os.NewFile(uintptr(fds[0]), "near")
	// What the far end does not take is lost, as on any wire.
	up := impair.NewWay(cfg, func(b []byte) { _, _ = outside.Write(b) })
	cfg.Seed++
	down := impair.NewWay(cfg, func(b []byte) { _, _ = inside.Write(b) })
	var wg sync.WaitGroup
	carry := func(from *os.File, to *impair.Way) {
		buf := make([]byte, 70000)
		for {
			n, err := from.Read(buf)
			if errors.Is(err, os.ErrClosed) || n == 0 && !errors.Is(err, syscall.ENETDOWN) {
				return
			}
			if err == nil {
				to.Put(buf[:n])
			}
		}
	}
	wg.Go(func() { carry(inside, up) })
	wg.Go(func() { carry(outside, down) })
	t.Cleanup(func() {
		inside.Close()
		outside.Close()
		wg.Wait()
		up.Close()
		down.Close()
		if up.Stats().In == 0 || down.Stats().In == 0 {
			t.Errorf("nothing went over the wire: %+v, %+v", up.Stats(), down.Stats())
		}
		if t.Failed() {
			t.Logf("wire %s: up %+v, down %+v", cfg, up.Stats(), down.Stats())
		}
	})
}

// TestImpaired is the same over links that lose, double, reorder and delay
// frames. All guests transfer at once.
func TestImpaired(t *testing.T) {
	seed := testSeed(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	size := int64(512 << 10)
	if long() {
		size = 8 << 20
	}
	bad := []impair.Config{
		{Loss: 0.02},
		{Duplicate: 0.1},
		{Reorder: 0.1},
		{Delay: 5 * time.Millisecond, Jitter: 2 * time.Millisecond},
		{Loss: 0.01, Duplicate: 0.05, Reorder: 0.05, Delay: time.Millisecond, Jitter: 500 * time.Microsecond},
	}
	for _, mtu := range transferMTUs {
		t.Run(fmt.Sprint(mtu), func(t *testing.T) {
			l := newLAN(t, func(c *Config) { c.MTU = mtu })
			tcp := map[bool]uint16{false: listenTCP(t, "127.0.0.1"), true: listenTCP(t, "::1")}
			udp := map[bool]uint16{false: listenUDP(t, "127.0.0.1"), true: listenUDP(t, "::1")}
			var all []*station
			for i, cfg := range bad {
				cfg.Seed = seed + uint64(10*mtu+i)
				all = append(all, l.station(t, i, drivers[i%2], &cfg))
			}
			var paths []path
			for i, s := range all {
				s.do("offload", request{Text: offloads[(i+mtu)%len(offloads)]})
				paths = append(paths, s.paths(tcp, udp, all[(i+1)%len(all)])...)
			}
			// A datagram of many fragments would hardly arrive whole.
			transferAll(t, paths, rng, size, min(10*mtu, 20000))
		})
	}
}
