package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/netstack"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxdir"
	"github.com/rootless-sbx/sbx/sandbox/internal/netd"
	"github.com/rootless-sbx/sbx/sandbox/internal/netdef"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
)

// Network is one of the user's networks.
type Network = netdef.Network

// NetworkConfig is a network that somebody wants.
type NetworkConfig = netdef.Config

// Errors of networks, for errors.Is.
var (
	// ErrBadNetwork is returned for what cannot be a network.
	ErrBadNetwork = netdef.ErrInvalid
	// ErrNetworkExists is returned when another network has the name.
	ErrNetworkExists = netdef.ErrExists
	// ErrNoNetwork is returned for a name or id that no network has.
	ErrNoNetwork = netdef.ErrNotFound
	// ErrNetworkInUse is returned when a sandbox is on the network.
	ErrNetworkInUse = netdef.ErrInUse
	// ErrSubnetOverlap is returned for a subnet that somebody else has, and when none
	// is free.
	ErrSubnetOverlap = netdef.ErrOverlap
)

// leaveTime is how long a network's process may take to go.
const leaveTime = 2 * time.Second

// noticeTime is how long it may take to notice the end of a sandbox that was on it.
const noticeTime = 10 * time.Second

// CreateNetwork makes a network; what cfg leaves open is chosen. Nothing runs until a
// sandbox is on it.
func (e *Engine) CreateNetwork(ctx context.Context, cfg NetworkConfig) (n *Network, err error) {
	err = e.defs().Locked(ctx, func() error {
		host, err := netstack.HostPrefixes()
		if err != nil {
			return err
		}
		others, err := e.defs().List()
		if err != nil {
			return err // it may have any subnet
		}
		def, err := e.defaultNetwork(ctx)
		if err != nil {
			return err
		}
		if n, err = netdef.New(cfg, append(others, *def), host); err != nil {
			return err
		}
		if err := e.defs().Add(n); err != nil || cfg.Parent == nil {
			return err
		}
		if err := e.keepParent(ctx, n, cfg.Parent); err != nil {
			return errors.Join(err, e.defs().Remove(n.Name))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	e.networkEvent("create", n)
	return n, nil
}

// keepParent starts the process of an uplink, which keeps the device that was given to it
// for as long as the network is there.
func (e *Engine) keepParent(ctx context.Context, n *Network, parent *os.File) error {
	cfg := e.netdConfig(*n)
	cfg.Uplink = parent
	c, err := netd.Ensure(ctx, cfg)
	if err != nil {
		return err
	}
	return c.Close()
}

// SetUplink gives an uplink another parent, or the same again: a device by its name, or
// an open one, which stays the caller's. No sandbox on the network may run.
func (e *Engine) SetUplink(ctx context.Context, ref, device string, parent *os.File) error {
	n, err := e.FindNetwork(ctx, ref)
	if err != nil {
		return err
	}
	if !n.Uplink() {
		return &netdef.Error{Kind: netdef.ErrInvalid, Msg: fmt.Sprintf("network %s is no uplink: it has no parent device", n.PublicName())}
	}
	if n.NameParent(device); parent != nil {
		if err := n.GiveParent(parent); err != nil {
			return err
		}
	}
	return e.defs().Locked(ctx, func() error {
		if err := e.endNetwork(ctx, n); err != nil {
			return err
		}
		if err := e.defs().Change(n); err != nil || parent == nil {
			return err
		}
		return e.keepParent(ctx, n, parent)
	})
}

// FindNetwork finds a network by its name, its id, or the unique beginning of its id.
func (e *Engine) FindNetwork(ctx context.Context, ref string) (*Network, error) {
	if ref == netdef.Default || ref == netdef.Bridge {
		return e.defaultNetwork(ctx)
	}
	for _, n := range fixedNetworks() {
		if ref == n.Name || len(ref) >= 4 && strings.HasPrefix(n.ID, ref) {
			return &n, nil
		}
	}
	n, err := e.defs().Find(ref)
	if id := networkID(&Network{Name: netdef.Default}); errors.Is(err, ErrNoNetwork) && len(ref) >= 4 && strings.HasPrefix(id, ref) {
		return e.defaultNetwork(ctx)
	}
	return n, err
}

// Networks returns all networks, by name: those that were made, and those that are
// always there.
func (e *Engine) Networks(ctx context.Context) ([]Network, error) {
	list, err := e.defs().List()
	if err != nil {
		e.log.Warn("a network cannot be read", "err", err)
	}
	def, err := e.defaultNetwork(ctx)
	if err != nil {
		return nil, err
	}
	list = append(append(list, *def), fixedNetworks()...)
	slices.SortFunc(list, func(a, b Network) int { return strings.Compare(a.PublicName(), b.PublicName()) })
	return list, nil
}

// fixedNetworks are those that are none: no process serves them.
func fixedNetworks() []Network {
	host, none := Network{Name: NetworkHost, Driver: "host"}, Network{Name: NetworkNone, Driver: "null"}
	host.ID, none.ID = networkID(&host), networkID(&none)
	return []Network{host, none}
}

// networkID is the id of a network, also of one without a file.
func networkID(n *Network) string {
	if n.ID != "" {
		return n.ID
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "sbx network id %d %s", os.Geteuid(), n.Name))
	return hex.EncodeToString(sum[:])
}

// defaultNetwork describes the default network as it is, or would be if its process
// were started now.
func (e *Engine) defaultNetwork(ctx context.Context) (*Network, error) {
	n := &Network{Name: netdef.Default, Driver: netdef.DriverBridge}
	n.ID = networkID(n)
	c, err := netd.Connect(ctx, e.runtimeDir, netd.Hello{Name: n.Name})
	if err != nil {
		return nil, err
	}
	if c != nil {
		defer c.Close()
		info := c.Info()
		n.Subnet4, n.Subnet6, n.Gateway4, n.Gateway6 = info.Subnet4, info.Subnet6, info.Gateway4, info.Gateway6
		return n, nil
	}
	host, err := netstack.HostPrefixes()
	if err != nil {
		return nil, err
	}
	others, err := e.defs().List()
	if err != nil {
		return nil, err
	}
	choice, err := netdef.ChooseDefault(others, host)
	if err != nil {
		return nil, err
	}
	n.Subnet4, n.Gateway4 = choice.Subnet4, choice.Subnet4.Addr().Next()
	n.Subnet6, n.Gateway6 = choice.Subnet6, choice.Subnet6.Addr().Next()
	return n, nil
}

// RemoveNetwork removes a network that no sandbox is on, whether it runs or not.
func (e *Engine) RemoveNetwork(ctx context.Context, ref string) error {
	n, err := e.FindNetwork(ctx, ref)
	if err != nil {
		return err
	}
	if n.Version == 0 {
		return &netdef.Error{Kind: netdef.ErrInvalid, Msg: fmt.Sprintf("network %s is always there and cannot be removed", n.PublicName())}
	}
	return e.defs().Locked(ctx, func() error {
		users, err := e.NetworkUsers()
		if err != nil {
			return err
		}
		if names := users[n.Name]; len(names) > 0 {
			return inUse(n.Name, names)
		}
		return e.removeNetwork(ctx, n)
	})
}

func inUse(network string, names []string) error {
	slices.Sort(names)
	verb := "is"
	if len(names) > 1 {
		verb = "are"
	}
	return &netdef.Error{
		Kind: netdef.ErrInUse, Msg: fmt.Sprintf("network %s is in use: %s %s on it", network, strings.Join(names, ", "), verb),
		Fix: fmt.Sprintf("sbx network disconnect %s %s, or remove the sandbox", network, names[0]),
	}
}

// removeNetwork ends the network's process and removes its files, under the lock.
func (e *Engine) removeNetwork(ctx context.Context, n *Network) error {
	err := e.endNetwork(ctx, n)
	// Its process may still be at work on the end of a sandbox that is no more.
	for end := time.Now().Add(noticeTime); isBusy(err) && time.Now().Before(end); err = e.endNetwork(ctx, n) {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
	if err != nil {
		return err
	}
	e.networkEvent("destroy", n)
	return e.defs().Remove(n.Name)
}

func isBusy(err error) bool {
	var we *wire.Error
	return errors.As(err, &we) && we.Code == netd.CodeBusy
}

// endNetwork ends the network's process, which no sandbox may be attached to.
func (e *Engine) endNetwork(ctx context.Context, n *Network) error {
	c, err := netd.Connect(ctx, e.runtimeDir, netd.Hello{Name: n.Name})
	if err != nil {
		return err
	}
	if c != nil {
		if err := c.Leave(ctx); err != nil {
			c.Close()
			return err
		}
		c.Close()
	}
	return netd.Forget(ctx, e.runtimeDir, n.Name, leaveTime)
}

// PruneNetworks removes the networks that no sandbox is on and that match says yes to;
// nil says so to all. It returns their names.
func (e *Engine) PruneNetworks(ctx context.Context, match func(*Network) bool) (gone []string, err error) {
	err = e.defs().Locked(ctx, func() error {
		list, err := e.defs().List()
		if err != nil {
			return err
		}
		users, err := e.NetworkUsers()
		if err != nil {
			return err
		}
		for _, n := range list {
			if len(users[n.Name]) > 0 || match != nil && !match(&n) {
				continue
			}
			if err := e.removeNetwork(ctx, &n); err != nil {
				return err
			}
			gone = append(gone, n.Name)
		}
		return nil
	})
	return gone, err
}

// NetworkUsers are the names of the sandboxes that are on networks, by the networks'
// names, whether they run or not.
func (e *Engine) NetworkUsers() (map[string][]string, error) {
	ids, err := boxdir.List(e.containers())
	if err != nil {
		return nil, err
	}
	users := map[string][]string{}
	for _, id := range ids {
		rec, err := record.ReadConfig(filepath.Join(e.containers(), id))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has no address yet: if its network goes, its start fails
		}
		if err != nil {
			return nil, err // it may be on any
		}
		name, err := boxdir.Name(e.containers(), id)
		if err != nil {
			continue // it is being removed
		}
		for _, a := range rec.Start.Network.Attachments {
			users[a.Network.Name] = append(users[a.Network.Name], name)
		}
	}
	return users, nil
}
