package confine

import (
	"os"
	"path/filepath"
)

// maxLinks bounds a chain of links, as the kernel does, at less than its 40.
const maxLinks = 8

// Resolvers are where a resolv.conf leads now, link by link, and where programs keep it that
// may have it lead there later. They are directories, since the file is replaced there; of
// /run, which has everybody's sockets, it is the file.
func Resolvers(file string) []string {
	list := []string{"/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf", "/run/connman", "/mnt/wsl"}
	for range maxLinks {
		to, err := os.Readlink(file)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(file), to)
		}
		file = to
		dir := filepath.Dir(file)
		if real, err := filepath.EvalSymlinks(dir); err == nil && real == "/run" { // as /var/run is
			list = append(list, file)
		} else {
			list = append(list, dir)
		}
	}
	return list
}
