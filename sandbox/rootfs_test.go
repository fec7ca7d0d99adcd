package sandbox

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/userns"
)

func TestStrangerNote(t *testing.T) {
	dir := t.TempDir()
	fi, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	for _, tc := range []struct {
		name     string
		uid, gid uint32 // that are mapped
		want     string
	}{
		{"ours", uid, gid, ""},
		{"another uid", uid + 1, gid, fmt.Sprintf("belongs to uid %d,", uid)},
		{"another gid", uid, gid + 1, fmt.Sprintf("belongs to gid %d,", gid)},
	} {
		m := &userns.Mapping{UIDs: []userns.IDMap{{HostID: tc.uid, Size: 1}}, GIDs: []userns.IDMap{{HostID: tc.gid, Size: 1}}}
		got := strangerNote(dir, fi, m)
		if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q", tc.name, got)
		}
	}
}
