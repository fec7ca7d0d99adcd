package netdef

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/netstack"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// TestNew has the cases of netavark's tests of "create" among its own: what is asked
// for, and what the network is, or why there is none.
func TestNew(t *testing.T) {
	used := []Network{
		{Name: "used", Subnet4: netip.MustParsePrefix("10.89.0.0/24"), Subnet6: netip.MustParsePrefix("fd00:89::/64")},
		{Name: "wide", Subnet4: netip.MustParsePrefix("10.1.2.0/23")},
	}
	host := []netstack.HostPrefix{{Prefix: netip.MustParsePrefix("192.168.7.0/24")}, {Prefix: netip.MustParsePrefix("10.0.0.0/8"), Far: true}}
	is := func(want string) func(*Network) string {
		return func(n *Network) string {
			got := fmt.Sprintf("%s gw %s range %s", n.Subnet4, n.Gateway4, n.Range4)
			if got != want {
				return got
			}
			return ""
		}
	}
	says := func(ok func(n *Network) bool) func(*Network) string {
		return func(n *Network) string {
			if ok(n) {
				return ""
			}
			return fmt.Sprintf("%+v", n)
		}
	}
	bad := func(kind error, text string) any { return &Error{kind, text, ""} }
	for name, tc := range map[string]struct {
		cfg  Config
		want any // a check, or the error
	}{
		"uplink with DHCP": {Config{Driver: "uplink", Options: map[string]string{"parent": "tap0"}}, says(func(n *Network) bool {
			return n.Uplink() && n.DHCP() && n.Parent == "tap0" && !n.Subnet4.IsValid() && !n.Subnet6.IsValid()
		})},
		"uplink where the machine itself is": {Config{Driver: "uplink", Options: map[string]string{"parent": "tap0"}, Subnets: prefixes("192.168.7.0/24")},
			says(func(n *Network) bool {
				return n.Uplink() && !n.DHCP() && n.Gateway4.String() == "192.168.7.1" && !n.Subnet6.IsValid()
			})},
		"uplink to nowhere":       {Config{Driver: "uplink"}, bad(ErrInvalid, "needs a parent device")},
		"uplink that is internal": {Config{Driver: "uplink", Internal: true, Options: map[string]string{"parent": "tap0"}}, bad(ErrInvalid, "cannot be internal")},
		"uplink with IPv6 alone":  {Config{Driver: "uplink", Options: map[string]string{"parent": "tap0"}, Subnets: prefixes("fd00:7::/64")}, bad(ErrInvalid, "IPv6 subnet alone")},
		"a parent without uplink": {Config{Options: map[string]string{"parent": "tap0"}}, bad(ErrInvalid, "has no parent device")},
		"basic": {Config{}, says(func(n *Network) bool {
			return len(n.ID) == 64 && n.Driver == "bridge" && n.Subnet4.Bits() == 22 && n.Gateway4 == n.Subnet4.Addr().Next() &&
				n.Subnet6.Bits() == 64 && n.Gateway6 == n.Subnet6.Addr().Next() && n.Subnet6.Addr().As16()[0] == 0xfd && !n.Internal && !n.Created.IsZero()
		})},
		"name in use":                {Config{Name: "used"}, bad(ErrExists, "network used exists already")},
		"a bridge's name is nothing": {Config{Options: map[string]string{"com.docker.network.bridge.name": "docker0"}}, says(func(n *Network) bool { return true })},
		"explicit subnet":            {Config{Subnets: prefixes("10.100.0.0/24")}, is("10.100.0.0/24 gw 10.100.0.1 range invalid Prefix")},
		"subnet with host bits":      {Config{Subnets: prefixes("10.100.0.77/24")}, is("10.100.0.0/24 gw 10.100.0.1 range invalid Prefix")},
		"internal":                   {Config{Internal: true}, says(func(n *Network) bool { return n.Internal && n.Gateway4.IsValid() })},
		"empty name":                 {Config{Name: "-"}, bad(ErrInvalid, "cannot be the name")},
		"invalid name":               {Config{Name: "badname!"}, bad(ErrInvalid, `"badname!" cannot be the name of a network`)},
		"path as name":               {Config{Name: "../x"}, bad(ErrInvalid, "cannot be the name")},
		"name beginning with a dot":  {Config{Name: ".x"}, bad(ErrInvalid, "cannot be the name")},
		"long name":                  {Config{Name: strings.Repeat("x", 65)}, bad(ErrInvalid, "cannot be the name")},
		"name of the default":        {Config{Name: "bridge"}, bad(ErrInvalid, "always there")},
		"name of a mode":             {Config{Name: "none"}, bad(ErrInvalid, "always there")},
		"name of a file":             {Config{Name: "x.leases"}, bad(ErrInvalid, "taken")},
		"labels":                     {Config{Labels: map[string]string{"key1": "value1"}}, says(func(n *Network) bool { return n.Labels["key1"] == "value1" })},
		"label without a key":        {Config{Labels: map[string]string{"": "x"}}, bad(ErrInvalid, "needs a name")},
		"labels without end":         {Config{Labels: map[string]string{"x": strings.Repeat("x", 1<<17)}}, bad(ErrInvalid, "the limits are")},
		"without IPv4": {Config{NoIPv4: true}, says(func(n *Network) bool {
			return !n.Subnet4.IsValid() && !n.Gateway4.IsValid() && n.Subnet6.IsValid() && n.Gateway6 == n.Subnet6.Addr().Next()
		})},
		"by Docker's options":        {Config{Options: map[string]string{optIPv4: "false", optIPv6: "true"}}, says(func(n *Network) bool { return !n.Subnet4.IsValid() && n.Subnet6.IsValid() })},
		"IPv6 off by its option":     {Config{Options: map[string]string{optIPv6: "false"}}, says(func(n *Network) bool { return n.Subnet4.IsValid() && !n.Subnet6.IsValid() })},
		"without any family":         {Config{NoIPv4: true, NoIPv6: true}, bad(ErrInvalid, "has no addresses")},
		"IPv4 subnet without IPv4":   {Config{NoIPv4: true, Subnets: prefixes("10.100.0.0/24")}, bad(ErrInvalid, "without IPv4")},
		"IPv6 alone, small mtu":      {Config{NoIPv4: true, Options: map[string]string{"mtu": "600"}}, bad(ErrInvalid, "needs 1280")},
		"uplink of IPv6 alone":       {Config{Driver: "uplink", NoIPv4: true, Subnets: prefixes("fdcc::/64"), Options: map[string]string{"parent": "tap0"}}, says(func(n *Network) bool { return !n.DHCP() })},
		"uplink, no IPv4, no subnet": {Config{Driver: "uplink", NoIPv4: true, Options: map[string]string{"parent": "tap0"}}, bad(ErrInvalid, "needs an IPv6 subnet")},
		"ports on one address":       {Config{Options: map[string]string{"com.docker.network.bridge.host_binding_ipv4": "127.0.0.1"}}, says(func(n *Network) bool { return n.HostBinding == addrs("127.0.0.1")[0] })},
		"ports on all addresses":     {Config{Options: map[string]string{"host_binding": "0.0.0.0"}}, says(func(n *Network) bool { return !n.HostBinding.IsValid() })},
		"ports on no address":        {Config{Options: map[string]string{"host_binding": "localhost"}}, bad(ErrInvalid, "is not an address")},
		"routed":                     {Config{Options: map[string]string{"com.docker.network.bridge.gateway_mode_ipv4": "routed"}}, bad(ErrInvalid, "always nat")},
		"the host's address":         {Config{Options: map[string]string{"com.docker.network.host_ipv4": "192.0.2.1"}}, bad(ErrInvalid, "connections go out as")},
		"without IPv6":               {Config{NoIPv6: true}, says(func(n *Network) bool { return !n.Subnet6.IsValid() && !n.Gateway6.IsValid() })},
		"used subnets are avoided": {Config{}, says(func(n *Network) bool {
			return !n.Subnet4.Overlaps(used[0].Subnet4) && !n.Subnet4.Overlaps(used[1].Subnet4)
		})},

		"custom gateway":           {Config{Subnets: prefixes("10.100.0.0/24"), Gateways: addrs("10.100.0.50")}, is("10.100.0.0/24 gw 10.100.0.50 range invalid Prefix")},
		"gateway not in subnet":    {Config{Subnets: prefixes("10.100.0.0/24"), Gateways: addrs("10.200.0.1")}, bad(ErrInvalid, "gateway 10.200.0.1 is in no subnet")},
		"gateway without subnet":   {Config{Gateways: addrs("10.200.0.1")}, bad(ErrInvalid, "gateway 10.200.0.1 is in no subnet")},
		"two gateways":             {Config{Subnets: prefixes("10.100.0.0/24"), Gateways: addrs("10.100.0.1", "10.100.0.2")}, bad(ErrInvalid, "two gateways")},
		"gateway is the broadcast": {Config{Subnets: prefixes("10.100.0.0/24"), Gateways: addrs("10.100.0.255")}, bad(ErrInvalid, "broadcast")},
		"gateway is the network":   {Config{Subnets: prefixes("10.100.0.0/24"), Gateways: addrs("10.100.0.0")}, bad(ErrInvalid, "broadcast")},
		"no room for a gateway":    {Config{Subnets: prefixes("10.100.0.0/31")}, bad(ErrInvalid, "/8 to /30")},
		"one address":              {Config{Subnets: prefixes("10.100.0.1/32")}, bad(ErrInvalid, "/8 to /30")},
		"everything":               {Config{Subnets: prefixes("0.0.0.0/0")}, bad(ErrInvalid, "/8 to /30")},
		"loopback":                 {Config{Subnets: prefixes("127.1.0.0/16")}, bad(ErrInvalid, "loopback")},
		"link-local":               {Config{Subnets: prefixes("169.254.1.0/24")}, bad(ErrInvalid, "loopback, link-local")},
		"multicast":                {Config{Subnets: prefixes("ff02::/64")}, bad(ErrInvalid, "multicast")},
		"range":                    {Config{Subnets: prefixes("10.100.0.0/24"), IPRanges: prefixes("10.100.0.16/28")}, is("10.100.0.0/24 gw 10.100.0.1 range 10.100.0.16/28")},
		"range is all":             {Config{Subnets: prefixes("10.100.0.0/24"), IPRanges: prefixes("10.100.0.0/24")}, is("10.100.0.0/24 gw 10.100.0.1 range 10.100.0.0/24")},
		"range elsewhere":          {Config{Subnets: prefixes("10.100.0.0/24"), IPRanges: prefixes("10.200.0.16/28")}, bad(ErrInvalid, "range 10.200.0.16/28 is in no subnet")},
		"range is too large":       {Config{Subnets: prefixes("10.100.0.0/24"), IPRanges: prefixes("10.100.0.0/16")}, bad(ErrInvalid, "larger than the subnet")},
		"two ranges":               {Config{Subnets: prefixes("10.100.0.0/24"), IPRanges: prefixes("10.100.0.0/28", "10.100.0.16/28")}, bad(ErrInvalid, "two ranges")},
		"range without subnet":     {Config{IPRanges: prefixes("10.100.0.16/28")}, bad(ErrInvalid, "in no subnet")},
		"auxiliary address":        {Config{Subnets: prefixes("10.100.0.0/24"), Aux: map[string]netip.Addr{"a": addrs("10.100.0.1")[0], "b": addrs("10.100.0.2")[0]}}, is("10.100.0.0/24 gw 10.100.0.3 range invalid Prefix")},
		"auxiliary elsewhere":      {Config{Aux: map[string]netip.Addr{"a": addrs("10.100.0.1")[0]}}, bad(ErrInvalid, "auxiliary address a=10.100.0.1 is in no subnet")},
		"auxiliary is the gateway": {Config{Subnets: prefixes("10.100.0.0/24"), Gateways: addrs("10.100.0.9"), Aux: map[string]netip.Addr{"a": addrs("10.100.0.9")[0]}}, bad(ErrInvalid, "is the gateway")},
		"auxiliary without a name": {Config{Subnets: prefixes("10.100.0.0/24"), Aux: map[string]netip.Addr{"": addrs("10.100.0.9")[0]}}, bad(ErrInvalid, "has no name")},

		"dual stack":                   {Config{}, says(func(n *Network) bool { return n.Subnet4.IsValid() && n.Subnet6.IsValid() })},
		"IPv4 subnet gets an IPv6 one": {Config{Subnets: prefixes("10.100.0.0/24")}, says(func(n *Network) bool { return n.Subnet6.IsValid() && n.Gateway6.IsValid() })},
		"IPv6 subnet gets an IPv4 one": {Config{Subnets: prefixes("fdcc::/64")}, says(func(n *Network) bool { return n.Subnet6.String() == "fdcc::/64" && n.Subnet4.IsValid() })},
		"both, with a range each": {Config{Subnets: prefixes("10.100.0.0/24", "fdcc::/64"), IPRanges: prefixes("10.100.0.128/25", "fdcc::f000/116"), Gateways: addrs("fdcc::5")}, says(func(n *Network) bool {
			return n.Range6.String() == "fdcc::f000/116" && n.Gateway6 == addrs("fdcc::5")[0] && n.Gateway4 == addrs("10.100.0.1")[0]
		})},
		"IPv6 subnet without IPv6": {Config{Subnets: prefixes("fdcc::/64"), NoIPv6: true}, bad(ErrInvalid, "without IPv6")},
		"wide IPv6 subnet":         {Config{Subnets: prefixes("fdcc::/48")}, bad(ErrInvalid, "/64 to /120")},
		"narrow IPv6 subnet":       {Config{Subnets: prefixes("fdcc::/126")}, bad(ErrInvalid, "/64 to /120")},
		"mapped IPv4":              {Config{Subnets: prefixes("::ffff:10.1.0.0/120")}, bad(ErrInvalid, "is not a subnet")},

		"mtu":          {Config{Options: map[string]string{"mtu": "1500"}}, says(func(n *Network) bool { return n.MTU == 1500 && n.Options["mtu"] == "1500" })},
		"Docker's mtu": {Config{Options: map[string]string{"com.docker.network.driver.mtu": "1400"}}, says(func(n *Network) bool { return n.MTU == 1400 })},
		"limits": {Config{Options: map[string]string{"tcp-flows": "100", "udp-flows": "200", "dns-rate": "300", "tcp-memory": "64m", "rebind-protection": "true"}},
			says(func(n *Network) bool {
				return n.TCPFlows == 100 && n.UDPFlows == 200 && n.DNSRate == 300 && n.TCPMemory == 64<<20 && n.RebindProtection
			})},
		"many flows, little memory":      {Config{Options: map[string]string{"tcp-flows": "10240", "tcp-memory": "1g"}}, bad(ErrInvalid, "not enough memory")},
		"no size":                        {Config{Options: map[string]string{"tcp-memory": "much"}}, bad(ErrInvalid, "want a size from 1MiB")},
		"no rate":                        {Config{Options: map[string]string{"dns-rate": "0"}}, bad(ErrInvalid, "option dns-rate=0: want a number from 1")},
		"rebinding, perhaps":             {Config{Options: map[string]string{"rebind-protection": "maybe"}}, bad(ErrInvalid, "neither true nor false")},
		"invalid mtu":                    {Config{Options: map[string]string{"mtu": "abc"}}, bad(ErrInvalid, "option mtu=abc: want a number")},
		"small mtu":                      {Config{Options: map[string]string{"mtu": "100"}}, bad(ErrInvalid, "from 576 to 65520")},
		"vlan":                           {Config{Options: map[string]string{"vlan": "100"}}, says(func(n *Network) bool { return n.VLAN == 100 })},
		"invalid vlan":                   {Config{Options: map[string]string{"vlan": "5000"}}, bad(ErrInvalid, "option vlan=5000: want a number from 1 to 4094")},
		"trunk":                          {Config{Options: map[string]string{"trunk": "10,20"}}, says(func(n *Network) bool { return len(n.Trunk) == 2 && n.Trunk[1] == 20 })},
		"invalid trunk":                  {Config{Options: map[string]string{"trunk": "10,"}}, bad(ErrInvalid, "option trunk=")},
		"isolate":                        {Config{Options: map[string]string{"isolate": "true"}}, says(func(n *Network) bool { return n.Isolate })},
		"isolate strictly":               {Config{Options: map[string]string{"isolate": "strict"}}, says(func(n *Network) bool { return n.Isolate && n.Options["isolate"] == "strict" })},
		"isolate perhaps":                {Config{Options: map[string]string{"isolate": "perhaps"}}, bad(ErrInvalid, "neither true nor false")},
		"no icc":                         {Config{Options: map[string]string{"com.docker.network.bridge.enable_icc": "false"}}, says(func(n *Network) bool { return n.Private })},
		"icc":                            {Config{Options: map[string]string{"icc": "true"}}, says(func(n *Network) bool { return !n.Private })},
		"unknown option":                 {Config{Options: map[string]string{"ipam": "none"}}, bad(ErrInvalid, `there is no option "ipam"`)},
		"no masquerade":                  {Config{Options: map[string]string{"com.docker.network.bridge.enable_ip_masquerade": "false"}}, bad(ErrInvalid, "not supported")},
		"macvlan":                        {Config{Driver: "macvlan"}, bad(ErrInvalid, "the driver macvlan needs root")},
		"ipvlan":                         {Config{Driver: "ipvlan", Subnets: prefixes("10.200.0.0/24")}, bad(ErrInvalid, "the driver ipvlan needs root")},
		"no such driver":                 {Config{Driver: "carrier-pigeon"}, bad(ErrInvalid, "there is no driver")},
		"overlaps used":                  {Config{Subnets: prefixes("10.1.3.248/30")}, bad(ErrOverlap, "subnet 10.1.3.248/30 overlaps 10.1.2.0/23 of network wide")},
		"is used":                        {Config{Subnets: prefixes("10.89.0.0/24")}, bad(ErrOverlap, "subnet 10.89.0.0/24 overlaps 10.89.0.0/24 of network used")},
		"IPv6 is used":                   {Config{Subnets: prefixes("fd00:89::/80")}, bad(ErrOverlap, "of network used")},
		"contains used":                  {Config{Subnets: prefixes("10.88.0.0/13")}, bad(ErrOverlap, "of network used")},
		"the host is there":              {Config{Subnets: prefixes("192.168.0.0/16")}, bad(ErrOverlap, "overlaps 192.168.7.0/24, where this machine itself is")},
		"within a far route of the host": {Config{Subnets: prefixes("10.44.0.0/24")}, is("10.44.0.0/24 gw 10.44.0.1 range invalid Prefix")},
		"overlap within":                 {Config{Subnets: prefixes("10.1.16.0/23", "10.1.17.248/30")}, bad(ErrOverlap, "subnets 10.1.16.0/23 and 10.1.17.248/30 of the network overlap")},
		"twice":                          {Config{Subnets: prefixes("10.100.0.0/24", "10.100.0.0/24")}, bad(ErrInvalid, "subnet 10.100.0.0/24 is there twice")},
		"two of a family":                {Config{Subnets: prefixes("10.100.0.0/24", "10.101.0.0/24")}, bad(ErrInvalid, "of the same family")},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.cfg.Name == "" {
				tc.cfg.Name = "new"
			}
			n, err := New(tc.cfg, used, host)
			switch want := tc.want.(type) {
			case *Error:
				if !errors.Is(err, want.Kind) || !strings.Contains(err.Error(), want.Msg) {
					t.Errorf("%v, want %v: %s", err, want.Kind, want.Msg)
				}
			case func(*Network) string:
				if err != nil {
					t.Fatal(err)
				}
				if got := want(n); got != "" {
					t.Error(got)
				}
			}
		})
	}
	if _, err := New(Config{}, nil, nil); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "needs a name") {
		t.Errorf("without a name: %v", err)
	}
}

