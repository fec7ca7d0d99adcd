package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDirectories(t *testing.T) {
	uid := os.Getuid()
	top := t.TempDir()
	dir := filepath.Join(top, "share", "sbx")
	if err := os.MkdirAll(filepath.Join(dir, "containers"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name        string
		mode        os.FileMode // of share
		uid         int
		status      Status
		detail, fix string
	}{
		{"the user's own", 0o755, uid, OK, dir, ""},
		{"closed", 0o700, uid, OK, dir, ""},
		{"for his group", 0o775, uid, OK, dir, ""},
		{"for everybody", 0o777, uid, Degraded, "/share has mode 0777: everybody can put", "chmod o-w " + filepath.Dir(dir)},
		{"for everybody, each his own", 0o777 | os.ModeSticky, uid, OK, dir, ""},
		{"below another's", 0o755, uid + 1, Degraded, "/share belongs to user", "XDG_DATA_HOME"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := os.Chmod(filepath.Dir(dir), tc.mode); err != nil {
				t.Fatal(err)
			}
			if c := Directories(tc.uid, dir); c.Status != tc.status || !strings.Contains(c.Detail, tc.detail) || !strings.Contains(c.Fix, tc.fix) || c.Status == OK && c.Fix != "" {
				t.Errorf("%+v", c)
			}
		})
	}
	// Below root's directories alone, what is in it counts: all of /etc is another's.
	if c := Directories(uid, "/etc"); c.Status != Degraded || !strings.Contains(c.Detail, "belongs to user") || !strings.Contains(c.Fix, "sudo chown ") {
		t.Errorf("%+v", c)
	}
	if c := Directories(uid, filepath.Join(dir, "none")); c.Status != Degraded || !strings.Contains(c.Detail, "no such file") {
		t.Errorf("%+v", c)
	}
}
