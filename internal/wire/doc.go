// Package wire carries control messages between the processes of sbx: the
// command, the monitor, a sandbox's init and a network's process.
//
// A Conn is one end of a Unix SOCK_SEQPACKET socket. Each datagram is one JSON
// [Message], with file descriptors beside it (SCM_RIGHTS) that the header names
// in order, so that neither side ever guesses what a descriptor is. A body that
// does not fit into a datagram travels in a sealed memfd, which is then the
// first descriptor.
//
// Every request is answered: with a body, or with an [Error] that says which
// step failed, on what, and with which errno, so that the failure of a child
// process reaches its parent as data and not as a line on stderr.
//
// Limits: a datagram of 64 KiB, a spilled body of 16 MiB, 32 descriptors a
// message (31 beside a spilled body). What exceeds them is refused by both sides,
// except that an Error is shortened until it fits. Descriptors that nobody asked
// for are closed. A peer that does not read for 30 seconds makes a send fail.
package wire
