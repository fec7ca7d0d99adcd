package netdef

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/rootless-sbx/sbx/netstack"
)

// data is a data directory with sandboxes.
func data(t *testing.T, boxes ...string) (Dir, *Network) {
	t.Helper()
	root := t.TempDir()
	for _, id := range boxes {
		if err := os.MkdirAll(filepath.Join(root, "containers", id), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	d := In(root)
	n, err := New(Config{Name: "net", Subnets: prefixes("10.7.0.0/29")}, nil, nil)
	if err == nil {
		err = d.Locked(t.Context(), func() error { return d.Add(n) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return d, n
}

// leases are those of the sandboxes that are there.
func leases(d Dir) ([]Lease, error) {
	file, err := d.readLeases("net")
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(file.Leases, func(l Lease) bool { return !d.alive(l.ID) }), nil
}

func nobody(string) bool { return false }

func TestFind(t *testing.T) {
	d, n := data(t)
	for _, ref := range []string{"net", n.ID, n.ID[:5]} {
		if got, err := d.Find(ref); err != nil || got.ID != n.ID || got.Subnet4 != n.Subnet4 || got.Gateway6 != n.Gateway6 {
			t.Errorf("%q: %+v, %v", ref, got, err)
		}
	}
	for _, ref := range []string{"", "ne", "other", "net.leases"} {
		if got, err := d.Find(ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %+v, %v", ref, got, err)
		}
	}
	if err := os.WriteFile(filepath.Join(string(d), "newer.json"), []byte(`{"version":9,"name":"newer"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Find("newer"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("of a newer sbx: %v", err)
	}
	if got, err := d.Find("net"); err != nil || got.Name != "net" {
		t.Errorf("beside one that cannot be read: %v", err)
	}
}

// TestClaim: addresses are a sandbox's for as long as it is there.
func TestClaim(t *testing.T) {
	d, n := data(t, "a", "b", "c")
	claim := func(id string, want netstack.LeaseWant) Lease {
		t.Helper()
		l, err := d.Claim(t.Context(), n, id, want, nobody)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	a := claim("a", netstack.LeaseWant{Name: "one"})
	if b := claim("b", netstack.LeaseWant{}); b.Addr4 == a.Addr4 {
		t.Errorf("%s twice", b.Addr4)
	}
	if again := claim("a", netstack.LeaseWant{Name: "renamed"}); again.Addr4 != a.Addr4 || again.Addr6 != a.Addr6 || again.Name != "renamed" {
		t.Errorf("%+v, before %+v", again, a)
	}
	var used *netstack.ErrLeaseConflict
	if _, err := d.Claim(t.Context(), n, "c", netstack.LeaseWant{Addr4: a.Addr4}, nobody); !errors.As(err, &used) || used.Owner != "renamed" {
		t.Errorf("%v", err)
	}
	if err := os.Remove(filepath.Join(d.owners(), "a")); err != nil {
		t.Fatal(err)
	}
	if c := claim("c", netstack.LeaseWant{Addr4: a.Addr4}); c.Addr4 != a.Addr4 {
		t.Errorf("%+v", c)
	}
	if l, err := d.Claim(t.Context(), n, "ghost", netstack.LeaseWant{}, func(id string) bool { return id == "ghost" }); err != nil {
		t.Errorf("%+v, %v", l, err)
	}
	if list, err := leases(d); err != nil || len(list) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	if err := d.Release(t.Context(), "net", "b"); err != nil {
		t.Fatal(err)
	}
	if list, err := leases(d); err != nil || len(list) != 1 || list[0].ID != "c" {
		t.Errorf("%+v, %v", list, err)
	}
	// Made anew it is another one, whose addresses nobody has.
	if err := d.Remove("net"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Claim(t.Context(), n, "b", netstack.LeaseWant{}, nobody); !errors.Is(err, ErrNotFound) {
		t.Errorf("on one that is no more: %v", err)
	}
	m, err := New(Config{Name: "net", Subnets: prefixes("10.8.0.0/29")}, nil, nil)
	if err == nil {
		err = d.Add(m)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Claim(t.Context(), n, "b", netstack.LeaseWant{}, nobody); !errors.Is(err, ErrNotFound) {
		t.Errorf("on one that was made anew: %v", err)
	}
	if list, err := leases(d); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
}

// BenchmarkClaim is what a start costs on a network of 1000 sandboxes.
func BenchmarkClaim(b *testing.B) {
	root := b.TempDir()
	d := In(root)
	n, err := New(Config{Name: "net", Subnets: prefixes("10.7.0.0/20")}, nil, nil)
	if err == nil {
		err = d.Locked(b.Context(), func() error { return d.Add(n) })
	}
	for i := 0; i < 1000 && err == nil; i++ {
		id := fmt.Sprintf("%064d", i)
		if err = os.MkdirAll(filepath.Join(d.owners(), id), 0o700); err == nil {
			_, err = d.Claim(b.Context(), n, id, netstack.LeaseWant{Name: id[:20]}, nobody)
		}
	}
	if err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		if _, err := d.Claim(b.Context(), n, fmt.Sprintf("%064d", i%1000), netstack.LeaseWant{}, nobody); err != nil {
			b.Fatal(err)
		}
	}
}

// TestClaimTogether: two processes may serve the same network, for users of different
// runtime directories.
func TestClaimTogether(t *testing.T) {
	boxes := []string{"a", "b", "c", "d", "e"} // as many as there is room for
	d, n := data(t, boxes...)
	var wg sync.WaitGroup
	got := make([]Lease, len(boxes))
	for i, id := range boxes {
		wg.Go(func() {
			var err error
			if got[i], err = d.Claim(t.Context(), n, id, netstack.LeaseWant{}, nobody); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, l := range got {
		if seen[l.Addr4.String()] {
			t.Errorf("%s twice", l.Addr4)
		}
		seen[l.Addr4.String()] = true
	}
	var none *netstack.ErrNoAddress
	if l, err := d.Claim(t.Context(), n, "f", netstack.LeaseWant{}, nobody); !errors.As(err, &none) {
		t.Errorf("%+v, %v", l, err)
	}
}
