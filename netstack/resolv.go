package netstack

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of a resolv.conf. The C libraries take three name servers as well.
const (
	maxResolvFile    = 64 << 10
	maxNameservers   = 3
	maxSearchDomains = 32
	maxResolvOptions = 32
	maxOptionLen     = 64
)

// ResolvConf is what a resolv.conf(5) says.
type ResolvConf struct {
	// Nameservers in order; an IPv6 link-local one keeps its zone.
	Nameservers []netip.Addr
	Search      []string
	// Options as written, e.g. "ndots:2", each name once.
	Options []string
}

// ParseResolvConf reads a file as the C library does: what it does not
// understand it skips, of several search or domain lines the last one counts,
// options add up. It cannot fail; what exceeds the bounds is left out.
func ParseResolvConf(b []byte) ResolvConf {
	var c ResolvConf
	b = b[:min(len(b), maxResolvFile)]
	for line := range bytes.Lines(b) {
		// A keyword must begin the line: " nameserver" is not one.
		if line[0] == ' ' || line[0] == '\t' || line[0] == '#' || line[0] == ';' {
			continue
		}
		f := strings.FieldsFunc(string(line), isResolvSpace)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			a, err := netip.ParseAddr(f[1])
			if err == nil && len(c.Nameservers) < maxNameservers {
				c.Nameservers = append(c.Nameservers, a)
			}
		case "domain":
			c.Search = appendSearch(nil, f[1:2])
		case "search":
			c.Search = appendSearch(nil, f[1:])
		case "options":
			for _, o := range f[1:] {
				c.setOption(o)
			}
		}
	}
	return c
}

func isResolvSpace(r rune) bool { return r == ' ' || r == '\t' || r == '\n' || r == '\r' }

func appendSearch(out, domains []string) []string {
	for _, d := range domains {
		if d[0] == '#' || d[0] == ';' {
			break
		}
		if d != "." {
			d = strings.TrimSuffix(d, ".")
		}
		if d != "." && checkDomain(d) != nil {
			continue
		}
		if len(out) < maxSearchDomains {
			out = append(out, d)
		}
	}
	return out
}

// setOption adds o, replacing an earlier value of the same option.
func (c *ResolvConf) setOption(o string) {
	if checkResolvOption(o) != nil {
		return
	}
	name := optionName(o)
	for i, have := range c.Options {
		if optionName(have) == name {
			c.Options[i] = o
			return
		}
	}
	if len(c.Options) < maxResolvOptions {
		c.Options = append(c.Options, o)
	}
}

func optionName(o string) string {
	name, _, _ := strings.Cut(o, ":")
	return name
}

// Option returns the value of "name:value", and whether the option is there.
func (c ResolvConf) Option(name string) (string, bool) {
	for _, o := range c.Options {
		if n, v, _ := strings.Cut(o, ":"); n == name {
			return v, true
		}
	}
	return "", false
}

// number is an option's value within the C library's bounds, def if unset.
func (c ResolvConf) number(name string, def, lo, hi int) int {
	v, ok := c.Option(name)
	if !ok {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		return def
	}
	return min(max(n, lo), hi)
}

func (c ResolvConf) timeout(def time.Duration) time.Duration {
	return time.Duration(c.number("timeout", int(def/time.Second), 1, 30)) * time.Second
}

func (c ResolvConf) attempts() int { return c.number("attempts", 2, 1, 5) }

// Bytes is the file.
func (c ResolvConf) Bytes() []byte {
	var b bytes.Buffer
	for _, n := range c.Nameservers {
		fmt.Fprintf(&b, "nameserver %s\n", n)
	}
	if len(c.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.Search, " "))
	}
	if len(c.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(c.Options, " "))
	}
	return b.Bytes()
}

// ErrResolvConf says which of the user's DNS settings is wrong.
type ErrResolvConf struct {
	// Setting is "dns", "dns-search" or "dns-option".
	Setting, Value, Reason string
}

