// Package netd is the process of one network: it hosts the switch and gateway
// stack (netstack.Network), the name server, the addresses and the published
// ports of every sandbox on it.
//
// # Life
//
//	Ensure    connect; or else, under the lock: connect again, start, connect
//	Main      the process: start message, bind the socket, serve, linger, leave
//	session   one connection of one monitor; the connection is the lease
//
// A network has the directory RuntimeDir/net/NAME:
//
//	lock        held (flock) by whoever starts a process or leaves
//	sock        SOCK_SEQPACKET, protocol in proto.go
//	state.json  subnets of the default network, for the process that follows a crash
//	log         standard error and log of the process, at most 1 MiB
//
// The process itself holds a flock on the directory for as long as it lives, so
// that there are never two, even if a starter was killed half-way. It leaves
// when the last connection has ended and the linger time has passed; it takes
// lock first, and stays if it cannot get it, since somebody is on the way in.
// Then it removes all files but lock. Whoever connected a moment too early
// reads the end of the connection before the answer to hello, and tries again.
//
// Killed with SIGKILL it leaves everything behind. The monitors see the end of
// their connections, and each calls Ensure, Lease with the addresses it had, and
// Attach with its duplicate of the link (see Keeper). Which addresses are whose is
// in a file that outlives every process, see package netdef. The names come back
// with the sandboxes; a question for one waits for it in the first 2 seconds.
//
// # Uplinks
//
// The device of an uplink is opened by its name when the process starts. One that was
// given as a descriptor comes with the start message; then the process stays until the
// network is removed, and each client gets a duplicate with its lease, for the process
// that follows this one. When a server outside gives a sandbox another address, its
// connection ends as if this process had, and the Keeper attaches it anew (Moved).
//
// # Names
//
// A sandbox has its name, the first 12 digits of its id and its aliases, each also
// with the network's name behind a dot. One that is on several networks asks the
// gateway of its first; a name that this network does not have is looked for in the
// others, by a question from process to process, before the host's servers.
//
// # Failure
//
// A panic in any goroutine, such as one of gVisor's, ends the process: that is
// one network, whose monitors start another process within milliseconds. Links
// and sandboxes stay; connections through the gateway are reset. Nothing is
// recovered in place, for a stack in an unknown state is worse than none.
//
// # Limits
//
// 1100 connections, of which as many as the address pool allows (1000) hold a
// lease; one for a sandbox whose last connection is ending waits up to 2 seconds
// for that. A connection that has not said hello after 10 seconds is closed. Each
// has at most 16 requests waiting, one of them at work; one more is answered
// with an error. A request body has at most 256 KiB. Guest sockets kept in
// advance: 8 of each family. What one client does wrong ends or slows that
// client's connection, no other.
//
// # Trust
//
// Both sides check the other's user id (SO_PEERCRED) besides the permissions of
// directory (0700) and socket (0600). Guests never reach this protocol: it is
// spoken by monitors, which are the user's own processes.
package netd
