package monitor

import (
	"bytes"
	"errors"
	"os"
	"strconv"
)

// maxNamespaces is how many namespaces of a kind a sandbox may make. It is enough for
// a browser or a container engine inside.
const maxNamespaces = 256

// limitShare bounds what the kernel counts for a user in all of his user namespaces
// together: a sandbox that takes all of it would leave none to its user. What is
// written here counts for this user namespace and those below it, and only who has
// CAP_SYS_RESOURCE in it may raise it again.
func limitShare() error {
	var errs []error
	for _, kind := range []string{"user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"} {
		errs = append(errs, setShare("max_"+kind+"_namespaces", maxNamespaces))
	}
	for name, host := range map[string]string{
		"max_inotify_instances": "inotify/max_user_instances", "max_inotify_watches": "inotify/max_user_watches",
		"max_fanotify_groups": "fanotify/max_user_groups", "max_fanotify_marks": "fanotify/max_user_marks",
	} {
		b, err := os.ReadFile("/proc/sys/fs/" + host)
		if errors.Is(err, os.ErrNotExist) {
			continue // a kernel without them
		}
		n := 0
		if err == nil {
			n, err = strconv.Atoi(string(bytes.TrimSpace(b)))
		}
		if err == nil {
			err = setShare(name, n/2)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func setShare(name string, n int) error {
	err := os.WriteFile("/proc/sys/user/"+name, strconv.AppendInt(nil, int64(n), 10), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
