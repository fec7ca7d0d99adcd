package workload

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// FuzzUser looks users up in the passwd and group files of an image: who is found has
// ids that are mapped, and no others.
func FuzzUser(f *testing.F) {
	f.Add("app", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n", "app:x:1000:\nwheel:x:10:root,app\n", "wheel")
	f.Add("0:0", "", "", "")
	f.Add("-1", ":::::\nx:x:4294967295:-1\n", "g:x:99999999999999999999:x\n", "g")
	f.Add("x:g", "x:x:70000:70000\n\x00\n+::::::\n", "g:x:5:x,x,,\n", "4294967295")
	dir := f.TempDir()
	passwd, group := filepath.Join(dir, "passwd"), filepath.Join(dir, "group")
	mapped := idRanges{{ID: 0, ParentID: 1000, Count: 1}, {ID: 1, ParentID: 100000, Count: 65536}}
	f.Fuzz(func(t *testing.T, spec, users, groups, more string) {
		for name, text := range map[string]string{passwd: users, group: groups} {
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var extra []string
		if more != "" {
			extra = []string{more}
		}
		id, err := resolveUser(spec, passwd, group, extra, mapped, mapped)
		if err != nil {
			return
		}
		for _, n := range append(slices.Clone(id.groups), id.uid, id.gid) {
			if n < 0 || n > 65536 {
				t.Fatalf("%+v", id)
			}
		}
		if !slices.Contains(id.groups, id.gid) || !slices.IsSorted(id.groups) || id.home == "" {
			t.Fatalf("%+v", id)
		}
	})
}
