// Package userns maps ids into user namespaces and starts processes in new
// namespaces.
//
// # Id maps
//
// [ResolveMapping] decides which ids a sandbox gets. With subordinate ids
// (/etc/subuid, /etc/subgid, or what nsswitch.conf names for them) and usable
// newuidmap and newgidmap, container id 0 is the user and 1, 2, 3... are the
// subordinate ids in the order in which they are granted. Without them only id 0
// exists inside ("single"). "keep-id" gives the user the same id inside as
// outside. A process with CAP_SETUID and CAP_SETGID (root, or root of an outer
// container) needs no helper: it writes the maps itself, and is limited to the
// ids that its own namespace has.
//
// # Start and Join
//
// The child is a program, most often the caller's own binary under another
// argv[0]. It is cloned straight into its namespaces and executed with every
// capability raised into the ambient set, so it has them after the exec although
// its uid is not mapped yet. Then:
//
//	parent (Start)                                   child (Join)
//	clone(NEWUSER|...) + exec            ---->       takes descriptor 3
//	newuidmap, newgidmap (or writes
//	  setgroups, uid_map, gid_map)
//	                        "mapped" {files, setgroups}
//	                                     ---->       closes descriptors that were not meant for it
//	                                                 leaves the user's supplementary groups
//	    ... the caller's own messages, both ways ...
//	                        "error" {step, path, errno, msg, fix, stack}
//	                                     <----       Report, Recover: only where something failed
//
// A child learns of its parent's death by the end of the control connection.
// Spec.Pdeathsig is the second belt; it follows the thread that cloned the child,
// so Start keeps that thread for as long as the child lives.
//
// # Limits
//
// A map has at most 340 extents (the kernel's limit). A child takes at most 64
// extra descriptors. The helpers newuidmap and newgidmap must answer within 10
// seconds. A sub-id file is read up to 16 MiB; lines over 4 KiB are skipped.
package userns
