package probe

import (
	"net"

	"github.com/rootless-sbx/sbx/internal/ethtool"
)

// offload sets a mode of package ethtool on every device but the loopback.
func offload(args []string) error {
	devices, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, d := range devices {
		if d.Flags&net.FlagLoopback != 0 {
			continue
		}
		if err := ethtool.Offload(d.Name, args[0]); err != nil {
			return err
		}
	}
	return nil
}
