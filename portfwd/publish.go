package portfwd

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/docker/go-connections/nat"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
)

// MaxSpecs bounds the ports that one sandbox may publish, ranges expanded. Each
// costs up to two listening sockets and two goroutines.
const MaxSpecs = 4096

// Spec is a port to publish.
type Spec struct {
	port.Spec
	// ParentEnd, if it is not 0, is the last of several host ports, from ParentPort on,
	// of which the first free one is taken.
	ParentEnd int `json:"parentEnd,omitempty"`
}

// SpecError is a publish or expose spec that cannot be used.
type SpecError struct {
	// Spec is what the user wrote.
	Spec string
	// Why says what is wrong with it.
	Why string
	// Fix shows a form that works; may be empty.
	Fix string
}

func (e *SpecError) Error() string {
	s := fmt.Sprintf("publish %q: %s", e.Spec, e.Why)
	if e.Fix != "" {
		s += " (" + e.Fix + ")"
	}
	return s
}

// ParsePublish reads Docker's -p grammar,
//
//	[[ip:][hostPort[-end]]:]containerPort[-end][/proto]
//
// and expands ranges. proto is tcp (the default) or udp, in any case, or one of
// tcp4, tcp6, udp4, udp6 to listen on one family only. An IPv6 address stands in
// brackets. A spec without host port, or with port 0, gets ParentPort 0: any
// free port, chosen by AddPort. Several host ports for one container port stand for
// the first of them that is free. A spec without ip gets ParentIP "": all addresses
// of the host, IPv4 and IPv6, as Docker does.
//
// Specs that would meet on the same host port are refused here, before anything
// is started.
func ParsePublish(specs []string) ([]Spec, error) {
	var out []Spec
	seen := newClashes()
	for _, raw := range specs {
		got, err := parseOne(raw)
		if err != nil {
			return nil, err
		}
		if len(out)+len(got) > MaxSpecs {
			return nil, &SpecError{Spec: raw, Why: fmt.Sprintf("more than %d published ports", MaxSpecs),
				Fix: "publish a smaller range"}
		}
		for _, s := range got {
			if other, ok := seen.add(s, raw); !ok {
				return nil, meets(s, raw, other)
			}
			out = append(out, s)
		}
	}
	return out, nil
}

// Check refuses specs that are none, that would meet on the same host port, and too many.
func Check(specs []Spec) error {
	if len(specs) > MaxSpecs {
		return fmt.Errorf("%w: %d, limit %d", ErrTooManyPorts, len(specs), MaxSpecs)
	}
	seen := newClashes()
	for _, s := range specs {
		if _, _, err := validate(s); err != nil {
			return err
		}
		if other, ok := seen.add(s, s.String()); !ok {
			return meets(s, s.String(), other)
		}
	}
	return nil
}

func meets(s Spec, raw, other string) error {
	return &SpecError{Spec: raw,
		Why: fmt.Sprintf("host port %d/%s is already taken by %q", s.ParentPort, transport(s.Proto), other),
		Fix: "give each its own host port or host address"}
}

// ParseExpose reads --expose and an image's ExposedPorts: containerPort[-end][/proto].
// The result has no host side; ParentPort 0 makes it "publish on any free port",
// which is what --publish-all does with it. Duplicates are merged.
func ParseExpose(specs []string) ([]Spec, error) {
	var out []Spec
	seen := map[Spec]bool{}
	for _, raw := range specs {
		if strings.Contains(raw, ":") {
			return nil, &SpecError{Spec: raw, Why: "an exposed port has no host side", Fix: "use --publish for that, or write 80 or 80/udp"}
		}
		got, err := parseOne(raw)
		if err != nil {
			return nil, err
		}
		for _, s := range got {
			if seen[s] {
				continue
			}
			seen[s] = true
			if out = append(out, s); len(out) > MaxSpecs {
				return nil, &SpecError{Spec: raw, Why: fmt.Sprintf("more than %d exposed ports", MaxSpecs), Fix: "expose a smaller range"}
			}
		}
	}
	return out, nil
}

func parseOne(raw string) ([]Spec, error) {
	fail := func(fix, format string, args ...any) ([]Spec, error) {
		return nil, &SpecError{Spec: raw, Why: fmt.Sprintf(format, args...), Fix: fix}
	}
	rest, proto, found := strings.Cut(raw, "/")
	proto = strings.ToLower(proto)
	switch {
	case !found:
		proto = "tcp"
	case proto == "sctp":
		return fail("use /tcp or /udp", "SCTP cannot be published: the gateway stack forwards TCP and UDP only")
	case !validProto(proto):
		return fail("use /tcp or /udp", "unknown protocol %q", proto)
	}

	host, ctr := "", rest
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		host, ctr = rest[:i], rest[i+1:]
		if strings.HasSuffix(ctr, "]") {
			return fail("write [ip]:hostPort:containerPort", "no container port after the address")
		}
	}
	ip, hostPorts := "", host
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		ip, hostPorts = host[:i], host[i+1:]
		if ip == "" {
			return fail("write ip:hostPort:containerPort or hostPort:containerPort", "the host address is empty")
		}
	}
	addr, err := parseHostIP(ip)
	if err != nil {
		return fail("write 127.0.0.1:8080:80 or [::1]:8080:80", "%v", err)
	}
	if addr.IsValid() {
		if strings.HasSuffix(proto, "4") && addr.Is6() || strings.HasSuffix(proto, "6") && addr.Is4() {
			return fail("use /tcp or /udp, the address says the family", "host address %s does not fit protocol %s", addr, proto)
		}
		ip = addr.String()
	}

	if ctr == "" {
		return fail("write hostPort:containerPort, e.g. 8080:80", "no container port")
	}
	c0, c1, err := parseRange(ctr)
	if err != nil {
		return fail("ports go from 1 to 65535, a range is 8000-8010", "container port %q: %v", ctr, err)
	}
	if c0 == 0 {
		return fail("ports go from 1 to 65535", "container port 0")
	}
	n := c1 - c0 + 1
	h0, last := 0, 0
	if hostPorts != "" {
		var h1 int
		if h0, h1, err = parseRange(hostPorts); err != nil {
			return fail("ports go from 1 to 65535, leave it empty for any free port", "host port %q: %v", hostPorts, err)
		}
		switch {
		case h0 == 0 && h1 > 0:
			return fail("leave the host port empty for any free port", "host port range %q starts at 0", hostPorts)
		case h0 == 0 && n > 1:
			h0 = 0 // "0:80-81": any free port for each, as with "80-81"
		case h1-h0+1 != n && n == 1:
			last = h1
		case h1-h0+1 != n:
			return fail("make both ranges equally long", "%d host ports for %d container ports", h1-h0+1, n)
		}
	}
	if n > MaxSpecs {
		return fail("publish a smaller range", "a range of %d ports, the limit is %d", n, MaxSpecs)
	}
	out := make([]Spec, n)
	for i := range out {
		out[i] = Spec{Spec: port.Spec{Proto: proto, ParentIP: ip, ChildPort: c0 + i}, ParentEnd: last}
		if h0 > 0 {
			out[i].ParentPort = h0 + i
		}
	}
	return out, nil
}

