package netd

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/netstack"
	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox/internal/netdef"
)

// The messages. Every request has one reply; an error travels as wire.Error.
//
//	on descriptor 3 of the process, once:
//	  starter -> netd     start    StartConfig [+ "uplink"]     reply: Info (ready), or why not
//
//	on the network's socket:
//	  monitor -> netd     hello    Hello                        reply: Info; first message
//	                      lease    LeaseRequest                 reply: Lease [+ "uplink"]; once
//	                      rename   Rename                       reply: nothing
//	                      update   Member                       reply: nothing
//	                      attach   AttachRequest                reply: Ports
//	                               + "link" [+ "sockets"]
//	                      addport  portfwd.Spec                 reply: port.Status
//	                      rmport   portID                       reply: nothing
//	                      ports    -                            reply: Ports
//	                      stats    -                            reply: Stats
//	  anybody -> netd     members  -                            reply: Members
//	                      leave    -                            reply: nothing, or who is attached
//	  netd -> netd        resolve  Question                     reply: Answer, of the network's own names
//	  either              EOF: detached; forwarders, port, link and lease are gone
//
//	on the "sockets" descriptor, the other way round:
//	  netd -> monitor     socket   SocketRequest                reply: nothing + "0", "1", ...
//	                      builtin  BuiltinRequest               reply: nothing; runs until EOF
const (
	msgStart   = "start"
	msgHello   = "hello"
	msgLease   = "lease"
	msgRename  = "rename"
	msgAttach  = "attach"
	msgAddPort = "addport"
	msgRmPort  = "rmport"
	msgPorts   = "ports"
	msgStats   = "stats"
	msgUpdate  = "update"
	msgMembers = "members"
	msgLeave   = "leave"
	msgResolve = "resolve"
	msgSocket  = "socket"
	msgBuiltin = "builtin"

	fileLink    = "link"
	fileSockets = "sockets"
	fileUplink  = "uplink"
)

// Codes of wire.Error. Those of published ports are portfwd's ("port-in-use",
// "port-privileged", ...).
const (
	CodeBusy       = "netd-busy"        // another process serves the network
	CodeLeaseTaken = "lease-in-use"     // the sandbox is attached already
	CodeAddrTaken  = "address-in-use"   // the wanted address is another sandbox's
	CodeAddrBad    = "bad-address"      // the wanted address is not to be had
	CodeNoAddress  = "no-address"       // the network is full
	CodeNoSubnet   = "no-subnet"        // every subnet clashes with the host's routes
	CodeInternal   = "internal-network" // an internal network, or an uplink, publishes nothing
	CodeDHCP       = "dhcp"             // no address from the segment outside
	CodeNoParent   = "no-parent"        // the descriptor of an uplink's device is gone
	CodeTooMany    = "too-many"         // a bound of this process
	CodeNoNetwork  = "no-network"       // it was removed
	CodeMisuse     = "protocol-misuse"  // a request out of order or malformed
)

// Bounds; see doc.go.
const (
	maxConns       = 1100
	maxQueued      = 16
	maxRequestBody = 256 << 10
	maxLogSize     = 1 << 20
	helloTimeout   = 10 * time.Second
	leaseGrace     = 2 * time.Second
)

// StartConfig is what a network's process needs to know. It is what Ensure sends.
type StartConfig struct {
	// RuntimeDir is where the process meets its clients, DataDir where the networks
	// and the sandboxes are kept.
	RuntimeDir string `json:"runtime_dir"`
	DataDir    string `json:"data_dir"`
	// Network to serve. Zero subnets: those of state.json, else such as neither the
	// host has a route for nor another network has.
	netdef.Network
	// ResolvConf is the file with the host's name servers. Empty:
	// /etc/resolv.conf.
	ResolvConf string `json:"resolv_conf,omitempty"`
	// Linger is how long the process stays after the last detach. Zero: 3 s.
	Linger time.Duration `json:"linger,omitempty"`
	// Debug logs single connections.
	Debug bool `json:"debug,omitempty"`
}

