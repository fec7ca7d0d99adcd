package netstack

import (
	"fmt"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/internal/impair"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// BenchmarkStream is one TCP stream between a guest and a listener on the
// host's loopback, through the whole data path.
func BenchmarkStream(b *testing.B) {
	for _, driver := range drivers {
		for _, mtu := range []int{DefaultMTU, 1500} {
			for name, op := range map[string]byte{"up": 'S', "down": 'Z'} {
				b.Run(fmt.Sprintf("%s/%d/%s", driver, mtu, name), func(b *testing.B) {
					l := newLAN(b, func(c *Config) { c.MTU = mtu })
					g, _ := l.join(b, 0, driver, nil)
					addr := hostPortOf(outside4, listenTCP(b, "127.0.0.1"))
					rate := 0.0
					for range b.N {
						rate += g.do("rate", request{Network: "tcp", Addr: addr, Transfer: transfer{Op: op}, Timeout: 3 * time.Second}).Rate
					}
					b.ReportMetric(rate/float64(b.N), "Gbit/s")
				})
			}
		}
	}
}

// BenchmarkRecovery is a download by a guest over a link with delay or loss, for
// each congestion control and loss recovery that gVisor has.
func BenchmarkRecovery(b *testing.B) {
	for _, bad := range []impair.Config{
		{Loss: 0.001, Seed: 1},
		{Loss: 0.01, Seed: 1},
		{Delay: 5 * time.Millisecond, Seed: 1},
		{Delay: 5 * time.Millisecond, Loss: 0.001, Seed: 1},
		{Reorder: 0.01, Seed: 1},
	} {
		for _, cc := range []tcpip.CongestionControlOption{"cubic", "reno"} {
			for name, recovery := range map[string]tcpip.TCPRecovery{"SACK": 0, "RACK": tcpip.TCPRACKLossDetection} {
				b.Run(fmt.Sprintf("%s/%s/%s", bad, cc, name), func(b *testing.B) {
					l := newLAN(b, nil)
					for _, o := range []tcpip.SettableTransportProtocolOption{&cc, &recovery} {
						if err := l.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
							b.Fatal(err)
						}
					}
					s := l.station(b, 0, DriverTap, &bad)
					to := hostPortOf(outside4, listenTCP(b, "127.0.0.1"))
					const size = 16 << 20
					b.SetBytes(size)
					for b.Loop() {
						s.do("tcp", request{Network: "tcp", Addr: to, Transfer: transfer{'D', size, 1}, Timeout: time.Minute})
					}
				})
			}
		}
	}
}
