package netstack

import (
	"fmt"
	"testing"
	"time"
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
