// Package netdef knows the user's networks: what they are, and which sandbox has
// which address on them. It is files, so that both last; nobody has to run.
//
//	DataDir/networks/
//	    .lock               held (flock) by who changes anything here
//	    NAME.json           a network (Network)
//	    NAME.leases.json    the addresses of its sandboxes (Leases)
//	DataDir/containers/ID   as long as this is there, sandbox ID keeps its addresses
//
// New checks and completes a network: what the user left open is chosen such that
// it overlaps neither another network nor anything that the host reaches by itself.
// The default network has no file: its subnets are chosen when its process starts.
//
// A lease is taken by the network's process when a sandbox starts, and it is let go
// of by nobody: whoever takes the next one drops those whose sandbox is no more. So
// a sandbox has the same address after a stop, a crash or a restart of the machine.
//
// # Limits
//
// 1000 networks; 1000 sandboxes on each, fewer on a small subnet; 64 KiB of labels
// and options, 256 auxiliary addresses.
package netdef