// Hello begins a connection.
type Hello struct {
	// Name and ID of the network the client means.
	Name string `json:"name"`
	ID   string `json:"id,omitempty"`
}

// Info describes a network.
type Info struct {
	PID      int          `json:"pid"`
	Name     string       `json:"name"`
	Subnet4  netip.Prefix `json:"subnet4,omitzero"`
	Subnet6  netip.Prefix `json:"subnet6,omitzero"`
	Gateway4 netip.Addr   `json:"gateway4,omitzero"`
	Gateway6 netip.Addr   `json:"gateway6,omitzero"`
	MTU      int          `json:"mtu"`
}

// LeaseRequest asks for a sandbox's addresses; zero ones are netd's choice.
type LeaseRequest struct {
	ID    string           `json:"id"`
	Name  string           `json:"name,omitempty"`
	Addr4 netip.Addr       `json:"addr4,omitzero"`
	Addr6 netip.Addr       `json:"addr6,omitzero"`
	MAC   net.HardwareAddr `json:"mac,omitempty"`
	// DHCP asks a server outside for the IPv4 address, on an uplink.
	DHCP bool `json:"dhcp,omitempty"`
}

// Rename gives the sandbox of a lease another name.
type Rename struct {
	Name string `json:"name"`
}

// Lease is what a sandbox gets: everything its link and resolv.conf need.
type Lease struct {
	netstack.Lease
	// Prefix4 and Prefix6 are the addresses with the subnet's length; on a network
	// without a family its prefix and gateway are zero.
	Prefix4  netip.Prefix `json:"prefix4,omitzero"`
	Prefix6  netip.Prefix `json:"prefix6,omitzero"`
	Gateway4 netip.Addr   `json:"gateway4,omitzero"`
	Gateway6 netip.Addr   `json:"gateway6,omitzero"`
	// DNS are the network's name servers.
	DNS      []netip.Addr `json:"dns"`
	MTU      int          `json:"mtu"`
	Internal bool         `json:"internal,omitempty"`
	// Given: the network's device is a descriptor, and a duplicate of it comes along, for
	// the process after this one.
	Given bool `json:"given,omitempty"`
	// Uplink: the sandbox is a host of a segment outside. DHCP: with an address from
	// there, as are its name servers and the domains to search.
	Uplink bool     `json:"uplink,omitempty"`
	DHCP   bool     `json:"dhcp,omitempty"`
	Search []string `json:"search,omitempty"`
}

// GuestConfig is the lease as netstack.SetupGuest takes it.
func (l *Lease) GuestConfig() netstack.GuestConfig {
	c := netstack.GuestConfig{MAC: l.MAC, MTU: l.MTU, Autoconf: l.Uplink && !l.Prefix6.IsValid()}
	for _, p := range []netip.Prefix{l.Prefix4, l.Prefix6} {
		if p.IsValid() {
			c.Addrs = append(c.Addrs, p)
		}
	}
	if l.Internal {
		return c // its gateway leads nowhere
	}
	c.Gateways = valid(l.Gateway4, l.Gateway6) // a segment outside may have none
	return c
}

// Member is what a network knows of a sandbox besides its name and addresses.
type Member struct {
	// Aliases are more names, which it may share with others.
	Aliases []string `json:"aliases,omitempty"`
	// Hostname is one more, if it can be.
	Hostname string `json:"hostname,omitempty"`
	// Networks are the others that it is on: it is told their names too.
	Networks []string `json:"networks,omitempty"`
}

// Question is a DNS query as it came.
type Question struct {
	Query []byte `json:"query"`
}

// Answer is to a Question: nothing if the network has no such name. Unsure: its names
// are still coming, after a process that was killed.
type Answer struct {
	Answer []byte `json:"answer,omitempty"`
	Unsure bool   `json:"unsure,omitempty"`
}

// Members are the sandboxes on a network now.
type Members struct {
	Info
	Members []MemberInfo           `json:"members"`
	DNS     netstack.ResolverStats `json:"dns"`
	Refused uint64                 `json:"refused"`
	Usage   Usage                  `json:"usage"`
	// Uplink is nil on a network without one.
	Uplink *netstack.PortStats `json:"uplink,omitempty"`
}

