package netdef

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/rootless-sbx/sbx/netstack"
)

// FuzzFiles reads a definition and leases that the network's process may have written:
// whatever they say, a sandbox gets an address of its own inside of the subnet, or none.
func FuzzFiles(f *testing.F) {
	n, err := New(Config{Name: "net", Subnets: prefixes("10.7.0.0/29")}, nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	def, err := json.Marshal(n)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(def, []byte(`{"version":1,"next":3,"leases":[{"id":"a","name":"x","addr4":"10.7.0.2","mac":"AgAAAAAB"}]}`), "")
	f.Add(def, []byte(`{"version":1,"next":4294967295,"leases":[{"id":"a","addr4":"10.7.0.7"},{"id":"a","addr4":"::1"},{}]}`), "10.7.0.2")
	f.Add([]byte(`{"version":1,"name":"net","subnet4":"0.0.0.0/0","gateway4":"255.255.255.255","range4":"10.0.0.0/32"}`), []byte(`{"version":2}`), "0.0.0.0")
	f.Add([]byte(`{"version":1,"name":"../x","subnet6":"::/0"}`), []byte(`null`), "::1")
	dir := f.TempDir()
	for _, p := range []string{"networks", "containers/a", "containers/b"} {
		if err := os.MkdirAll(filepath.Join(dir, p), 0o700); err != nil {
			f.Fatal(err)
		}
	}
	d := In(dir)
	f.Fuzz(func(t *testing.T, def, leases []byte, want string) {
		if err := errors.Join(os.WriteFile(filepath.Join(string(d), "net"+defExt), def, 0o600),
			os.WriteFile(filepath.Join(string(d), "net"+leaseExt), leases, 0o600)); err != nil {
			t.Fatal(err)
		}
		n, err := d.Find("net")
		if err != nil {
			return
		}
		if n.Name != "net" {
			t.Fatalf("net is called %q", n.Name)
		}
		var wish netstack.LeaseWant
		_ = wish.Addr4.UnmarshalText([]byte(want)) // or none
		got := map[string]Lease{}
		for _, id := range []string{"a", "b"} {
			l, err := d.Claim(t.Context(), n, id, wish, nobody)
			if err != nil {
				continue
			}
			if l.ID != id || l.Addr4.IsValid() && !n.Subnet4.Contains(l.Addr4) || l.Addr6.IsValid() && !n.Subnet6.Contains(l.Addr6) {
				t.Fatalf("%s has %+v of %+v", id, l, n)
			}
			got[id] = l
		}
		if a, b := got["a"], got["b"]; a.Addr4.IsValid() && a.Addr4 == b.Addr4 || a.Addr6.IsValid() && a.Addr6 == b.Addr6 {
			t.Fatalf("the same address twice: %+v, %+v", a, b)
		}
	})
}
