package netstack

import (
	"net"
	"os"
	"testing"
	"time"
)

// guestJoinGroup joins the group at Addr, creates the file Local, and returns what the
// next datagram says and who sent it.
func guestJoinGroup(req request) (string, error) {
	dev, err := net.InterfaceByName("eth0")
	if err != nil {
		return "", err
	}
	group, err := net.ResolveUDPAddr(req.Network, req.Addr)
	if err != nil {
		return "", err
	}
	c, err := net.ListenMulticastUDP(req.Network, dev, group)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := os.WriteFile(req.Local, nil, 0o600); err != nil {
		return "", err
	}
	if err := c.SetReadDeadline(time.Now().Add(req.Timeout)); err != nil {
		return "", err
	}
	b := make([]byte, 1500)
	n, from, err := c.ReadFromUDPAddrPort(b)
	return string(b[:n]) + " from " + from.Addr().Unmap().WithZone("").String(), err
}

// TestGroupsOfKernels: what one guest sends to a group arrives where another one's kernel
// has joined it, though nobody hears of that.
func TestGroupsOfKernels(t *testing.T) {
	l := newLAN(t, nil)
	var guests []*guest
	var ports []*Port
	for i, driver := range []string{DriverTap, DriverPacket} {
		g, p := l.join(t, i, driver, nil)
		guests, ports = append(guests, g), append(ports, p)
	}
	for _, c := range []struct{ network, group, to string }{
		{"udp4", "224.0.0.251:5353", "224.0.0.251:5353"},
		{"udp4", "239.1.2.3:4000", "239.1.2.3:4000"},
		{"udp6", "[ff02::fb]:5353", "[ff02::fb%eth0]:5353"},
	} {
		for i := range guests {
			to, from := guests[i], guests[1-i]
			joined := t.TempDir() + "/joined"
			got, failed := make(chan string, 1), make(chan error, 1)
			go func() {
				resp, err := to.try("join-group", request{Network: c.network, Addr: c.group, Local: joined})
				failed <- err
				got <- resp.Text
			}()
			for start := time.Now(); ; time.Sleep(time.Millisecond) {
				if _, err := os.Stat(joined); err == nil {
					break
				}
				if time.Since(start) > 5*time.Second {
					t.Fatalf("%s: the guest does not join: %v", c.group, <-failed)
				}
			}
			// No echo comes back: it is the sending that counts.
			_, _ = from.try("exchange", request{Network: c.network, Addr: c.to, Timeout: 10 * time.Millisecond})
			want := "query from " + ports[1-i].cfg.Addr4.String()
			if c.network == "udp6" {
				want = "query from " + ports[1-i].ll6.String()
			}
			if err := <-failed; err != nil {
				t.Errorf("%s to %s: %v", c.group, to.info.Driver, err)
			} else if text := <-got; text != want {
				t.Errorf("%s to %s: %q, want %q", c.group, to.info.Driver, text, want)
			}
		}
	}
	for i, p := range ports {
		if p.count.drops[DropGroup].Load() == 0 {
			t.Errorf("guest %d joined and no report was seen: %v", i, p.Stats().Drops)
		}
	}
}
