package netd

import (
	"net"
	"net/netip"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/netstack"
	"github.com/rootless-sbx/sbx/portfwd"
)

// Message types, see the table in doc.go.
const (
	msgHello  = "hello"
	msgLease  = "lease"
	msgAttach = "attach"
	msgStats  = "stats"
	msgSocket = "socket"

	// starter <-> netd, on the connection that the process is started with
	msgServe = "serve"
)

const (
	maxConns    = 1000
	maxSockets  = 8
	maxLogBytes = 1 << 20
)

// Hello introduces either side.
type Hello struct {
	PID     int    `json:"pid"`
	Network string `json:"network"`
}

// LeaseRequest asks for addresses. The wanted ones are given if they are free, as
// they are when a sandbox returns to a new process after the old one was killed.
type LeaseRequest struct {
	ID    string     `json:"id"`
	Name  string     `json:"name"`
	Want4 netip.Addr `json:"want4,omitzero"`
	Want6 netip.Addr `json:"want6,omitzero"`
}

// Lease is what a sandbox is on its network.
type Lease struct {
	MAC      net.HardwareAddr `json:"mac"`
	Addr4    netip.Prefix     `json:"addr4,omitzero"` // with the subnet's length
	Addr6    netip.Prefix     `json:"addr6,omitzero"`
	Gateway4 netip.Addr       `json:"gateway4,omitzero"` // also the name server
	Gateway6 netip.Addr       `json:"gateway6,omitzero"`
	MTU      int              `json:"mtu"`
}

// Attach connects a sandbox's link.
type Attach struct {
	Driver     string      `json:"driver"`
	HdrLen     int         `json:"hdrLen"`
	MTU        int         `json:"mtu"`
	HostPorts  []uint16    `json:"hostPorts,omitempty"`
	Ports      []port.Spec `json:"ports,omitempty"`
	PortDriver string      `json:"portDriver,omitempty"`
	// BuiltinDir is where the child half of the builtin port driver listens.
	BuiltinDir string `json:"builtinDir,omitempty"`
}

// Attached are the published ports, in the order of Attach.Ports.
type Attached struct {
	Ports []port.Status `json:"ports"`
}

// Stats are the counters of a network.
type Stats struct {
	PID     int                      `json:"pid"`
	Network netstack.Stats           `json:"network"`
	DNS     netstack.ResolverStats   `json:"dns"`
	Ports   map[string]portfwd.Stats `json:"ports"` // by sandbox id
}

// SocketRequest asks for N sockets of a family and type.
type SocketRequest struct {
	Family int `json:"family"`
	Type   int `json:"type"`
	N      int `json:"n"`
}

// serve is what a starter tells a new process.
type serve struct {
	RuntimeDir string `json:"runtimeDir"`
	Name       string `json:"name"`
	Linger     string `json:"linger,omitempty"`
}
