package netdef

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/rootless-sbx/sbx/netstack"
)

// Default is the network that is always there. Users may call it Bridge, as Docker
// does.
const (
	Default = "default"
	Bridge  = "bridge"
)

// Drivers of networks.
const (
	DriverBridge = "bridge"
	DriverUplink = "uplink" // a part of a segment outside
)

// Version is that of the files. An older sbx refuses a newer one's.
const Version = 1

const (
	maxNetworks = 1000
	maxName     = 64
	maxText     = 64 << 10
	maxAux      = 256
)

// Kinds of errors, for errors.Is.
var (
	ErrInvalid  = errors.New("invalid network")
	ErrExists   = errors.New("network exists")
	ErrNotFound = errors.New("no such network")
	ErrInUse    = errors.New("network is in use")
	ErrOverlap  = errors.New("subnets overlap")
)

// Error is one of these with what the user can do.
type Error struct {
	Kind     error
	Msg, Fix string
}

func (e *Error) Error() string { return e.Msg }
func (e *Error) Unwrap() error { return e.Kind }

func invalid(fix, format string, args ...any) error {
	return &Error{ErrInvalid, fmt.Sprintf(format, args...), fix}
}

// Network is one of the user's networks.
type Network struct {
	Version int       `json:"version,omitempty"`
	ID      string    `json:"id,omitempty"`
	Name    string    `json:"name"`
	Driver  string    `json:"driver,omitempty"`
	Created time.Time `json:"created,omitzero"`
	// Subnets and gateways; those of IPv6 are zero on a network without it. All are
	// zero for the default network, until its process has chosen them.
	Subnet4  netip.Prefix `json:"subnet4,omitzero"`
	Subnet6  netip.Prefix `json:"subnet6,omitzero"`
	Gateway4 netip.Addr   `json:"gateway4,omitzero"`
	Gateway6 netip.Addr   `json:"gateway6,omitzero"`
	// Range4 and Range6 are the parts of the subnets that addresses are chosen from;
	// zero means all of it.
	Range4 netip.Prefix `json:"range4,omitzero"`
	Range6 netip.Prefix `json:"range6,omitzero"`
	// Aux are addresses that are never chosen, by what the user calls them.
	Aux        map[string]netip.Addr `json:"aux,omitempty"`
	Internal   bool                  `json:"internal,omitempty"`
	Attachable bool                  `json:"attachable,omitempty"`
	Labels     map[string]string     `json:"labels,omitempty"`
	// Options as they were given; Behaviour is what they mean.
	Options map[string]string `json:"options,omitempty"`
	Behaviour
}

// Config is a network that somebody wants. The zero value of everything but Name
// means that it is chosen.
type Config struct {
	Name, Driver string
	// Subnets, at most one of each family; Gateways, IPRanges and Aux belong to the
	// subnet that they are in.
	Subnets  []netip.Prefix
	Gateways []netip.Addr
	IPRanges []netip.Prefix
	Aux      map[string]netip.Addr
	// NoIPv4 and NoIPv6 leave out the subnet of a family, which is chosen else; for
	// IPv6 a unique local one.
	NoIPv4, NoIPv6       bool
	Internal, Attachable bool
	Options, Labels      map[string]string
	// Parent, if not nil, is the open device of an uplink, in place of the name of one.
	// It stays the caller's.
	Parent *os.File
}

// New makes a network of cfg. Others are the user's networks, Default among them,
// and host is what the machine reaches by itself.
func New(cfg Config, others []Network, host []netstack.HostPrefix) (*Network, error) {
	n := &Network{
		Version: Version, ID: newID(), Name: cfg.Name, Driver: cfg.Driver, Created: time.Now().UTC(),
		Aux: maps.Clone(cfg.Aux), Internal: cfg.Internal, Attachable: cfg.Attachable,
		Options: maps.Clone(cfg.Options), Labels: maps.Clone(cfg.Labels),
	}
	if err := n.checkNames(); err != nil {
		return nil, err
	}
	for _, o := range others {
		if o.Name == n.Name {
			return nil, &Error{ErrExists, fmt.Sprintf("network %s exists already", n.Name), "choose another name, or remove it: sbx network rm " + n.Name}
		}
	}
	if len(others) >= maxNetworks {
		return nil, invalid("remove some: sbx network prune", "there are %d networks, the limit", len(others))
	}
	var err error
	if n.Behaviour, err = parseOptions(n.Options); err != nil {
		return nil, err
	}
	if cfg.Parent != nil {
		if err := n.GiveParent(cfg.Parent); err != nil {
			return nil, err
		}
	}
	if err := cfg.families(); err != nil {
		return nil, err
	}
	if err := n.setSubnets(&cfg); err != nil {
		return nil, err
	}
	if err := n.placeInSubnets(&cfg); err != nil {
		return nil, err
	}
	if n.Driver == DriverUplink {
		return n, n.checkUplink(cfg.NoIPv4)
	}
	if n.Parent != "" {
		return nil, invalid("add --driver uplink", "the driver %s has no parent device", n.Driver)
	}
	if err := n.clash(others, host); err != nil {
		return nil, err
	}
	if err := n.choose(&cfg, others, host); err != nil {
		return nil, err
	}
	if !n.Subnet4.IsValid() && n.MTU != 0 && n.MTU < minMTU6 {
		return nil, invalid("", "an MTU of %d for a network of IPv6 alone: it needs %d", n.MTU, minMTU6)
	}
	if _, err := netstack.NewIPAM(n.IPAM(0)); err != nil {
		return nil, invalid("", "network %s: %v", n.Name, err)
	}
	return n, nil
}

