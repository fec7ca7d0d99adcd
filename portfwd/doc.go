// Package portfwd publishes ports of a sandbox on the host.
//
// # How it works
//
// ParsePublish reads Docker's -p grammar into specs; a Manager listens for each
// and forwards by one of four drivers:
//
//	direct   client -> listener -> splice(2) -> socket made in the guest's netns -> guest
//	stack    client -> listener -> gateway stack, with the client's address -> guest's link -> guest
//	auto     direct for a client on this host, stack for all others (the default)
//	builtin  client -> RootlessKit's builtin driver, parent here, child in the guest's netns
//
// direct is the fastest: the guest's kernel takes the bytes straight from the
// host's. The price is that the guest sees its own address as the client's.
// stack keeps the client's address and port, TCP and UDP, IPv4 and IPv6; a client
// without an address that the guest could answer (127.0.0.1, link-local, one in
// the guest's own subnet, one of the other family) appears as the gateway with
// the client's port.
//
// A port without host address listens on 0.0.0.0 and [::], as with Docker, by
// one socket each; a host without IPv6 gets the first only. A host address
// listens there only. Host port 0 takes a port that is free for both families, and
// a range of host ports for one container port the first such one of it.
//
// The target is the guest's address on its link, never its loopback, of the
// client's family; if that refuses, the other family is tried.
//
// TCP: a connection that the guest refuses is reset, not accepted and closed; an
// end of stream and a reset are passed on as what they are. The reset of one end
// overtakes what the other has not made room for. (builtin cannot: a client of a
// closed guest port sees its connection accepted and then ended.)
// UDP: a flow per client and host address, replies from the address that the
// client talked to. A removed port, and Close, reset the port's connections.
//
// # Limits
//
//	published ports                       4,096, ranges expanded (MaxSpecs)
//	TCP connections                       4,096, then reset
//	guest connections being set up        128 a port, then the clients wait in the backlog
//	listen backlog                        1,024 or net.core.somaxconn
//	time for the guest to answer a SYN    10 s
//	UDP flows                             2,048, then datagrams of new clients are dropped
//	a flow's idle time                    180 s, 30 s until the first reply
//	datagrams that wait for their flow    32 a flow, 8 MiB in all
//	guest sockets made in advance         16 a family
//	pipes                                 1 MiB for the first 16 in use, 256 KiB up to 64, then 64 KiB
//
// All but the first and the last can be set in Config.Limits. Stats counts what
// was dropped or reset. An idle direct connection costs two descriptors and about
// half a KiB; a direction that has bytes on their way, a pipe more. All of them
// share one goroutine (one for two cores, at most four) and its epoll descriptor.
// A connection through the stack costs three goroutines. When the process is out of
// descriptors, accepting waits (5 ms to 1 s) and copying goes through memory.
//
// Limits of the builtin driver are RootlessKit's own: none on connections, a
// 64 KiB buffer per UDP port and client, flows idle for 90 s, no counters, and UDP
// replies leave from the host's first address.
//
// IPv6 addresses with a zone cannot be published
// on. SCTP is not forwarded.
package portfwd
