package doctor

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// nobody is whom the files of users seem to belong to that a user namespace or a file
// system does not know: root's, in most cases.
const nobody = 65534

// Directories looks at who can change the user's own directories, which sbx itself keeps
// closed to others: who can rename one above puts another in its place, and what somebody
// else has made in them sbx cannot use.
func Directories(uid int, dirs ...string) Check {
	c := Check{Name: "directories", Status: OK, Detail: strings.Join(dirs, ", "), Data: map[string]any{"paths": dirs}}
	for _, dir := range dirs {
		for at := filepath.Dir(dir); ; at = filepath.Dir(at) {
			fi, err := os.Lstat(at)
			if err != nil {
				return c.degraded(err.Error(), "")
			}
			owner := ownerOf(fi)
			switch {
			case owner != uid && owner != 0 && owner != nobody:
				return c.degraded(fmt.Sprintf("%s belongs to user %d, who can put another directory in the place of %s", at, owner, dir), elsewhere)
			case fi.Mode().Perm()&0o002 != 0 && fi.Mode()&fs.ModeSticky == 0:
				return c.degraded(fmt.Sprintf("%s has mode %04o: everybody can put another directory in the place of %s", at, fi.Mode().Perm(), dir), "chmod o-w "+at)
			}
			if at == filepath.Dir(at) {
				break
			}
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return c.degraded(err.Error(), "")
		}
		for _, d := range entries {
			fi, err := d.Info()
			if err != nil {
				continue // removed meanwhile, as sockets and new files are
			}
			if path := filepath.Join(dir, d.Name()); ownerOf(fi) != uid {
				return c.degraded(fmt.Sprintf("%s belongs to user %d, as after sbx with sudo", path, ownerOf(fi)), fmt.Sprintf("sudo chown %d %s", uid, path))
			}
		}
	}
	return c
}

const elsewhere = "set XDG_DATA_HOME and XDG_RUNTIME_DIR to directories below your own"

func (c Check) degraded(detail, fix string) Check {
	c.Status, c.Detail, c.Fix = Degraded, detail, fix
	return c
}

func ownerOf(fi fs.FileInfo) int { return int(fi.Sys().(*syscall.Stat_t).Uid) }