// parseHostIP accepts an IPv4 address, or an IPv6 address in brackets.
func parseHostIP(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	inner, bracketed := strings.CutPrefix(s, "[")
	if bracketed {
		var ok bool
		if inner, ok = strings.CutSuffix(inner, "]"); !ok {
			return netip.Addr{}, fmt.Errorf("host address %q: the bracket is not closed", s)
		}
	}
	a, err := netip.ParseAddr(inner)
	switch {
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", s)
	case bracketed && a.Is4():
		return netip.Addr{}, fmt.Errorf("%q: brackets are for IPv6", s)
	case !bracketed && a.Is6():
		return netip.Addr{}, fmt.Errorf("IPv6 address %q needs brackets", s)
	}
	return checkHostIP(a)
}

// checkHostIP refuses addresses that no listener of ours can have.
func checkHostIP(a netip.Addr) (netip.Addr, error) {
	switch {
	case a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("host address %s: addresses with a zone cannot be published on", a)
	case a.IsMulticast():
		return netip.Addr{}, fmt.Errorf("host address %s is a multicast address", a)
	}
	return a.Unmap(), nil
}

func parseRange(s string) (first, last int, err error) {
	for _, c := range s {
		// The library takes "+80" for 80.
		if (c < '0' || c > '9') && c != '-' {
			return 0, 0, fmt.Errorf("not a number")
		}
	}
	return nat.ParsePortRangeToInt(s)
}

func validProto(p string) bool {
	switch p {
	case "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6":
		return true
	}
	return false
}

// transport strips the family: tcp6 -> tcp.
func transport(proto string) string { return proto[:3] }

// validate checks a spec that did not come from ParsePublish.
func validate(s Spec) (hostIP, childIP netip.Addr, err error) {
	bad := func(format string, args ...any) (netip.Addr, netip.Addr, error) {
		return netip.Addr{}, netip.Addr{}, &SpecError{Spec: s.String(), Why: fmt.Sprintf(format, args...)}
	}
	if !validProto(s.Proto) {
		return bad("unknown protocol %q", s.Proto)
	}
	if s.ParentPort < 0 || s.ParentPort > 65535 {
		return bad("host port %d is not between 0 and 65535", s.ParentPort)
	}
	if s.ParentEnd != 0 && (s.ParentPort == 0 || s.ParentEnd < s.ParentPort || s.ParentEnd > 65535) {
		return bad("host ports %d-%d are no range", s.ParentPort, s.ParentEnd)
	}
	if s.ChildPort < 1 || s.ChildPort > 65535 {
		return bad("container port %d is not between 1 and 65535", s.ChildPort)
	}
	if s.ParentIP != "" {
		if hostIP, err = netip.ParseAddr(s.ParentIP); err != nil {
			return bad("%q is not an IP address", s.ParentIP)
		}
		if hostIP, err = checkHostIP(hostIP); err != nil {
			return bad("%v", err)
		}
		if len(families(s.Proto, hostIP)) == 0 {
			return bad("host address %s does not fit protocol %s", hostIP, s.Proto)
		}
	}
	if s.ChildIP != "" {
		if childIP, err = netip.ParseAddr(s.ChildIP); err != nil {
			return bad("%q is not an IP address", s.ChildIP)
		}
		if childIP = childIP.Unmap(); childIP.IsMulticast() || childIP.Zone() != "" {
			return bad("container address %s cannot be connected to", childIP)
		}
	}
	return hostIP, childIP, nil
}

// String is the spec as the user would write it.
func (s Spec) String() string {
	out := ""
	if s.ParentIP != "" {
		out = s.ParentIP + ":"
		if strings.Contains(s.ParentIP, ":") {
			out = "[" + s.ParentIP + "]:"
		}
	}
	if s.ParentEnd != 0 {
		out += fmt.Sprintf("%d-%d:", s.ParentPort, s.ParentEnd)
	} else if s.ParentPort != 0 || out != "" {
		out += fmt.Sprintf("%d:", s.ParentPort)
	}
	return fmt.Sprintf("%s%d/%s", out, s.ChildPort, s.Proto)
}
