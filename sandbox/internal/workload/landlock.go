package workload

import (
	"fmt"
	"os"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"

	"github.com/rootless-sbx/sbx/sandbox/internal/workload/seccomp"
)

// mountCalls are refused together with mount, umount, pivot_root and move_mount, which
// Landlock refuses: with a file system of its own over a directory the workload would have
// the kernel work in it, for whom there are no rules, and with the others it would take the
// flags off a mount.
var mountCalls = []string{"fsopen", "fspick", "fsmount", "open_tree", "open_tree_attr", "mount_setattr"}

// obey makes this thread, and what it executes, obey Landlock rules: fsoverlay.Landlock.
// It needs CAP_SYS_ADMIN in the user namespace. No_new_privs, which the rules' library asks
// for instead, would take sudo from every workload.
func obey(rules *os.File) error {
	if rules == nil {
		return nil
	}
	f, err := seccomp.Deny(mountCalls)
	if err == nil {
		err = f.Load()
	}
	if err == nil {
		if err = ll.LandlockRestrictSelf(int(rules.Fd()), 0); err != nil {
			err = fmt.Errorf("landlock_restrict_self: %w", err)
		}
	}
	if err != nil {
		return fail("", "obey the rules of allow=", "", err, "")
	}
	return nil
}
