package netstack

import (
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWithoutPacing tries every congestion control that a user may choose here.
func TestWithoutPacing(t *testing.T) {
	allowed, err := readSysctl("net/ipv4/tcp_allowed_congestion_control")
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Fields(allowed)
	escape := slices.ContainsFunc(unpaced, func(s string) bool { return slices.Contains(names, s) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, name := range names {
		var got string
		d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			if cerr := c.Control(func(fd uintptr) {
				err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
			}); cerr != nil || err != nil {
				t.Fatalf("set %s: %v, %v", name, cerr, err)
			}
			if err := withoutPacing(c); err != nil {
				return err
			}
			if cerr := c.Control(func(fd uintptr) {
				got, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
			}); cerr != nil {
				return cerr
			}
			return err
		}}
		c, err := d.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if !paced(name) && got != name {
			t.Errorf("%s became %s", name, got)
		}
		if paced(name) && escape && !slices.Contains(unpaced, got) {
			t.Errorf("%s became %s, want one of %v", name, got, unpaced)
		}
	}
}
