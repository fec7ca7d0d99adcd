package netstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Errors of New, Attach and the forwarding calls.
var (
	ErrClosed        = errors.New("network is closed")
	ErrAddressTaken  = errors.New("address is in use by another port of the network")
	ErrNoSuchGuest   = errors.New("no port of the network has this address, or not in the gateway's VLAN")
	ErrTooManyFlows  = errors.New("too many flows for this sandbox")
	ErrTupleInUse    = errors.New("a flow between these addresses and ports exists")
	ErrInvalidConfig = errors.New("invalid network configuration")
)

// DNSHandler answers the queries that guests send to port 53 of the gateway.
type DNSHandler interface {
	// Exchange returns the answer to a query, or nil for none. An answer over
	// UDP must fit the size that the query allows. It is called on many
	// goroutines at once.
	Exchange(ctx context.Context, query []byte, from netip.Addr, tcp bool) []byte
}

// Config describes a network.
type Config struct {
	// Name of the network, for logs.
	Name string
	// Subnet4 and Subnet6 are the network's prefixes. One of them may be zero:
	// the network then has no addresses of that family.
	Subnet4, Subnet6 netip.Prefix
	// Gateway4 and Gateway6 are the gateway's addresses; zero means the first
	// host address of the subnet.
	Gateway4, Gateway6 netip.Addr
	// Uplink, if not nil, joins the network to a segment outside. There is no
	// gateway then, and subnets are optional: members without an address of a family
	// get one from that segment. New duplicates Uplink.File and, on success, closes
	// the original.
	Uplink *Uplink
	// MTU of every link that has none of its own; 0 means 65520.
	MTU int
	// DNS answers queries on the gateway's port 53; nil means that the port is
	// closed.
	DNS DNSHandler
	// Internal closes the network: its gateway leads to nobody outside, and to
	// nothing of the host but PortConfig.HostPorts.
	Internal bool
	// Isolate keeps the host's own addresses out of reach, and with them what
	// other networks publish there.
	Isolate bool
	// Private keeps members from each other (Docker's icc=false): they reach the
	// gateway, what is behind it, and published ports.
	Private bool
	// Hairpin makes every port of the gateway lead to the same port of the host's
	// own address, where it has one: published ports, and whatever else the host
	// offers to its neighbours. Internal and Isolate go before it.
	Hairpin bool
	// Elsewhere, if not nil, tells of an address outside whether it is one of another
	// network like this: it leads nowhere then, instead of to whomever the host's
	// routes lead. It is asked once for each new flow, and must not block.
	Elsewhere func(netip.Addr) bool
	// VLAN of the gateway, and of ports that name none; 0 is that of frames
	// without a tag.
	VLAN uint16
	// Redirect, if not nil, is asked for the real destination of each new flow
	// that policy allows, e.g. to apply a policy of one's own. proto is "tcp",
	// "udp" or "icmp" (port 0). An error refuses the flow; an errno in it
	// decides what the guest sees, as with a failed connect(2). It must not
	// block: for UDP and ICMP it runs on the goroutine that reads the link.
	Redirect func(proto string, src, dst netip.AddrPort) (netip.AddrPort, error)
	// Control, if not nil, is called on each host socket before it is bound or
	// connected, as in net.Dialer.
	Control func(network, address string, c syscall.RawConn) error
	// Limits bound what one port can take; zero fields mean the defaults.
	Limits Limits
	// Logger; nil discards.
	Logger *slog.Logger
}

// Limits bound what one port, i.e. one sandbox, can take of the process. Zero
// means the default in parentheses.
type Limits struct {
	// TCPDials in flight (2048): SYNs over it are dropped, and the guest's
	// kernel sends them again.
	TCPDials int
	// TCPFlows open at once, published ones included (10240, and not more than
	// fit into TCPMemory at MinFlowMemory each). Over it SYNs are dropped.
	TCPFlows int
	// TCPMemory is the most that the buffers of all flows take of the process,
	// in bytes (an eighth of the machine's memory, and not more than 1920 MiB, what
	// 10240 flows need). It is not reserved: an idle flow takes 11 KiB. Each flow has up to 4 MiB each
	// way; as more flows open, the buffers of all shrink. Data that has been
	// received already stays until it is read, and the host's kernel has socket
	// buffers besides.
	TCPMemory int
	// DialTimeout of one attempt (30 s). After it the guest gets no answer, so
	// that its kernel's own limit ends the connect, as without a gateway.
	DialTimeout time.Duration
	// UDPFlows are source ports with a host socket, and forwarded flows, each
	// (1024).
	UDPFlows int
	// UDPPeers of one source port (4096); all of them together have at most
	// eight times as many, which take about 10 MiB.
	UDPPeers int
	// UDPTimeout of an idle source port (120 s, the least RFC 4787 allows);
	// UDPTimeoutDNS if it only talked to port 53 (15 s).
	UDPTimeout, UDPTimeoutDNS time.Duration
	// Pings are echo identifiers with a host socket (64), for 30 s.
	Pings int
	// PingRate is how many pings a port may send in a second, and NeighborRate how
	// many messages of ARP and neighbour discovery (10,000 each), a fifth of them at
	// once.
	PingRate, NeighborRate int
	// DNSQueries in flight (128). See ResolverConfig for how many leave the host.
	DNSQueries int
	// Flood is how many copies of its broadcasts and multicasts a port may cause
	// in a second (100,000), a fifth of it at once. A copy of 4 KiB or more counts
	// as several.
	Flood int
}

