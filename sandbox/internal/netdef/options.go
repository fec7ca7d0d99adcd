package netdef

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"github.com/rootless-sbx/sbx/netstack"
)

// Behaviour is what a network's options mean.
type Behaviour struct {
	// MTU of the links; 0 means the largest.
	MTU int `json:"mtu,omitempty"`
	// Isolate keeps the networks' sandboxes from what other networks publish on the
	// host's addresses.
	Isolate bool `json:"isolate,omitempty"`
	// Private keeps the network's sandboxes from each other.
	Private bool `json:"private,omitempty"`
	// VLAN of the network, 0 for none; Trunk are those that sandboxes may use with
	// tags of their own.
	VLAN  uint16   `json:"vlan,omitempty"`
	Trunk []uint16 `json:"trunk,omitempty"`
	// HostBinding is the host's address on which ports are published that name none;
	// zero: all of them.
	HostBinding netip.Addr `json:"hostBinding,omitzero"`
	// Parent is the device of an uplink: the name of a TAP or macvtap, or the node of
	// the latter. Given: it is an open descriptor, which the network's process keeps.
	Parent string `json:"parent,omitempty"`
	Given  bool   `json:"given,omitempty"`
	// RebindProtection refuses names from outside that have addresses inside.
	RebindProtection bool `json:"rebind_protection,omitempty"`
	// What each sandbox may have; 0 means netstack's default.
	TCPFlows  int `json:"tcp_flows,omitempty"`
	UDPFlows  int `json:"udp_flows,omitempty"`
	DNSRate   int `json:"dns_rate,omitempty"`
	TCPMemory int `json:"tcp_memory,omitempty"`
}

// longNames are Docker's names of options.
var longNames = map[string]string{
	"com.docker.network.driver.mtu":               "mtu",
	"com.docker.network.bridge.enable_icc":        "icc",
	"com.docker.network.bridge.host_binding_ipv4": "host_binding",
}

// Docker's options for what has a flag, too.
const (
	optIPv4 = "com.docker.network.enable_ipv4"
	optIPv6 = "com.docker.network.enable_ipv6"
)

// families sees to it that the network has one at least.
func (cfg *Config) families() error {
	for key, no := range map[string]*bool{optIPv4: &cfg.NoIPv4, optIPv6: &cfg.NoIPv6} {
		v, ok := cfg.Options[key]
		if !ok {
			continue
		}
		on, err := boolean(key, v)
		if err != nil {
			return err
		}
		*no = *no || !on
	}
	if cfg.NoIPv4 && cfg.NoIPv6 {
		return invalid("leave out --ipv4=false or --ipv6=false", "a network without IPv4 and without IPv6 has no addresses")
	}
	return nil
}

// harmless options ask for what is so anyway, with these values; any, if there are
// none.
var harmless = map[string][]string{
	"com.docker.network.bridge.name":                 nil,
	"com.docker.network.bridge.default_bridge":       {"false"},
	"com.docker.network.bridge.enable_ip_masquerade": {"true"},
	"com.docker.network.bridge.gateway_mode_ipv4":    {"nat"},
	"com.docker.network.bridge.gateway_mode_ipv6":    {"nat"},
	"com.docker.network.bridge.inhibit_ipv4":         {"false"},
	"com.docker.network.container_iface_prefix":      {"eth"},
	optIPv4:            nil,
	optIPv6:            nil,
	"metric":           nil,
	"no_default_route": {"false", "0"},
	"mode":             {"managed"},
}

// senseless options say why they mean nothing here.
var senseless = map[string]string{
	"com.docker.network.host_ipv4":                      "connections go out as those of the host's programs do",
	"com.docker.network.host_ipv6":                      "connections go out as those of the host's programs do",
	"com.docker.network.bridge.trusted_host_interfaces": "nobody outside has a way to the sandboxes' own addresses",
	"com.docker.network.endpoint.ifname":                "devices are eth0, eth1, ... in the order of the networks",
	"host_interface_name":                               "no interface is made on this machine",
	"vrf":                                               "no interface is made on this machine",
}

func parseOptions(options map[string]string) (b Behaviour, err error) {
	for key, v := range options {
		name := key
		if s := longNames[key]; s != "" {
			name = s
		}
		switch name {
		case "mtu":
			b.MTU, err = number(key, v, 576, 65520)
		case "icc":
			var on bool
			on, err = boolean(key, v)
			b.Private = !on
		case "isolate":
			if v == "strict" { // Podman's; here it is the only kind
				v = "true"
			}
			b.Isolate, err = boolean(key, v)
		case "rebind-protection":
			b.RebindProtection, err = boolean(key, v)
		case "tcp-flows":
			b.TCPFlows, err = number(key, v, 1, 1<<20)
		case "udp-flows":
			b.UDPFlows, err = number(key, v, 1, 1<<16)
		case "dns-rate":
			b.DNSRate, err = number(key, v, 1, 1<<20)
		case "tcp-memory":
			b.TCPMemory, err = size(key, v, 1<<20, min(1<<40, math.MaxInt))
		case "parent":
			b.Parent = v
		case "host_binding":
			if b.HostBinding, err = netip.ParseAddr(v); err != nil {
				err = invalid("write "+key+"=127.0.0.1", "option %s=%.80s is not an address", key, v)
			} else if b.HostBinding.IsUnspecified() {
				b.HostBinding = netip.Addr{}
			}
		case "vlan":
			b.VLAN, err = vlan(key, v)
		case "trunk":
			for _, s := range strings.Split(v, ",") {
				var id uint16
				if id, err = vlan(key, s); err != nil {
					break
				}
				b.Trunk = append(b.Trunk, id)
			}
		default:
			values, known := harmless[key]
			switch {
			case senseless[key] != "":
				err = invalid("leave it out", "option %s is not supported: %s", key, senseless[key])
			case !known:
				err = invalid("use mtu=, icc=, isolate=, vlan=, trunk=, host_binding=, rebind-protection=, tcp-flows=, udp-flows=, tcp-memory= or dns-rate=", "there is no option %.80q", key)
			case values != nil && !slices.Contains(values, v):
				err = invalid("leave it out", "option %s=%.80s is not supported: it is always %s here", key, v, values[0])
			}
		}
		if err != nil {
			return Behaviour{}, err
		}
	}
	if need := b.TCPFlows * netstack.MinFlowMemory; b.TCPMemory > 0 && need > b.TCPMemory {
		return Behaviour{}, invalid(fmt.Sprintf("write tcp-memory=%s or more, or leave it out", units.BytesSize(float64(need))),
			"options tcp-flows=%d and tcp-memory=%s: there is not enough memory for so many", b.TCPFlows, options["tcp-memory"])
	}
	return b, nil
}

func number(key, v string, least, most int) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < least || n > most {
		return 0, invalid("", "option %s=%.80s: want a number from %d to %d", key, v, least, most)
	}
	return n, nil
}

func size(key, v string, least, most int64) (int, error) {
	n, err := units.RAMInBytes(v)
	if err != nil || n < least || n > most {
		return 0, invalid("write it as 256m or 2g", "option %s=%.80s: want a size from %s to %s", key, v, units.BytesSize(float64(least)), units.BytesSize(float64(most)))
	}
	return int(n), nil
}

func vlan(key, v string) (uint16, error) {
	n, err := number(key, v, 1, 4094)
	return uint16(n), err
}

func boolean(key, v string) (bool, error) {
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, invalid(fmt.Sprintf("write %s=true or %s=false", key, key), "option %s=%.80s is neither true nor false", key, v)
	}
	return b, nil
}
