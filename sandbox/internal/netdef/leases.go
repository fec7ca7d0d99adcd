package netdef

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/rootless-sbx/sbx/netstack"
)

// Lease is what one sandbox has.
type Lease = netstack.Lease

// leaseFile is a network's file of leases.
type leaseFile struct {
	Version int     `json:"version"`
	Next    uint32  `json:"next"` // where the search for a free address begins
	Leases  []Lease `json:"leases"`
}

// Claim gives a sandbox its addresses on a network: those that it has already, if
// they are what it wants. present says that a sandbox counts as there though it may
// have no directory.
func (d Dir) Claim(ctx context.Context, n *Network, id string, want netstack.LeaseWant, present func(id string) bool) (got Lease, err error) {
	err = d.Locked(ctx, func() error {
		if n.ID != "" {
			if now, err := d.Find(n.Name); err != nil {
				return err
			} else if now.ID != n.ID {
				return &Error{ErrNotFound, fmt.Sprintf("network %s was removed and made anew", n.Name), "try again in a few seconds"}
			}
		}
		file, err := d.readLeases(n.Name)
		if err != nil {
			return err
		}
		pool, err := netstack.NewIPAM(n.IPAM(file.Next))
		if err != nil {
			return err
		}
		var others []Lease // of a network that has changed its subnets, or that another process sees
		for _, l := range file.Leases {
			if l.ID != id && !present(l.ID) && !d.alive(l.ID) {
				continue
			}
			if !pool.Add(l) && l.ID != id {
				others = append(others, l)
			}
		}
		if got, err = pool.Lease(id, want); err != nil {
			return err
		}
		file.Leases, file.Next = append(pool.Leases(), others...), pool.Next()
		return d.write(n.Name+leaseExt, file)
	})
	return got, err
}

// Release takes a sandbox's addresses on a network back, for one that stays.
func (d Dir) Release(ctx context.Context, network, id string) error {
	return d.Locked(ctx, func() error {
		file, err := d.readLeases(network)
		if err != nil {
			return err
		}
		file.Leases = slices.DeleteFunc(file.Leases, func(l Lease) bool { return l.ID == id })
		return d.write(network+leaseExt, file)
	})
}

func (d Dir) readLeases(network string) (*leaseFile, error) {
	f := &leaseFile{Version: Version}
	if err := d.read(network+leaseExt, f, &f.Version); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f.Version = Version
	return f, nil
}
