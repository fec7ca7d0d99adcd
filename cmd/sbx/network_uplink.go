package main

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"

	"github.com/rootless-sbx/sbx/sandbox"
	"golang.org/x/sys/unix"
)

// openParent returns the descriptor that an uplink's parent is the number of, as 5 or
// fd:5, and nil for the name of a device.
func openParent(s string) (*os.File, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "fd:"), 10, 31)
	if err != nil {
		return nil, nil
	}
	fd := int(n)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); errors.Is(err, unix.EBADF) || fd <= 2 {
		return nil, &usage{msg: "--parent " + s + ": no open descriptor, or one of the standard ones", fix: "have it opened before: sbx network ... --parent 5 5<>/dev/tap7"}
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "parent"), nil
}

func networkUplinkCommand(g *globals) *command {
	c := &command{
		Use: "uplink NETWORK PARENT", Short: "Give an uplink its parent device again, or another one", Args: wantArgs(2, 2),
		Long: `A device that was given as an open descriptor is kept by the network's
process, and by the sandboxes on it, which give it to the next process when
that is killed. When all of them have ended, as when the machine was
restarted, it has to be given again.`,
		Example:  "  sbx network uplink lan 5 5<>/dev/tap7\n  sbx network uplink lan tap0",
		Complete: completeNetworks(1),
	}
	c.RunE = withEngine(g, func(ctx context.Context, _ *command, e *sandbox.Engine, args []string) error {
		f, err := openParent(args[1])
		if err != nil {
			return err
		}
		if f != nil {
			defer f.Close()
		}
		return e.SetUplink(ctx, args[0], args[1], f)
	})
	return c
}
