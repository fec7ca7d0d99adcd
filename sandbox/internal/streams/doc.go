// Package streams carries what a workload writes to those who want it: its log
// and the sessions that are attached to it.
//
// An [Output] reads one end of a pipe, or a terminal, and writes each piece to
// the log and then to every session, in order. A session is a descriptor that
// somebody passed in. There are two kinds:
//
//   - The primary one is the caller that the sandbox runs for. It is waited for
//     as long as it takes, as if it were at the other end of the workload's pipe
//     itself; when it goes away, the workload's next write fails, as behind
//     head(1).
//   - Any other looks on. When it takes nothing for 10 seconds it is let go, and
//     the workload goes on. What it missed is in the log.
//
// # Limits
//
// 64 KiB are read at once; there is no other buffer. 16 sessions an output.
package streams
