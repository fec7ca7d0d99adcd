// Package load is the load generator of the bench: one program that serves and
// drives traffic on either end of a path, so that every path carries the same work.
//
// An agent is told what to do in JSON lines on its standard input and answers on
// its standard output, one request at a time. Its server answers on one TCP and one
// UDP port. A TCP connection starts with a header (see server.go) that says what it
// is for; UDP datagrams carry a session that a TCP connection of the same client has
// opened and later asks about.
//
// Bulk data is counted where it is received, over a window that begins after the
// warm-up by the receiver's own clock, so what lies in the path's buffers does not
// count. Connections are drained before an answer is given: nothing of one
// measurement runs into the next.
package load
