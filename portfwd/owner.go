package portfwd

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
)

// holder is a socket that stands in the way of a bind.
type holder struct {
	inode string
	uid   int
}

// findOwner says who holds a port, and with which pid, as far as an ordinary
// user can see it: his own processes by name, others by their user.
func findOwner(proto string, want netip.AddrPort) (string, int) {
	var others map[int]bool
	inodes := map[string]bool{}
	for _, name := range []string{proto, proto + "6"} {
		// Goroutines may sit on threads of different network namespaces.
		f, err := os.Open("/proc/thread-self/net/" + name)
		if err != nil {
			continue // no IPv6
		}
		for _, h := range holders(f, proto, want) {
			inodes["socket:["+h.inode+"]"] = true
			if h.uid != os.Getuid() {
				if others == nil {
					others = map[int]bool{}
				}
				others[h.uid] = true
			}
		}
		f.Close()
	}
	if len(inodes) == 0 {
		return "", 0
	}
	if pid := pidOfSocket(inodes); pid != 0 {
		name := "unknown command"
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil {
			name = printable(strings.TrimSpace(string(b)))
		}
		return fmt.Sprintf("pid %d (%s)", pid, name), pid
	}
	for uid := range others {
		name := strconv.Itoa(uid)
		if u, err := user.LookupId(name); err == nil {
			name = u.Username
		}
		return "another user's process (user " + name + ")", 0
	}
	return "a process that cannot be looked into", 0
}

// printable guards the terminal against what a process calls itself.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}

// holders reads /proc/net/{tcp,udp}{,6} for sockets that exclude a bind to want.
// A line is: "sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ...".
func holders(r io.Reader, proto string, want netip.AddrPort) []holder {
	const tcpListen = "0A"
	var out []holder
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 10 || proto == "tcp" && f[3] != tcpListen {
			continue
		}
		local, ok := parseProcAddr(f[1])
		if !ok || local.Port() != want.Port() || !excludes(local.Addr(), want.Addr()) {
			continue
		}
		uid, err := strconv.Atoi(f[7])
		if err != nil {
			continue
		}
		out = append(out, holder{inode: f[9], uid: uid})
	}
	return out
}

// excludes says whether a socket on one address may keep another from binding.
// A [::] socket may or may not take IPv4 as well; the file does not say.
func excludes(have, want netip.Addr) bool {
	if have.Is4() == want.Is4() {
		return have == want || have.IsUnspecified() || want.IsUnspecified()
	}
	if have.Is6() {
		return have.IsUnspecified()
	}
	return false
}

// parseProcAddr reads "0100007F:1F90": 32-bit words in the host's byte order.
func parseProcAddr(s string) (netip.AddrPort, bool) {
	a, p, ok := strings.Cut(s, ":")
	port, err := strconv.ParseUint(p, 16, 16)
	raw, err2 := hex.DecodeString(a)
	if !ok || err != nil || err2 != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), true
}

// pidOfSocket looks through the descriptors of the processes that this user may
// look into; 0 if none of them has the socket.
func pidOfSocket(links map[string]bool) int {
	dirs, err := filepath.Glob("/proc/[0-9]*/fd")
	if err != nil {
		return 0
	}
	for _, d := range dirs {
		fds, err := os.ReadDir(d)
		if err != nil {
			continue // another user's, or gone
		}
		for _, fd := range fds {
			if l, err := os.Readlink(d + "/" + fd.Name()); err == nil && links[l] {
				pid, err := strconv.Atoi(strings.Split(d, "/")[2])
				if err != nil {
					return 0
				}
				return pid
			}
		}
	}
	return 0
}
