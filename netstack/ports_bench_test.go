package netstack

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const thousand = 1000

// manyPorts makes a network of many guests that are cables, and returns them with
// what a port takes of the process, in KiB.
func manyPorts(t testing.TB, n int) (l *lan, far []int, kib float64) {
	l = newLAN(t, func(c *Config) {
		c.Subnet4, c.Limits.Flood = netip.MustParsePrefix("10.99.0.0/16"), 1<<40
	})
	before := resident(t)
	for i := range n {
		near, fd := cable(t)
		id := binary.BigEndian.AppendUint16(nil, uint16(i))
		pc := PortConfig{
			ID: fmt.Sprint("guest", i), Link: near, MAC: net.HardwareAddr{2, 0, 0, 0, id[0], id[1]},
			Addr4: netip.AddrFrom4([4]byte{10, 99, 1 + id[0], id[1]}), Addr6: netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x99, 13: 1, 14: id[0], 15: id[1]}),
		}
		if _, err := l.Attach(pc); err != nil {
			t.Fatal(err)
		}
		far = append(far, fd)
	}
	time.Sleep(100 * time.Millisecond) // the readers have looked, and sleep
	for _, p := range l.members.Load().byID {
		p.expire(time.Now())
	}
	return l, far, float64(resident(t)-before) / float64(n)
}

// resident is the memory of this process, in KiB.
func resident(t testing.TB) int {
	runtime.GC() // the first one leaves what is in pools
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var size, pages int
	if _, err := fmt.Sscan(string(b), &size, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize() >> 10
}

func cpuTime(t testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPorts is what a port costs on a network of a thousand: its memory, its
// processor time while nothing happens, a frame from one to another, and a broadcast
// to all.
func BenchmarkPorts(b *testing.B) {
	for _, n := range []int{2, thousand} {
		l, far, kib := manyPorts(b, n)
		ports := l.members.Load()
		from, to := ports.byID["guest0"], ports.byID["guest1"]
		frame := func(dst macAddr, a netip.Addr) *frame {
			raw := ethernetFrame(dst, from.mac, etherIPv4, udpDatagram(netip.AddrPortFrom(from.cfg.Addr4, 1), netip.AddrPortFrom(a, 2), make([]byte, 100)))
			return &frame{raw: make([]byte, vnetHdrLen), head: raw}
		}
		buf := make([]byte, 1<<16)
		drain := func(fds ...int) {
			for _, fd := range fds {
				if _, err := unix.Read(fd, buf); err != nil {
					b.Fatalf("nothing arrived: %v", err)
				}
			}
		}
		b.Run(fmt.Sprint(n, "/unicast"), func(b *testing.B) {
			f := frame(to.mac, to.cfg.Addr4)
			for b.Loop() {
				from.input(f)
				drain(far[1])
			}
			b.ReportMetric(kib, "KiB/port")
		})
		b.Run(fmt.Sprint(n, "/broadcast"), func(b *testing.B) {
			f := frame(everyone, bcast4)
			var spent time.Duration
			for b.Loop() {
				start := cpuTime(b)
				from.input(f)
				spent += cpuTime(b) - start
				drain(far[1:]...)
			}
			b.ReportMetric(float64(spent.Microseconds())/float64(b.N)/float64(n-1), "us-cpu/copy")
		})
		b.Run(fmt.Sprint(n, "/idle"), func(b *testing.B) {
			start := cpuTime(b)
			for b.Loop() {
				time.Sleep(time.Second)
			}
			b.ReportMetric(float64((cpuTime(b)-start).Microseconds())/float64(b.N), "us-cpu/s")
		})
	}
}
