package netstack

import "sync/atomic"

// Drop is a reason for which a frame, a datagram or a connection attempt was
// not passed on.
type Drop int

// The reasons. Each has its own counter per port.
const (
	DropMalformed   Drop = iota // headers or virtio header make no sense
	DropSpoofed                 // source MAC, IP, ARP or ND address is not the port's
	DropEtherType               // neither IPv4, IPv6 nor ARP
	DropVLAN                    // tag of a VLAN that the port does not carry
	DropQinQ                    // more than one tag, or a tag of a provider's bridge
	DropNeighbor                // ARP, ND or DHCP nobody may answer, or that may not cross the switch
	DropGroup                   // IGMP and MLD: the switch has no use for them
	DropFlood                   // too many broadcasts and multicasts
	DropRate                    // too many pings, or messages of ARP and ND
	DropPrivate                 // for another member of a private network
	DropNoMember                // destination MAC or IP that no port has
	DropChecksum                // wrong IP or transport checksum
	DropFragments               // fragment table full, fragment too old or overlapping
	DropPolicy                  // destination that guests may not reach
	DropMetadata                // address where a cloud tells its machine's secrets
	DropElsewhere               // address of another network (Config.Elsewhere)
	DropProtocol                // transport protocol the gateway does not serve
	DropLinkWrite               // the link did not take the frame at once
	DropTCPDials                // too many connection attempts in flight
	DropTCPFlows                // too many TCP connections
	DropUDPFlows                // too many UDP source ports, peers or forwarded flows
	DropUDPFiltered             // datagram from a host the guest did not write to
	DropUDPSend                 // the host's kernel did not take the datagram
	DropPing                    // too many ping identifiers, or ping sockets are forbidden
	DropDNS                     // too many queries at once
	numDrops
)

var dropNames = [numDrops]string{
	"malformed", "spoofed", "ethertype", "vlan", "qinq", "neighbor",
	"group", "flood", "rate", "private", "no-member", "checksum", "fragments", "policy", "metadata", "other-network", "protocol",
	"link-write", "tcp-dials", "tcp-flows", "udp-flows", "udp-filtered", "udp-send", "ping", "dns",
}

func (d Drop) String() string {
	if d < 0 || d >= numDrops {
		return "unknown"
	}
	return dropNames[d]
}

// Traffic counts frames as the links carry them: a super-segment is one.
type Traffic struct {
	Frames, Bytes uint64
}

// PortStats is a snapshot of one port's counters. FromGuest and ToGuest are
// what went over its link.
type PortStats struct {
	FromGuest, ToGuest Traffic
	// TCPFlows, TCPDials, UDPFlows and Pings are the entries now in the port's
	// tables.
	TCPFlows, TCPDials, UDPFlows, Pings int
	// Drops has the counters that are not zero, by name.
	Drops map[string]uint64
}

// Stats is a snapshot of a network's counters.
type Stats struct {
	// Ports by PortConfig.ID.
	Ports map[string]PortStats
	// Uplink is nil on a network without one. FromGuest is what came from outside.
	Uplink *PortStats
}

// counters are a port's live counters.
type counters struct {
	rxFrames, rxBytes atomic.Uint64
	txFrames, txBytes atomic.Uint64
	drops             [numDrops]atomic.Uint64
}

func (c *counters) drop(d Drop) { c.drops[d].Add(1) }

func (c *counters) dropN(d Drop, n int) { c.drops[d].Add(uint64(n)) }

func (c *counters) snapshot() PortStats {
	s := PortStats{
		FromGuest: Traffic{c.rxFrames.Load(), c.rxBytes.Load()},
		ToGuest:   Traffic{c.txFrames.Load(), c.txBytes.Load()},
		Drops:     map[string]uint64{},
	}
	for d := range c.drops {
		if n := c.drops[d].Load(); n != 0 {
			s.Drops[Drop(d).String()] = n
		}
	}
	return s
}
