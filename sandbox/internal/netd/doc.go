// Package netd is the process that serves one network: the switch and gateway of
// package netstack, its name server and addresses, and the published ports of the
// sandboxes attached to it. It is an ordinary process of the user, in the host's
// namespaces, with no capability anywhere.
//
// It is started on demand by the first sandbox and leaves after the last one and a
// linger time. Its directory, RuntimeDir/net/NAME (0700), holds
//
//	lock        flock(2)ed to start a process and, by it, to leave: who holds it
//	            knows whether there is one
//	sock        the control socket, mode 0600
//	state.json  the leases, so that a process that follows a killed one gives
//	            nobody an address that is taken
//	log         what it has to say, at most 1 MiB and the file before
//
// A monitor's connection is its lease: when it ends, for whatever reason, the
// ports are closed, the link is closed, which lets the sandbox's network namespace
// go, and the address is free.
//
//	from      message    body           descriptors     answer
//	-------   --------   ------------   -------------   ---------------------
//	monitor   hello      Hello                          Hello
//	monitor   lease      LeaseRequest                   Lease
//	monitor   attach     Attach         link sockets    Attached
//	anybody   stats                                     Stats
//
// On the connection called sockets the roles are turned: netd asks the monitor for
// sockets made in the sandbox's network namespace.
//
//	netd      socket     SocketRequest                  empty; socket0, socket1...
//
// Limits: 1,000 connections, 16 requests in flight for each, messages as in
// internal/wire, 8 sockets for each request.
package netd
