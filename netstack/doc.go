// Package netstack is the network of sandboxes: links into their namespaces, a
// switch between them, and a gateway to the world, all in an ordinary process.
//
// # The way of a frame
//
// A link is a descriptor that carries [virtio-net header | Ethernet frame]: a
// TAP, or a packet socket on the far end of a veth pair (SetupGuest makes
// both, in the guest's namespace). One goroutine per link reads frames and
// gives each one to the switch:
//
//	link.read -> Port.input: MAC, IP, ARP and ND sources are the port's own, or drop
//	  802.1Q tag       taken out: it says which VLAN the frame belongs to
//	  ARP, ND          answered here for the gateway and for members, not passed on
//	  IGMP, MLD        dropped: every member gets every group
//	  MAC of a member  written to its link as it is, super-segments included
//	  group address    written to every other link of the VLAN, within a budget
//	  MAC of gateway   Network.route: fragments joined, checksum verified, policy, then
//	     TCP           gVisor; its SYN starts a dial on the host, and the answer decides
//	                   what the guest sees: SYN-ACK, RST, ICMP unreachable, or silence
//	     UDP           one host socket per guest source port, errors relayed as ICMP
//	     ICMP echo     an unprivileged ping socket per identifier
//
// gVisor serves TCP alone. Its only NIC has no link layer: Network.deliver
// finds the port by the destination address and writes virtio and Ethernet
// header itself, so that no neighbour table exists that a guest could fill.
//
// # Trains of datagrams
//
// Consecutive datagrams of one flow, all equally long but for the last one, cross
// each side in one system call: UDP_SEGMENT and UDP_GRO on host sockets, a
// super-segment on the link (Linux 6.2; before, one by one). From a guest they are
// collected while its link has more to read: at most 64 datagrams of at most 16
// KiB for each of 8 flows, and nothing waits for longer than it takes to read 256
// KiB. What the host's kernel does not take together is sent one by one, so that an
// error is about its datagram. Each side of a host socket has a buffer of 1 MiB, as
// far as net.core.rmem_max and wmem_max allow. A TAP drops what its queue has no
// room for: before Linux stops the sender there, a guest that sends faster than
// its network process reads loses the rest, and only the guest's own counters of
// its interface show it.
//
// # Datagrams larger than the host's MTU
//
// Linux sets don't-fragment on ordinary datagrams, too, and itself cuts what
// exceeds the MTU: behind a link of 65520 bytes nothing, so that 5 KB for a DNS
// server arrive here in a form that no network in front of the host takes. If the
// host's kernel does not send a datagram in one piece because of that bit, then
//
//   - up to 1500 bytes, it is dropped and the guest gets "too big" about it, as
//     behind every router: the path is narrower than an ordinary link.
//   - above, it goes out in fragments, and the guest's kernel is told the MTU,
//     once per destination and in a way that no socket notices. From then on the
//     kernel cuts what ordinary sockets send, and refuses (EMSGSIZE) what sockets
//     with IP_PMTUDISC_DO send, as it would behind an ordinary link.
//   - a sender that ignores what its kernel knows (IP_PMTUDISC_PROBE: tracepath,
//     QUIC stacks) gets its first datagram above 1500 bytes per destination
//     through, and "too big" about the others.
//
// An MTU that a router on the way reports is passed on to the guest. A probe with
// IP_PMTUDISC_PROBE above 1500 bytes may thus succeed once in five minutes where
// the path is not that wide.
//
// # VLANs
//
// A port belongs to one VLAN with its frames without a tag (PortConfig.VLAN), and
// may be a trunk of others. Where the switch does not know the addresses that a
// guest has in a VLAN, i.e. on trunks, ARP and neighbour discovery are passed on
// to it and from it; it may use what no other member and not the gateway has. The
// gateway is in the network's own VLAN. Inside the switch no frame has a tag, and
// the offsets in its virtio header are those without one. A frame with two tags,
// or one of a provider's bridge, is dropped.
//
// # Uplinks
//
// With Config.Uplink the network is a part of a segment outside: see Uplink. A
// member whose PortConfig has no address of a family uses what that segment gives
// it, by a DHCP client of its own, by Network.DHCP, or by router advertisements.
//
// # Limits
//
// See Limits for the bounds of one port and Stats for the counter that goes up
// when one is reached. A datagram has at most 65,507 bytes of payload (65,487
// over IPv6 with 40 bytes of header). Joining fragments takes up to 64
// datagrams or 1 MiB per port, for 15 seconds. A port is a trunk of at most 64
// VLANs. A network keeps at most 4096 addresses from DHCP, each with 8 messages
// that wait for its client. A frame that cannot be written at once is dropped: there are no queues
// here besides those of the kernel and of TCP.
//
// # What a guest cannot reach
//
// Loopback, link-local, a cloud's metadata (unless PortConfig.Metadata), multicast and unspecified addresses in every notation,
// addresses of its own subnet that no member has, and the gateway except for
// port 53, the ports in PortConfig.HostPorts and, with Config.Hairpin, what
// listens on the host's own address, which it reaches under that address as well.
// See Internal, Isolate and Private of Config for what else may be closed.
package netstack
