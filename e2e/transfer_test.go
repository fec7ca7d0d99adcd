package e2e

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

// TestTransfers moves bytes through every kind of published port and to another
// sandbox, both ways at once, with every MTU, each with and without segmentation
// by the device.
func TestTransfers(t *testing.T) {
	e := harness.New(t, harness.BB)
	size := int64(8 << 20)
	if testing.Short() {
		size = 2 << 20
	}
	if os.Getenv("SBX_TEST_LONG") != "" {
		size = 512 << 20
	}
	for i, mtu := range []string{"576", "1280", "1500", "9000", "65520"} {
		for j, driver := range portDrivers {
			offload := []string{"all", "no-segments", "none"}[(i+j)%3]
			link := linkDrivers[(i+j)%2]
			t.Run(fmt.Sprintf("%s/%s/%s/%s", mtu, driver, link, offload), func(t *testing.T) {
				e := e.In(t)
				port := e.FreePort()
				flags := []string{"run", "--rm", "--mtu", mtu, "--link-driver", link, "--port-driver", driver, "--cap-add", "NET_ADMIN", "-p", fmt.Sprintf("%d:80", port)}
				p := e.Start(append(flags, harness.BB, "sh", "-c", "/probe offload "+offload+" && exec /probe serve 80")...)
				line := p.WaitOut("ready ", 30*time.Second)
				first, _, _ := strings.Cut(line[strings.Index(line, "ready "):], "\n")
				for _, host := range []string{"127.0.0.1", "[::1]"} {
					if mtu == "576" && host == "[::1]" && driver != "direct" {
						continue // no IPv6 inside
					}
					base := fmt.Sprintf("http://%s:%d", host, port)
					up := make(chan error, 1)
					go func() { up <- probe.Up(base, size, 1) }()
					if err := probe.Down(base, size, 2); err != nil {
						t.Errorf("out of the sandbox: %v", err)
					}
					if err := <-up; err != nil {
						t.Errorf("into the sandbox: %v", err)
					}
				}
				for _, a := range strings.Fields(first)[1:] {
					script := `/probe offload ` + offload + ` && { /probe up $0 $1 1 & up=$!; /probe down $0 $1 2 && wait $up; }`
					e.Must("run", "--rm", "--mtu", mtu, "--cap-add", "NET_ADMIN", harness.BB, "sh", "-c", script, "http://"+net.JoinHostPort(a, "80"), fmt.Sprint(size))
				}
				p.Stop()
			})
		}
	}
}
