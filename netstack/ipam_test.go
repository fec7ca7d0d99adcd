package netstack

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

var (
	mustPrefix = netip.MustParsePrefix
	mustAddr   = netip.MustParseAddr
)

func newIPAM(t testing.TB, s4, s6 string) *IPAM {
	t.Helper()
	var cfg IPAMConfig
	if s4 != "" {
		cfg.Subnet4 = mustPrefix(s4)
	}
	if s6 != "" {
		cfg.Subnet6 = mustPrefix(s6)
	}
	p, err := NewIPAM(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestIPAMLease(t *testing.T) {
	p := newIPAM(t, "10.1.2.0/24", "fd00:1::/64")
	a, err := p.Lease("a", LeaseWant{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if a.Addr4 != mustAddr("10.1.2.2") || a.Addr6 != mustAddr("fd00:1::2") || a.MAC.String() != "02:5b:0a:01:02:02" || a.Name != "web" {
		t.Errorf("first lease %+v", a)
	}
	if again, err := p.Lease("a", LeaseWant{}); err != nil || again.Addr4 != a.Addr4 {
		t.Errorf("the same id again: %+v, %v", again, err)
	}
	var bad *ErrBadAddress
	if l, err := p.Lease("a", LeaseWant{Addr4: mustAddr("10.1.2.9")}); err != nil || l.Addr4 != mustAddr("10.1.2.9") || len(p.Leases()) != 1 {
		t.Errorf("other wishes for the same id: %+v, %v", l, err)
	}
	if _, err := p.Lease("a", LeaseWant{Addr4: mustAddr("10.1.9.9")}); !errors.As(err, &bad) || len(p.Leases()) != 1 || p.Leases()[0].Addr4 != mustAddr("10.1.2.9") {
		t.Errorf("a wish that cannot be met cost the lease: %v, %v", p.Leases(), err)
	}
	if a, err = p.Lease("a", LeaseWant{Name: "web", Addr4: a.Addr4}); err != nil {
		t.Fatal(err)
	}
	var used *ErrLeaseConflict
	if _, err := p.Lease("b", LeaseWant{Addr4: a.Addr4}); !errors.As(err, &used) || used.Owner != "web" {
		t.Errorf("taken address: %v", err)
	}
	if _, err := p.Lease("b", LeaseWant{Addr6: a.Addr6}); !errors.As(err, &used) {
		t.Errorf("taken IPv6 address: %v", err)
	}
	if _, err := p.Lease("b", LeaseWant{MAC: a.MAC}); !errors.As(err, &used) {
		t.Errorf("taken MAC: %v", err)
	}
	for _, w := range []LeaseWant{
		{Addr4: mustAddr("10.1.2.0")}, {Addr4: mustAddr("10.1.2.255")}, {Addr4: mustAddr("10.1.2.1")}, {Addr4: mustAddr("10.1.3.1")},
		{Addr4: mustAddr("fd00:1::9")}, {Addr6: mustAddr("fd00:1::1")}, {Addr6: mustAddr("fd00:1::")}, {Addr6: mustAddr("fd00:2::9")},
		{MAC: net.HardwareAddr{1, 2, 3, 4, 5, 6}}, {MAC: net.HardwareAddr{2, 3}}, {MAC: make(net.HardwareAddr, 6)},
	} {
		if l, err := p.Lease("b", w); !errors.As(err, &bad) {
			t.Errorf("wish %+v: %+v, %v", w, l, err)
		}
	}
	// The IPv6 address that belongs to the next IPv4 one is taken already.
	if _, err := p.Lease("c", LeaseWant{Addr4: mustAddr("10.1.2.200"), Addr6: mustAddr("fd00:1::3")}); err != nil {
		t.Fatal(err)
	}
	d, err := p.Lease("d", LeaseWant{})
	if err != nil || d.Addr4 != mustAddr("10.1.2.3") || d.Addr6 == mustAddr("fd00:1::3") {
		t.Errorf("around a taken IPv6 address: %+v, %v", d, err)
	}
	if !p.Release("d") || p.Release("d") {
		t.Error("release says the wrong thing")
	}
	if e, err := p.Lease("e", LeaseWant{}); err != nil || e.Addr4 == d.Addr4 {
		t.Errorf("a released address came back at once: %+v, %v", e, err)
	}
}

// TestIPAMOnlyIPv6 is a pool without IPv4.
func TestIPAMOnlyIPv6(t *testing.T) {
	p := newIPAM(t, "", "fd00:1::/64")
	a, err := p.Lease("a", LeaseWant{})
	if err != nil || a.Addr4.IsValid() || a.Addr6 != mustAddr("fd00:1::2") || a.MAC.String() != "02:5b:00:00:00:02" {
		t.Fatalf("%+v, %v", a, err)
	}
	// The same end, and yet another MAC.
	b, err := p.Lease("b", LeaseWant{Addr6: mustAddr("fd00:1::7:0:0:2")})
	if err != nil || b.MAC.String() == a.MAC.String() || validMAC(b.MAC) == false {
		t.Errorf("%+v, %v", b, err)
	}
	if c, err := p.Lease("c", LeaseWant{}); err != nil || c.Addr6 != mustAddr("fd00:1::3") {
		t.Errorf("%+v, %v", c, err)
	}
	var bad *ErrBadAddress
	if l, err := p.Lease("d", LeaseWant{Addr4: mustAddr("10.1.2.3")}); !errors.As(err, &bad) || !strings.Contains(err.Error(), "no IPv4") {
		t.Errorf("%+v, %v", l, err)
	}
	q := newIPAM(t, "", "fd00:1::/64")
	for _, l := range p.Leases() {
		if !q.Add(l) {
			t.Errorf("%+v does not fit", l)
		}
	}
	small := newIPAM(t, "", "fd00:1::/120")
	for i := range 254 { // 256 - anycast, gateway
		if _, err := small.Lease(fmt.Sprint(i), LeaseWant{}); err != nil {
			t.Fatal(i, err)
		}
	}
	var none *ErrNoAddress
	if l, err := small.Lease("x", LeaseWant{}); !errors.As(err, &none) || none.Subnet != mustPrefix("fd00:1::/120") {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestIPAMExhausted(t *testing.T) {
	p := newIPAM(t, "10.1.2.0/29", "fd00:1::/64")
	for i := range 5 { // 8 - network, broadcast, gateway
		if _, err := p.Lease(fmt.Sprint(i), LeaseWant{}); err != nil {
			t.Fatal(err)
		}
	}
	var none *ErrNoAddress
	if l, err := p.Lease("x", LeaseWant{}); !errors.As(err, &none) || none.Leases != 5 {
		t.Fatalf("%+v, %v", l, err)
	}
	p.Release("3")
	if l, err := p.Lease("x", LeaseWant{}); err != nil || l.Addr4 != mustAddr("10.1.2.5") {
		t.Fatalf("%+v, %v", l, err)
	}
	p, err := NewIPAM(IPAMConfig{Subnet4: mustPrefix("10.0.0.0/8"), MaxLeases: 2})
	if err != nil {
		t.Fatal(err)
	}
	p.Lease("1", LeaseWant{})
	p.Lease("2", LeaseWant{})
	if _, err := p.Lease("3", LeaseWant{}); !errors.As(err, &none) {
		t.Fatalf("over MaxLeases: %v", err)
	}
}

func TestIPAMConfig(t *testing.T) {
	for _, c := range []IPAMConfig{
		{}, {Subnet4: mustPrefix("10.0.0.0/31")}, {Subnet4: mustPrefix("fd00::/64")}, {Subnet4: mustPrefix("0.0.0.0/0")},
		{Subnet4: mustPrefix("10.0.0.0/24"), Subnet6: mustPrefix("fd00::/48")}, {Subnet4: mustPrefix("10.0.0.0/24"), Subnet6: mustPrefix("10.0.1.0/24")},
		{Subnet4: mustPrefix("10.0.0.0/24"), Gateway4: mustAddr("10.0.1.1")},
	} {
		if p, err := NewIPAM(c); err == nil {
			t.Errorf("%+v was accepted: %+v", c, p.cfg)
		}
	}
}

// TestIPAMAdd: a later pool takes what fits over.
func TestIPAMAdd(t *testing.T) {
	p := newIPAM(t, "10.1.2.0/29", "fd00:1::/64")
	for i := range 4 {
		p.Lease(fmt.Sprint(i), LeaseWant{Name: "n" + fmt.Sprint(i)})
	}
	p.Release("1")
	q, err := NewIPAM(IPAMConfig{Subnet4: mustPrefix("10.1.2.0/29"), Subnet6: mustPrefix("fd00:1::/64"), Next: p.Next()})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range p.Leases() {
		if !q.Add(l) || q.Add(l) {
			t.Errorf("%+v does not fit, or twice", l)
		}
	}
	if got, want := fmt.Sprint(q.Leases()), fmt.Sprint(p.Leases()); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for _, a := range []string{"10.1.2.6", "10.1.2.3"} { // the one that was released comes last
		if l, err := q.Lease("new"+a, LeaseWant{}); err != nil || l.Addr4 != mustAddr(a) {
			t.Errorf("%+v, %v, want %s", l, err, a)
		}
	}
	mac := net.HardwareAddr{2, 0x5b, 10, 1, 2, 2}
	six := mustAddr("fd00:1::7")
	for name, l := range map[string]Lease{
		"no id": {Addr4: mustAddr("10.1.2.2"), Addr6: six, MAC: mac}, "the gateway": {ID: "a", Addr4: mustAddr("10.1.2.1"), Addr6: six, MAC: mac},
		"no IPv6": {ID: "a", Addr4: mustAddr("10.1.2.2"), MAC: mac}, "no MAC": {ID: "a", Addr4: mustAddr("10.1.2.2"), Addr6: six},
		"elsewhere": {ID: "a", Addr4: mustAddr("10.1.3.2"), Addr6: six, MAC: mac}, "nothing": {ID: "a"},
	} {
		if newIPAM(t, "10.1.2.0/29", "fd00:1::/64").Add(l) {
			t.Errorf("%s: fits", name)
		}
	}
}

// TestIPAMRange: addresses are chosen from the range alone, and never a reserved one.
func TestIPAMRange(t *testing.T) {
	cfg := IPAMConfig{
		Subnet4: mustPrefix("10.1.2.0/24"), Subnet6: mustPrefix("fd00:1::/64"), Gateway4: mustAddr("10.1.2.130"),
		Range4: mustPrefix("10.1.2.128/29"), Range6: mustPrefix("fd00:1::f0/124"), Reserved: []netip.Addr{mustAddr("10.1.2.129"), mustAddr("fd00:1::f3")},
	}
	p, err := NewIPAM(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if l, err := p.Lease("wish", LeaseWant{Addr4: mustAddr("10.1.2.7")}); err != nil || l.Addr4 != mustAddr("10.1.2.7") {
		t.Errorf("an address of the subnet outside of the range: %+v, %v", l, err)
	}
	for i := range 6 { // 8 - gateway, reserved
		l, err := p.Lease(fmt.Sprint(i), LeaseWant{})
		if err != nil || !cfg.Range4.Contains(l.Addr4) || !cfg.Range6.Contains(l.Addr6) || l.Addr4 == cfg.Gateway4 || slices.Contains(cfg.Reserved, l.Addr4) || slices.Contains(cfg.Reserved, l.Addr6) {
			t.Errorf("%+v, %v", l, err)
		}
	}
	var none *ErrNoAddress
	if l, err := p.Lease("x", LeaseWant{}); !errors.As(err, &none) || none.Subnet != cfg.Range4 {
		t.Errorf("%+v, %v", l, err)
	}
	for _, bad := range []string{"10.1.0.0/16", "10.1.3.0/29", "fd00:1::/120"} {
		c := cfg
		c.Range4 = mustPrefix(bad)
		if _, err := NewIPAM(c); err == nil {
			t.Errorf("range %s was accepted", bad)
		}
	}
}

// TestIPAMRandom compares with a slow model that knows only who has what.
func TestIPAMRandom(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	p := newIPAM(t, "10.9.0.0/26", "fd00:9::/64")
	model := map[string]Lease{}
	conflict := func(w LeaseWant) bool {
		for _, l := range model {
			if l.Addr4 == w.Addr4 || l.Addr6 == w.Addr6 || w.MAC != nil && l.MAC.String() == w.MAC.String() {
				return true
			}
			if w.MAC == nil && w.Addr4.IsValid() && l.MAC.String() == macOf(w.Addr4).String() {
				return true
			}
		}
		return false
	}
	for step := range 50_000 {
		id := fmt.Sprint(rnd.IntN(80))
		if rnd.IntN(2) == 0 {
			_, have := model[id]
			if p.Release(id) != have {
				t.Fatalf("step %d: release %s: model says %v", step, id, have)
			}
			delete(model, id)
			continue
		}
		var w LeaseWant
		if rnd.IntN(3) == 0 {
			w.Addr4 = addrAt(mustPrefix("10.9.0.0/26"), uint64(2+rnd.IntN(61)))
		}
		if rnd.IntN(6) == 0 {
			w.Addr6 = addrAt(mustPrefix("fd00:9::/64"), uint64(2+rnd.IntN(61)))
		}
		if rnd.IntN(9) == 0 {
			w.MAC = macOf(addrAt(mustPrefix("10.9.0.0/26"), uint64(2+rnd.IntN(61))))
		}
		old, have := model[id]
		l, err := p.Lease(id, w)
		delete(model, id)
		switch {
		case have && old.meets(w):
			if err != nil || l.Addr4 != old.Addr4 {
				t.Fatalf("step %d: %s has %+v, wants %+v: %+v, %v", step, id, old, w, l, err)
			}
			model[id] = old
		case err != nil && have:
			model[id] = old
		case err == nil:
			if conflict(LeaseWant{Addr4: l.Addr4, Addr6: l.Addr6, MAC: l.MAC}) || !l.meets(w) || l.Addr4 == mustAddr("10.9.0.1") {
				t.Fatalf("step %d: got %+v for %+v, model %v", step, l, w, model)
			}
			model[id] = l
		case !conflict(w) && w.MAC == nil && len(model) < 40:
			t.Fatalf("step %d: refused %+v: %v", step, w, err)
		}
		if got := len(p.Leases()); got != len(model) {
			t.Fatalf("step %d: %d leases, model %d", step, got, len(model))
		}
	}
}

func TestChooseSubnets(t *testing.T) {
	free, err := ChooseSubnets(1000, "default", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	again, _ := ChooseSubnets(1000, "default", nil, nil)
	if again != free || free.Subnet4.Bits() != 22 || free.Subnet6 != ULA(1000, "default") || free.Overlap.IsValid() {
		t.Errorf("%+v, then %+v", free, again)
	}
	if ULA(1000, "default") == ULA(1001, "default") || ULA(1000, "default") == ULA(1000, "other") || ULA(1, "a").Addr().As16()[0] != 0xfd {
		t.Error("ULA does not follow user and name")
	}
	near := func(s string) HostPrefix { return HostPrefix{Prefix: mustPrefix(s)} }
	far := func(s string) HostPrefix { return HostPrefix{mustPrefix(s), true} }
	for name, tt := range map[string]struct {
		candidates []string
		host       []HostPrefix
		want       string
		overlap    bool
	}{
		"first":              {[]string{"10.1.0.0/22", "10.2.0.0/22"}, nil, "10.1.0.0/22", false},
		"address inside":     {[]string{"10.1.0.0/22", "10.2.0.0/22"}, []HostPrefix{near("10.1.3.7/32")}, "10.2.0.0/22", false},
		"inside a wider one": {[]string{"10.1.0.0/22", "172.24.0.0/22"}, []HostPrefix{far("10.0.0.0/8")}, "172.24.0.0/22", false},
		"all far":            {[]string{"10.1.0.0/22", "10.2.0.0/22"}, []HostPrefix{far("10.0.0.0/8"), far("10.1.2.0/24")}, "10.2.0.0/22", true},
		"all near":           {[]string{"10.1.0.0/22", "10.2.0.0/22"}, []HostPrefix{near("10.0.0.0/8")}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			var c []netip.Prefix
			for _, s := range tt.candidates {
				c = append(c, mustPrefix(s))
			}
			got, err := ChooseSubnets(1, "x", c, tt.host)
			if tt.want == "" {
				var none *ErrNoSubnet
				if !errors.As(err, &none) {
					t.Fatalf("%+v, %v", got, err)
				}
				return
			}
			if err != nil || got.Subnet4 != mustPrefix(tt.want) || got.Overlap.IsValid() != tt.overlap {
				t.Fatalf("%+v, %v", got, err)
			}
		})
	}
	// All of RFC 1918 routed away by a VPN, our ULA in use: still a network.
	got, err := ChooseSubnets(1000, "default", nil, []HostPrefix{far("10.0.0.0/8"), far("172.16.0.0/12"), far("192.168.0.0/16"), near(free.Subnet6.String())})
	if err != nil || got.Overlap.IsValid() || got.Subnet6.Overlaps(free.Subnet6) {
		t.Errorf("%+v, %v", got, err)
	}
	seen := map[netip.Prefix]bool{}
	for _, c := range candidates4(12345) {
		if seen[c] || c != c.Masked() {
			t.Errorf("candidate %s twice or not a subnet", c)
		}
		seen[c] = true
	}
}

func TestHostPrefixes(t *testing.T) {
	got, err := HostPrefixes()
	if err != nil {
		t.Fatal(err)
	}
	loopback := false
	for _, p := range got {
		if p.Prefix.Bits() <= 1 {
			t.Errorf("a default route: %v", p)
		}
		loopback = loopback || p.Prefix.Contains(mustAddr("127.0.0.1"))
	}
	if !loopback {
		t.Errorf("no loopback among %v", got)
	}
	c, err := ChooseSubnets(1000, "default", nil, got)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range got {
		if !c.Overlap.IsValid() && p.Prefix.Overlaps(c.Subnet4) {
			t.Errorf("%s overlaps the host's %s", c.Subnet4, p.Prefix)
		}
	}
}