// minMTU6 is IPv6's own (RFC 8200).
const minMTU6 = 1280

// checkUplink refuses what a segment outside cannot have. Its subnets, if there are
// any, are also those of others, and of the machine itself.
func (n *Network) checkUplink(no4 bool) error {
	switch {
	case n.Parent == "":
		return invalid("add --parent DEVICE, a TAP or macvtap that root has given to you", "an uplink needs a parent device")
	case n.Internal:
		return invalid("use --driver bridge", "an uplink leads outside: it cannot be internal")
	case !no4 && !n.Subnet4.IsValid() && n.Subnet6.IsValid():
		return invalid("add an IPv4 subnet, or --ipv4=false; leave both subnets out for DHCP", "an uplink with an IPv6 subnet alone")
	case no4 && !n.Subnet6.IsValid():
		return invalid("add --subnet, of IPv6", "an uplink without IPv4 needs an IPv6 subnet, from which its sandboxes get addresses")
	case n.DHCP():
		return nil
	}
	if _, err := netstack.NewIPAM(n.IPAM(0)); err != nil {
		return invalid("", "network %s: %v", n.Name, err)
	}
	return nil
}

// GiveParent makes an open device the parent of an uplink.
func (n *Network) GiveParent(f *os.File) error {
	name, err := netstack.UplinkName(f)
	if err != nil {
		return invalid("open /dev/net/tun or the node of a macvtap, with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR", "the parent device: %v", err)
	}
	n.setParent(name, true)
	return nil
}

// NameParent makes a device, which each process of the network opens, the parent of an
// uplink.
func (n *Network) NameParent(device string) { n.setParent(device, false) }

func (n *Network) setParent(name string, given bool) {
	n.Parent, n.Given = name, given
	if n.Options == nil {
		n.Options = map[string]string{}
	}
	n.Options["parent"] = name
}

// Uplink says whether the network is a part of a segment outside.
func (n *Network) Uplink() bool { return n.Driver == DriverUplink }

// DHCP says whether addresses are those that the segment's own server gives out.
func (n *Network) DHCP() bool { return n.Uplink() && len(n.Subnets()) == 0 }

func newID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// IPAM is how the network's addresses are given out; next is the place to begin at.
func (n *Network) IPAM(next uint32) netstack.IPAMConfig {
	return netstack.IPAMConfig{
		Subnet4: n.Subnet4, Subnet6: n.Subnet6, Gateway4: n.Gateway4, Gateway6: n.Gateway6,
		Range4: n.Range4, Range6: n.Range6, Reserved: slices.Collect(maps.Values(n.Aux)), Next: next,
	}
}

// Subnets are those that it has.
func (n *Network) Subnets() (list []netip.Prefix) {
	for _, s := range []netip.Prefix{n.Subnet4, n.Subnet6} {
		if s.IsValid() {
			list = append(list, s)
		}
	}
	return list
}

// PublicName is what users know the network as.
func (n *Network) PublicName() string { return PublicName(n.Name) }

// PublicName is what users know a network as.
func PublicName(name string) string {
	if name == Default {
		return Bridge
	}
	return name
}

// checkNames refuses what cannot be a network at all.
func (n *Network) checkNames() error {
	if err := CheckName(n.Name); err != nil {
		return err
	}
	switch n.Driver {
	case "":
		n.Driver = DriverBridge
	case DriverBridge, DriverUplink:
	case "macvlan", "ipvlan":
		return invalid("use --driver uplink --parent DEVICE, with a TAP or macvtap that root has given to you", "the driver %s needs root", n.Driver)
	case "overlay", "host", "none", "null":
		return invalid("use --driver bridge", "the driver %s needs root, or another machine", n.Driver)
	default:
		return invalid("use --driver bridge or uplink", "there is no driver %.80q", n.Driver)
	}
	size := 0
	for k, v := range n.Labels {
		if k == "" || strings.ContainsAny(k, "=\x00\n") || strings.ContainsRune(v, 0) {
			return invalid("write --label KEY=VALUE", "label %q needs a name without '='", k+"="+v)
		}
		size += len(k) + len(v)
	}
	for k, v := range n.Options {
		size += len(k) + len(v)
	}
	if size > maxText || len(n.Aux) > maxAux {
		return invalid("", "%d bytes of labels and options, %d auxiliary addresses: the limits are %d and %d", size, len(n.Aux), maxText, maxAux)
	}
	return nil
}

// reserved are names that mean something else to --network.
var reserved = []string{Default, Bridge, "host", "none", "container", "ns", "slirp4netns", "pasta", "private"}

// CheckName says whether a network that is made may be called so. It becomes the
// name of files.
func CheckName(name string) error {
	const fix = "use letters, digits, '_', '.' and '-', at most 64, the first a letter or digit"
	if name == "" {
		return invalid(fix, "a network needs a name")
	}
	ok := len(name) <= maxName
	for i, r := range name {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		ok = ok && (alnum || i > 0 && strings.ContainsRune("_.-", r))
	}
	switch {
	case !ok:
		return invalid(fix, "%.80q cannot be the name of a network", name)
	case slices.Contains(reserved, name):
		return invalid("choose another name", "%s is a network of its own kind, and always there", name)
	case strings.HasSuffix(name, ".leases"):
		return invalid("choose another name", "names that end in .leases are taken")
	}
	return nil
}

// ChooseDefault gives the default network its subnets.
func ChooseDefault(others []Network, host []netstack.HostPrefix) (netstack.SubnetChoice, error) {
	return netstack.ChooseSubnets(uint32(os.Geteuid()), Default, nil, append(taken(others), host...))
}