func (l *Limits) complete() {
	set := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	set(&l.TCPDials, 2048)
	if l.TCPFlows > 0 && l.TCPMemory <= 0 { // who asks for many wants them
		l.TCPMemory = max(defaultTCPMemory(), l.TCPFlows*MinFlowMemory)
	}
	set(&l.TCPFlows, 10240)
	set(&l.TCPMemory, defaultTCPMemory())
	l.TCPFlows = min(l.TCPFlows, max(1, l.TCPMemory/MinFlowMemory))
	set(&l.UDPFlows, 1024)
	set(&l.UDPPeers, 4096)
	set(&l.Pings, 64)
	set(&l.PingRate, 10_000)
	set(&l.NeighborRate, 10_000)
	set(&l.DNSQueries, 128)
	set(&l.Flood, 100_000)
	for _, d := range []struct {
		p *time.Duration
		v time.Duration
	}{{&l.DialTimeout, 30 * time.Second}, {&l.UDPTimeout, 120 * time.Second}, {&l.UDPTimeoutDNS, 15 * time.Second}} {
		if *d.p <= 0 {
			*d.p = d.v
		}
	}
}

// defaultTCPMemory lets no sandbox take so much of a small machine that the kernel would
// have to kill something.
func defaultTCPMemory() int {
	const most, least = 1920 << 20, 64 << 20
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return least // a call that cannot fail
	}
	return int(min(most, max(least, uint64(info.Totalram)*uint64(info.Unit)/8)))
}

// complete checks a configuration and fills in the defaults.
func (cfg Config) complete() (Config, error) {
	if !cfg.Subnet4.IsValid() && !cfg.Subnet6.IsValid() && cfg.Uplink == nil {
		return cfg, fmt.Errorf("%w: neither Subnet4 nor Subnet6", ErrInvalidConfig)
	}
	var err error
	if cfg.Subnet4, cfg.Gateway4, err = completeSubnet("Subnet4", cfg.Subnet4, cfg.Gateway4, netip.Addr.Is4); err != nil {
		return cfg, err
	}
	is6 := func(a netip.Addr) bool { return a.Is6() && !a.Is4In6() }
	if cfg.Subnet6, cfg.Gateway6, err = completeSubnet("Subnet6", cfg.Subnet6, cfg.Gateway6, is6); err != nil {
		return cfg, err
	}
	if cfg.Uplink != nil {
		cfg.Gateway4, cfg.Gateway6 = netip.Addr{}, netip.Addr{} // that of the segment is not ours
	}
	if cfg.MTU == 0 && cfg.Uplink != nil {
		cfg.MTU = cfg.Uplink.MTU
	}
	if cfg.MTU == 0 {
		cfg.MTU = DefaultMTU
	}
	if cfg.MTU < MinMTU || cfg.MTU > MaxMTU {
		return cfg, fmt.Errorf("%w: MTU %d is out of range: %d to %d", ErrInvalidConfig, cfg.MTU, MinMTU, MaxMTU)
	}
	if cfg.VLAN > maxVLAN {
		return cfg, fmt.Errorf("%w: VLAN %d is out of range: 0 to %d", ErrInvalidConfig, cfg.VLAN, maxVLAN)
	}
	cfg.Limits.complete()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return cfg, nil
}

func completeSubnet(field string, p netip.Prefix, gw netip.Addr, family func(netip.Addr) bool) (netip.Prefix, netip.Addr, error) {
	if !p.IsValid() {
		if gw.IsValid() {
			return p, gw, fmt.Errorf("%w: gateway %s without %s", ErrInvalidConfig, gw, field)
		}
		return p, gw, nil
	}
	if !family(p.Addr()) {
		return p, gw, fmt.Errorf("%w: %s %s is of the wrong family", ErrInvalidConfig, field, p)
	}
	if p.Addr().BitLen()-p.Bits() < 2 {
		return p, gw, fmt.Errorf("%w: %s %s is too small", ErrInvalidConfig, field, p)
	}
	p = p.Masked()
	if !gw.IsValid() {
		gw = p.Addr().Next()
	}
	if !p.Contains(gw) || gw == p.Addr() {
		return p, gw, fmt.Errorf("%w: gateway %s is not a host of %s", ErrInvalidConfig, gw, p)
	}
	return p, gw, nil
}

// PortConfig describes the port of one sandbox.
type PortConfig struct {
	// ID names the port in Stats; Name is for logs.
	ID, Name string
	// MAC, Addr4 and Addr6 of the guest. Frames with another source are
	// dropped. One of the addresses may be zero.
	MAC          net.HardwareAddr
	Addr4, Addr6 netip.Addr
	// Link is GuestLink.File as it arrived here. Attach duplicates it and, on
	// success, closes the original.
	Link *os.File
	// Driver and HdrLen are GuestLink's; HdrLen 0 means 12.
	Driver string
	HdrLen int
	// MTU of this link, if it is not that of the others.
	MTU int
	// VLAN of the guest's frames without a tag; 0 means the network's. In another
	// one than the network's there is no gateway.
	VLAN uint16
	// Trunk lists VLANs of which the guest sends and gets frames with a tag. There
	// it may use any address that no other member has. Frames with other tags are
	// dropped.
	Trunk []uint16
	// HostPorts are TCP and UDP ports of the gateway that lead to the same
	// port of the host's 127.0.0.1, or else [::1]. Empty means that the host's
	// loopback is out of reach.
	HostPorts []uint16
	// Metadata lets the guest reach where clouds tell a machine its secrets:
	// 169.254.0.0/16 and a few other addresses.
	Metadata bool
}