// TestManyNetworks makes as many as there may be: no two overlap, and then there is a
// clear error.
func TestManyNetworks(t *testing.T) {
	d := Dir(t.TempDir())
	var list []Network
	for i := range 300 {
		n, err := New(Config{Name: fmt.Sprint("n", i)}, list, nil)
		if err != nil {
			t.Fatal(i, err)
		}
		for _, o := range list {
			if o.Subnet4.Overlaps(n.Subnet4) || o.Subnet6.Overlaps(n.Subnet6) {
				t.Fatalf("%s and %s", o.Subnet4, n.Subnet4)
			}
		}
		if err := d.Add(n); err != nil {
			t.Fatal(err)
		}
		list = append(list, *n)
	}
	got, err := d.List()
	if err != nil || len(got) != len(list) {
		t.Fatalf("%d networks, %v", len(got), err)
	}
	full := []netstack.HostPrefix{{Prefix: netip.MustParsePrefix("0.0.0.0/1")}, {Prefix: netip.MustParsePrefix("128.0.0.0/1")}}
	if n, err := New(Config{Name: "x"}, list, full); !errors.Is(err, ErrOverlap) || !strings.Contains(err.Error(), "no free subnet") {
		t.Errorf("%+v, %v", n, err)
	}
	for len(list) < maxNetworks {
		list = append(list, Network{Name: "filler"})
	}
	if n, err := New(Config{Name: "x"}, list, nil); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "the limit") {
		t.Errorf("%+v, %v", n, err)
	}
}
