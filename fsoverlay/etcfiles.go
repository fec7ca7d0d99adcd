package fsoverlay

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// HostsConfig is what /etc/hosts says.
type HostsConfig struct {
	// Base is how the file begins; nil means with the names of the loopback.
	Base []byte
	// Own are the sandbox's own addresses.
	Own []HostEntry
	// Extra are the values of --add-host: NAME:IP, NAME=IP or NAME:host-gateway.
	Extra []string
	// HostGateway stands for host-gateway; the zero value makes its use an error.
	HostGateway netip.Addr
}

// HostEntry is a line of /etc/hosts: an address with its names, the proper one first.
type HostEntry struct {
	Addr  netip.Addr
	Names []string
}

func (e HostEntry) String() string {
	return fmt.Sprintf("%s\t%s\n", e.Addr, strings.Join(e.Names, " "))
}

const maxHosts = 1024 // entries of --add-host

// HostsFile returns /etc/hosts in Docker's form.
func HostsFile(c HostsConfig) ([]byte, error) {
	if len(c.Extra) > maxHosts {
		return nil, &ParseError{Flag: "--add-host", Input: fmt.Sprint(len(c.Extra)), Msg: fmt.Sprintf("more than %d entries", maxHosts)}
	}
	b := &bytes.Buffer{}
	if c.Base != nil {
		b.Write(c.Base)
		if !bytes.HasSuffix(c.Base, []byte("\n")) {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString("127.0.0.1\tlocalhost\n" +
			"::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::\tip6-localnet\n" +
			"ff00::\tip6-mcastprefix\n" +
			"ff02::1\tip6-allnodes\n" +
			"ff02::2\tip6-allrouters\n")
	}
	for _, e := range c.Extra {
		h, err := ParseAddHost(e)
		if err != nil {
			return nil, err
		}
		addr := h.Addr
		if h.Gateway {
			if addr = c.HostGateway; !addr.IsValid() {
				return nil, &ParseError{Flag: "--add-host", Input: e, Msg: "this network has no gateway to the host"}
			}
		}
		fmt.Fprintf(b, "%s\t%s\n", addr, h.Name)
	}
	for _, e := range c.Own {
		b.WriteString(e.String())
	}
	return b.Bytes(), nil
}

// ReplaceHosts changes the lines about the sandbox's own addresses in a file that its
// user may have written to meanwhile. What else is there stays.
func ReplaceHosts(text []byte, old, own []HostEntry) []byte {
	var out []byte
	for line := range bytes.Lines(text) {
		if !slices.ContainsFunc(old, func(e HostEntry) bool { return e.String() == string(line) }) {
			out = append(out, line...)
		}
	}
	if len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, '\n')
	}
	for _, e := range own {
		out = append(out, e.String()...)
	}
	return out
}

// ExtraHost is one value of --add-host.
type ExtraHost struct {
	Name    string
	Addr    netip.Addr
	Gateway bool // the address is the host's as the sandbox reaches it
}

// ParseAddHost reads NAME:IP, NAME=IP, with IPv6 addresses also in brackets, or
// NAME:host-gateway.
func ParseAddHost(s string) (ExtraHost, error) {
	bad := func(msg string) (ExtraHost, error) {
		return ExtraHost{}, &ParseError{Flag: "--add-host", Input: s, Msg: msg}
	}
	i := strings.IndexAny(s, ":=")
	if i <= 0 {
		return bad("want NAME:IP")
	}
	h, ip := ExtraHost{Name: s[:i]}, s[i+1:]
	if !validHostName(h.Name) {
		return bad("the name may hold letters, digits, '-', '_' and '.'")
	}
	if ip == "host-gateway" {
		h.Gateway = true
		return h, nil
	}
	if n := len(ip); n > 2 && ip[0] == '[' && ip[n-1] == ']' {
		ip = ip[1 : n-1]
	}
	addr, err := netip.ParseAddr(ip)
	if err != nil || addr.Zone() != "" {
		return bad("not an IP address: " + ip)
	}
	h.Addr = addr
	return h, nil
}

func validHostName(s string) bool {
	if s == "" || len(s) > 253 || s[0] == '-' || s[0] == '.' {
		return false
	}
	for _, r := range []byte(s) {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
		default:
			return false
		}
	}
	return true
}

// HostnameFile returns /etc/hostname. The kernel takes 64 bytes.
func HostnameFile(name string) ([]byte, error) {
	if !validHostName(name) || len(name) > 64 {
		return nil, &ParseError{Flag: "--hostname", Input: name, Msg: "want at most 64 letters, digits, '-', '_' and '.'"}
	}
	return []byte(name + "\n"), nil
}
