package sandbox

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/rootless-sbx/sbx/netstack"
	"github.com/rootless-sbx/sbx/sandbox/internal/netd"
	"github.com/rootless-sbx/sbx/sandbox/internal/netdef"
)

// NetworkInspection is what is known about a network, with the keys of docker network
// inspect, and what its process counts.
type NetworkInspection struct {
	Name       string
	ID         string `json:"Id"`
	Created    time.Time
	Scope      string
	Driver     string
	EnableIPv4 bool
	EnableIPv6 bool
	IPAM       InspectIPAM
	Internal   bool
	Attachable bool
	Ingress    bool
	ConfigFrom struct{ Network string }
	ConfigOnly bool
	Containers map[string]NetworkMember
	Options    map[string]string
	Labels     map[string]string
	// Status is nil if the network has no process, for nobody is on it.
	Status *NetworkStatus `json:",omitempty"`
}

// InspectIPAM are its subnets.
type InspectIPAM struct {
	Driver  string
	Options map[string]string
	Config  []InspectSubnet
}

// InspectSubnet is one of them.
type InspectSubnet struct {
	Subnet             string
	IPRange            string `json:",omitempty"`
	Gateway            string
	AuxiliaryAddresses map[string]string `json:",omitempty"`
}

// NetworkMember is a sandbox that is on it and runs.
type NetworkMember struct {
	Name        string
	EndpointID  string
	MacAddress  string
	IPv4Address string
	IPv6Address string
	// DNSNames are what the others may call it.
	DNSNames []string
	// Counters are those of its port: what went over it, and what was dropped, why.
	Counters netstack.PortStats
}

// NetworkStatus is what the network's process says.
type NetworkStatus struct {
	Pid int
	MTU int
	DNS netstack.ResolverStats
	// Refused counts connections and requests of sbx's own processes over a bound.
	Refused uint64
	// Descriptors and Goroutines are what the process holds.
	Descriptors, Goroutines int
	// Uplink counts what crosses the device of an uplink.
	Uplink *netstack.PortStats `json:",omitempty"`
}

// InspectNetwork describes a network.
func (e *Engine) InspectNetwork(ctx context.Context, ref string) (*NetworkInspection, error) {
	n, err := e.FindNetwork(ctx, ref)
	if err != nil {
		return nil, err
	}
	in := &NetworkInspection{
		Name: n.PublicName(), ID: networkID(n), Created: n.Created, Scope: "local", Driver: n.Driver,
		EnableIPv4: n.Subnet4.IsValid(), EnableIPv6: n.Subnet6.IsValid(), Internal: n.Internal, Attachable: n.Attachable,
		IPAM:       InspectIPAM{Driver: "default", Options: map[string]string{}, Config: []InspectSubnet{}},
		Containers: map[string]NetworkMember{}, Options: map[string]string{}, Labels: map[string]string{},
	}
	maps.Copy(in.Options, n.Options)
	maps.Copy(in.Labels, n.Labels)
	in.addSubnet(n, n.Subnet4, n.Range4, n.Gateway4)
	in.addSubnet(n, n.Subnet6, n.Range6, n.Gateway6)
	if alone(n.Name) {
		return in, nil
	}
	return in, e.addMembers(ctx, n, in)
}

func (in *NetworkInspection) addSubnet(n *Network, subnet, rng netip.Prefix, gateway netip.Addr) {
	if !subnet.IsValid() {
		return
	}
	s := InspectSubnet{Subnet: subnet.String(), Gateway: gateway.String()}
	if rng.IsValid() {
		s.IPRange = rng.String()
	}
	for name, a := range n.Aux {
		if subnet.Contains(a) {
			if s.AuxiliaryAddresses == nil {
				s.AuxiliaryAddresses = map[string]string{}
			}
			s.AuxiliaryAddresses[name] = a.String()
		}
	}
	in.IPAM.Config = append(in.IPAM.Config, s)
}

// addMembers asks the network's process, if there is one, who is there.
func (e *Engine) addMembers(ctx context.Context, n *Network, in *NetworkInspection) error {
	hello := netd.Hello{Name: n.Name}
	if n.Name != netdef.Default {
		hello.ID = n.ID
	}
	c, err := netd.Connect(ctx, e.runtimeDir, hello)
	if c == nil || err != nil {
		return err
	}
	defer c.Close()
	m, err := c.Members(ctx)
	if err != nil {
		return fmt.Errorf("ask network %s: %w", in.Name, err)
	}
	in.Status = &NetworkStatus{Pid: m.PID, MTU: m.MTU, DNS: m.DNS, Refused: m.Refused, Uplink: m.Uplink,
		Descriptors: m.Usage.Descriptors, Goroutines: m.Usage.Goroutines}
	for _, x := range m.Members {
		member := NetworkMember{
			Name: x.Name, EndpointID: x.ID, MacAddress: x.MAC.String(), DNSNames: x.Names, Counters: x.Stats,
		}
		if x.Addr4.IsValid() {
			member.IPv4Address = netip.PrefixFrom(x.Addr4, n.Subnet4.Bits()).String()
		}
		if x.Addr6.IsValid() {
			member.IPv6Address = netip.PrefixFrom(x.Addr6, n.Subnet6.Bits()).String()
		}
		in.Containers[x.ID] = member
	}
	return nil
}
