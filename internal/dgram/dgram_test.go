package dgram

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCut(t *testing.T) {
	for _, c := range []struct {
		segment int
		pieces  []string
		want    string
	}{
		{0, []string{"abc"}, "abc"},
		{0, []string{"ab", "c"}, "abc"},
		{2, []string{"abcde"}, "ab cd e"},
		{2, []string{"a", "bcde"}, "ab cd e"},
		{2, []string{"ab", "cd", "e"}, "ab cd e"},
		{4, []string{"a", "b", "c", "d", "e"}, "abcd e"},
		{9, []string{"", "abc", ""}, "abc"},
		{3, nil, ""},
	} {
		var pieces [][]byte
		for _, p := range c.pieces {
			pieces = append(pieces, []byte(p))
		}
		var got []string
		Cut(c.segment, pieces, func(a, b []byte) bool {
			got = append(got, string(a)+string(b))
			return true
		})
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%d %q: %q, want %q", c.segment, c.pieces, s, c.want)
		}
		if strings.Join(c.pieces, "") != string(bytes.Join(pieces, nil)) {
			t.Errorf("%d %q: the pieces have changed: %q", c.segment, c.pieces, pieces)
		}
	}
}

// pair returns two sockets of the loopback, the second of which joins, and the
// second's address.
func pair(t testing.TB) (from, to int, addr netip.AddrPort) {
	t.Helper()
	open := func() (int, netip.AddrPort) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			t.Fatal(err)
		}
		sa, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		return fd, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port))
	}
	from, _ = open()
	to, addr = open()
	Join(to)
	return from, to, addr
}

// describe says which trains wait in a socket.
func describe(t *testing.T, fd int) string {
	t.Helper()
	in := GetInbox()
	defer in.Put()
	if errno := in.Receive(fd); errno != 0 {
		t.Fatal(errno)
	}
	var got []string
	for {
		tr, ok := in.Next()
		if !ok {
			return strings.Join(got, " ")
		}
		n, size := Count(tr.Segment, tr.Data)
		if n != tr.Count || size != tr.Bytes {
			t.Errorf("%d datagrams of %d bytes, Train says %d of %d", n, size, tr.Count, tr.Bytes)
		}
		got = append(got, fmt.Sprintf("%dx%d:%d", tr.Count, tr.Segment, tr.Bytes))
	}
}

// TestInbox is which datagrams go on together: those of one sender that are
// equally long, and a shorter one after them, however they came.
func TestInbox(t *testing.T) {
	from, to, addr := pair(t)
	other, _, _ := pair(t)
	send := func(fd, segment int, sizes ...int) {
		t.Helper()
		for _, n := range sizes {
			if errno := Send(fd, addr, 0, nil, segment, [][]byte{make([]byte, n)}); errno != 0 {
				t.Fatal(errno)
			}
		}
	}
	for _, c := range []struct {
		send func()
		want string
	}{
		{func() { send(from, 0, 100) }, "1x0:100"},
		{func() { send(from, 0, 0, 0, 1) }, "1x0:0 1x0:0 1x0:1"},
		{func() { send(from, 0, 100, 100, 100, 50, 50) }, "4x100:350 1x0:50"},
		{func() { send(from, 0, 100, 200, 200) }, "1x0:100 2x200:400"},
		{func() { send(from, 0, 100); send(other, 0, 100); send(from, 0, 100) }, "1x0:100 1x0:100 1x0:100"},
		{func() { send(from, 100, 950); send(from, 0, 100) }, "10x100:950 1x0:100"},
		{func() { send(from, 100, 1000, 1000); send(from, 0, 100, 10) }, "22x100:2110"},
		{func() { send(from, 0, 60000, 60000) }, "1x0:60000 1x0:60000"},
		{func() { send(from, 10, 400, 400) }, "40x10:400 40x10:400"},
	} {
		c.send()
		if got := describe(t, to); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

// TestAllocs is the steady state.
func TestAllocs(t *testing.T) {
	from, to, addr := pair(t)
	data := [][]byte{make([]byte, 14000)}
	in := GetInbox()
	defer in.Put()
	n := testing.AllocsPerRun(100, func() {
		if errno := Send(from, addr, 0, nil, 1400, data); errno != 0 {
			t.Fatal(errno)
		}
		if errno := in.Receive(to); errno != 0 {
			t.Fatal(errno)
		}
		for {
			if _, ok := in.Next(); !ok {
				break
			}
		}
	})
	if n != 0 {
		t.Errorf("%v allocations for a train", n)
	}
}

func TestLastUse(t *testing.T) {
	var u LastUse
	now := time.Now()
	u.Set(now)
	if d := u.Ago(now.Add(time.Minute)); d != time.Minute {
		t.Errorf("a minute later it was used %v ago", d)
	}
	if d := u.Ago(now); d != 0 {
		t.Errorf("at once it was used %v ago", d)
	}
}
