package portfwd

import (
	"net/netip"
	"testing"

	"github.com/rootless-sbx/sbx/netstack"
)

var _ Stack = (*netstack.Network)(nil)

// newStackGuest makes a guest on a network with a gateway of our own.
func newStackGuest(t *testing.T) (*guest, *netstack.Network) {
	t.Helper()
	ns, err := newNetns()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.close)
	var link *netstack.GuestLink
	cfg := netstack.GuestConfig{
		Name: "eth0", MAC: []byte{2, 0x99, 0, 0, 0, 2},
		Addrs:    []netip.Prefix{netip.PrefixFrom(guest4, 24), netip.PrefixFrom(guest6, 64)},
		Gateways: []netip.Addr{gateway4, gateway6},
	}
	err = ns.do(func() (err error) {
		if err := netstack.SetupLoopback(); err != nil {
			return err
		}
		if link, err = netstack.SetupGuest(cfg); err != nil {
			return err
		}
		return waitReachable(guest4, guest6)
	})
	if err != nil {
		t.Fatal(err)
	}
	n, err := netstack.New(netstack.Config{
		Subnet4: netip.PrefixFrom(guest4, 24).Masked(), Subnet6: netip.PrefixFrom(guest6, 64).Masked(),
		Gateway4: gateway4, Gateway6: gateway6,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	_, err = n.Attach(netstack.PortConfig{ID: "g", MAC: cfg.MAC, Addr4: guest4, Addr6: guest6,
		Link: link.File, Driver: link.Driver, HdrLen: link.HdrLen})
	if err != nil {
		t.Fatal(err)
	}
	return &guest{netns: ns, v4: guest4, v6: guest6}, n
}