func (e *ErrResolvConf) Error() string {
	return fmt.Sprintf("--%s %q: %s", e.Setting, e.Value, e.Reason)
}

// SandboxResolvConf says what a sandbox's resolv.conf is made of.
type SandboxResolvConf struct {
	// Gateway4 and Gateway6 are the network's own name server. Gateway6 is
	// written only with IPv6 set: one address is enough, and a libc asks the
	// second one only after the first has timed out.
	Gateway4, Gateway6 netip.Addr
	IPv6               bool
	// DNS, Search and Options replace the defaults if not empty. A search list
	// of "." alone means none, as with Docker.
	DNS, Search, Options []string
	// Host is the host's file. Its search list is inherited, and so are its
	// options but for those that our resolver honours itself.
	Host ResolvConf
}

// Build checks the settings and returns the file.
func (s SandboxResolvConf) Build() (ResolvConf, error) {
	var c ResolvConf
	for _, d := range s.DNS {
		a, err := netip.ParseAddr(d)
		if err != nil {
			return c, &ErrResolvConf{"dns", d, "not an IP address"}
		}
		if a.IsUnspecified() || a.IsMulticast() {
			return c, &ErrResolvConf{"dns", d, "not the address of a name server"}
		}
		if len(c.Nameservers) == maxNameservers {
			return c, &ErrResolvConf{"dns", d, fmt.Sprintf("more than %d name servers, which no C library reads", maxNameservers)}
		}
		c.Nameservers = append(c.Nameservers, a)
	}
	if len(c.Nameservers) == 0 {
		if s.Gateway4.IsValid() {
			c.Nameservers = append(c.Nameservers, s.Gateway4)
		}
		if s.Gateway6.IsValid() && (s.IPv6 || !s.Gateway4.IsValid()) {
			c.Nameservers = append(c.Nameservers, s.Gateway6)
		}
	}
	if len(s.Search) == 0 {
		c.Search = append(c.Search, s.Host.Search...)
	}
	for _, d := range s.Search {
		if d == "." {
			continue
		}
		d = strings.TrimSuffix(d, ".")
		if err := checkDomain(d); err != nil {
			return c, &ErrResolvConf{"dns-search", d, err.Error()}
		}
		if len(c.Search) == maxSearchDomains {
			return c, &ErrResolvConf{"dns-search", d, fmt.Sprintf("more than %d domains", maxSearchDomains)}
		}
		c.Search = append(c.Search, d)
	}
	if len(s.Options) == 0 {
		for _, o := range s.Host.Options {
			switch optionName(o) {
			case "timeout", "attempts", "rotate", "use-vc":
				// They are about the host's servers, which the resolver asks.
			default:
				c.setOption(o)
			}
		}
	}
	for _, o := range s.Options {
		if err := checkResolvOption(o); err != nil {
			return c, &ErrResolvConf{"dns-option", o, err.Error()}
		}
		if c.setOption(o); !slices.Contains(c.Options, o) {
			return c, &ErrResolvConf{"dns-option", o, fmt.Sprintf("more than %d options", maxResolvOptions)}
		}
	}
	return c, nil
}

// checkDomain wants a name that is safe to write into a line of its own words.
func checkDomain(d string) error {
	if d == "" || len(d) > 253 {
		return errors.New("a domain name has 1 to 253 characters")
	}
	for label := range strings.SplitSeq(d, ".") {
		if label == "" || len(label) > 63 {
			return errors.New("each label of a domain name has 1 to 63 characters")
		}
		for _, r := range label {
			if !isNameChar(r) {
				return fmt.Errorf("%q is not allowed in a domain name", r)
			}
		}
	}
	return nil
}

func isNameChar(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_'
}

func checkResolvOption(o string) error {
	if o == "" || len(o) > maxOptionLen {
		return fmt.Errorf("an option has 1 to %d characters", maxOptionLen)
	}
	for _, r := range o {
		if !isNameChar(r) && r != ':' && r != '.' {
			return fmt.Errorf("%q is not allowed in an option", r)
		}
	}
	return nil
}
