// Package boxdir is the directory of one sandbox, containers/ID: who owns it, who
// may remove it, and which process it stands for.
//
//	containers/.lock    exclusive while a directory is made, claimed or removed
//	containers/.names   most names, see names.go
//	containers/ID/lock  exclusive for as long as the sandbox has an owner
//	containers/ID/name  its name
//	containers/ID/pid   its pid 1, see Process
//
// The owners of a sandbox share one open lock: the caller and the monitor, which
// got it as a descriptor. The kernel drops the lock when the last of them has
// gone, however it went, and a directory without an owner is a sandbox that does
// not run (see package record) or garbage; anybody may claim it. Every flock of a directory is taken under containers/.lock,
// so that none is seen between mkdir and flock, nor between the removal of the
// lock and of the directory: the lock is the last file to go.
//
// A pid 1 normally dies with its monitor by PR_SET_PDEATHSIG. The kernel forgets
// that request when a program with set-user-id bits is executed or ids are
// changed, and the workload may withdraw it. So whoever claims a directory ends
// the process that is recorded in it first.
package boxdir