// MemberInfo is one of them.
type MemberInfo struct {
	netstack.Lease
	Names []string           `json:"names"`
	Stats netstack.PortStats `json:"stats"`
}

// AttachRequest joins a leased sandbox to the network.
type AttachRequest struct {
	Member
	// Driver and HdrLen are netstack.GuestLink's.
	Driver string `json:"driver"`
	HdrLen int    `json:"hdrlen"`
	// MTU of the link; 0 is the network's.
	MTU int `json:"mtu,omitempty"`
	// VLAN and Trunk are netstack.PortConfig's.
	VLAN  uint16   `json:"vlan,omitempty"`
	Trunk []uint16 `json:"trunk,omitempty"`
	// HostPorts of the host's loopback that the sandbox may reach.
	HostPorts []uint16 `json:"host_ports,omitempty"`
	// Metadata is netstack.PortConfig's.
	Metadata bool `json:"metadata,omitempty"`
	// Publish lists ports to publish; either all of them are or none.
	Publish []portfwd.Spec `json:"publish,omitempty"`
	// PortDriver is portfwd's; StateDir is where its builtin driver meets its
	// other half.
	PortDriver string `json:"port_driver,omitempty"`
	StateDir   string `json:"state_dir,omitempty"`
}

// Ports are published ports with the host ports actually bound.
type Ports struct {
	Ports []port.Status `json:"ports"`
}

type portID struct {
	ID int `json:"id"`
}

// Stats are the counters of the sandbox that asks, and of its network.
type Stats struct {
	Port     netstack.PortStats     `json:"port"`
	Forward  *portfwd.Stats         `json:"forward,omitempty"`
	DNS      netstack.ResolverStats `json:"dns"`
	Attached int                    `json:"attached"`
	Leases   int                    `json:"leases"`
	Conns    int                    `json:"conns"`
	// Refused counts connections and requests over a bound, or of other users.
	Refused uint64 `json:"refused"`
}

// SocketRequest asks for N sockets made in the guest's network namespace.
type SocketRequest struct {
	Family int `json:"family"` // AF_INET, AF_INET6
	Type   int `json:"type"`   // SOCK_STREAM, SOCK_DGRAM
	N      int `json:"n"`      // 1 to 8
}

// toWire gives the errors of the address pool their codes.
func toWire(err error) error {
	var (
		none     *netstack.ErrNoAddress
		conflict *netstack.ErrLeaseConflict
		bad      *netstack.ErrBadAddress
		subnet   *netstack.ErrNoSubnet
		def      *netdef.Error
		record   *netstack.ErrRecord
	)
	switch {
	case errors.As(err, &none):
		return &wire.Error{Code: CodeNoAddress, Step: "lease an address", Msg: none.Error(), Fix: "remove a sandbox that is on it (one that is stopped keeps its addresses), or use another network"}
	case errors.As(err, &conflict):
		return &wire.Error{Code: CodeAddrTaken, Step: "lease an address", Path: conflict.Addr, Msg: "in use by sandbox " + conflict.Owner, Fix: "choose another address, or none"}
	case errors.As(err, &bad):
		return &wire.Error{Code: CodeAddrBad, Step: "lease an address", Path: bad.Addr, Msg: bad.Reason, Fix: "choose another address, or none"}
	case errors.As(err, &subnet):
		return &wire.Error{Code: CodeNoSubnet, Step: "choose a subnet", Msg: subnet.Error(), Fix: "give the network a subnet that the host does not use"}
	}
	switch {
	case errors.As(err, &def):
		return &wire.Error{Code: CodeNoNetwork, Msg: def.Msg, Fix: def.Fix}
	case errors.As(err, &record):
		return &wire.Error{Code: CodeMisuse, Step: "name a sandbox", Msg: record.Error(), Fix: "choose another alias"}
	}
	return err
}
