package archive

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// ReservedXattr says that an attribute steers an overlay or belongs to this machine's
// security module: it is neither taken along nor accepted.
func ReservedXattr(name string) bool {
	for _, p := range []string{"user.overlay.", "user.fuseoverlayfs.", "user.containers.", "trusted.", "security.selinux", "security.ima", "security.evm"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// ListXattrs names the extended attributes; none where the file system has none.
func ListXattrs(fd int) ([]string, error) {
	buf := make([]byte, 1024)
	for {
		n, err := unix.Flistxattr(fd, buf)
		if errors.Is(err, unix.ERANGE) && len(buf) < 64<<10 {
			buf = make([]byte, 64<<10) // XATTR_LIST_MAX
			continue
		}
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list attributes: %w", err)
		}
		return strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 }), nil
	}
}

// GetXattr reads one.
func GetXattr(fd int, name string) ([]byte, error) {
	buf := make([]byte, 1024)
	n, err := unix.Fgetxattr(fd, name, buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err = unix.Fgetxattr(fd, name, buf)
	}
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}
