package sandbox

import (
	"fmt"
	"net/netip"

	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox/internal/netdef"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
)

// InspectNetwork is how it is connected. The addresses above Networks are those in the
// network that is the way out.
type InspectNetwork struct {
	// SandboxKey is its network namespace, while it runs.
	SandboxKey          string
	Ports               map[string][]PortBinding
	Gateway             string
	IPAddress           string
	IPPrefixLen         int
	IPv6Gateway         string
	GlobalIPv6Address   string
	GlobalIPv6PrefixLen int
	MacAddress          string
	LinkDriver          string
	Networks            map[string]*InspectEndpoint
}

// InspectEndpoint is its place in one network.
type InspectEndpoint struct {
	IPAMConfig          *InspectWishes
	Links               []string
	Aliases             []string
	MacAddress          string
	GwPriority          int
	NetworkID           string
	Gateway             string
	IPAddress           string
	IPPrefixLen         int
	IPv6Gateway         string
	GlobalIPv6Address   string
	GlobalIPv6PrefixLen int
	DNSNames            []string
	// Device is the interface inside.
	Device string `json:",omitempty"`
}

// InspectWishes are addresses that were asked for.
type InspectWishes struct {
	IPv4Address string `json:",omitempty"`
	IPv6Address string `json:",omitempty"`
}

// networkMode is Docker's word for the network of a sandbox: the first one's name.
func networkMode(n *proto.Network) string {
	switch {
	case n.Mode != NetworkDefault:
		return n.Mode
	case len(n.Attachments) == 0:
		return NetworkNone
	}
	return n.Attachments[0].Network.PublicName()
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func (e *Engine) inspectNetworks(name string, rec *record.Config, st *record.State) InspectNetwork {
	n := InspectNetwork{Ports: map[string][]PortBinding{}, Networks: map[string]*InspectEndpoint{}}
	if st.PID > 0 {
		n.SandboxKey = fmt.Sprintf("/proc/%d/ns/net", st.PID)
	}
	if st.Alive() {
		for _, p := range rec.Exposed {
			n.Ports[p] = nil
		}
		var specs []portfwd.Spec
		for _, p := range st.Ports {
			specs = append(specs, portfwd.Spec{Spec: p.Spec})
		}
		for k, v := range Bindings(specs...) {
			n.Ports[k] = v
		}
	}
	if mode := rec.Start.Network.Mode; mode != NetworkDefault {
		if !isShared(mode) {
			n.Networks[mode] = &InspectEndpoint{}
		}
		return n
	}
	id := rec.Start.ID[:min(12, len(rec.Start.ID))]
	for _, a := range rec.Start.Network.Attachments {
		x := &InspectEndpoint{Aliases: a.Aliases, GwPriority: a.Priority, NetworkID: networkID(&a.Network), DNSNames: append([]string{name}, a.Aliases...)}
		x.DNSNames = append(x.DNSNames, id)
		if h := rec.Start.Hostname; h != id {
			x.DNSNames = append(x.DNSNames, h)
		}
		if a.MAC != nil {
			x.MacAddress = a.MAC.String()
		}
		if a.Addr4.IsValid() || a.Addr6.IsValid() {
			x.IPAMConfig = &InspectWishes{addrText(a.Addr4), addrText(a.Addr6)}
		}
		n.Networks[a.Network.PublicName()] = x
	}
	for _, p := range st.Networks {
		x := n.Networks[netdef.PublicName(p.Network)]
		if x == nil {
			continue // it is just being connected
		}
		x.MacAddress, x.Device = p.MAC, p.Device
		if p.Prefix4.IsValid() {
			x.Gateway, x.IPAddress, x.IPPrefixLen = addrText(p.Gateway4), addrText(p.Prefix4.Addr()), p.Prefix4.Bits()
		}
		if p.Prefix6.IsValid() {
			x.IPv6Gateway, x.GlobalIPv6Address, x.GlobalIPv6PrefixLen = addrText(p.Gateway6), addrText(p.Prefix6.Addr()), p.Prefix6.Bits()
		}
		if p.Way {
			n.Gateway, n.IPAddress, n.IPPrefixLen, n.MacAddress, n.LinkDriver = x.Gateway, x.IPAddress, x.IPPrefixLen, x.MacAddress, p.Driver
			n.IPv6Gateway, n.GlobalIPv6Address, n.GlobalIPv6PrefixLen = x.IPv6Gateway, x.GlobalIPv6Address, x.GlobalIPv6PrefixLen
		}
	}
	return n
}
