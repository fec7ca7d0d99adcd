// Package boxfiles reads and writes files in the tree of a sandbox, for those outside
// who copy.
//
// Of a sandbox that runs, a process of its user namespace takes a copy of its mount
// namespace ([Main]): it sees the sandbox's volumes, bind mounts and tmpfs, and writes
// through the same mounts, read-only ones included. It is in none of the sandbox's other
// namespaces, so nothing in there sees it. Of a sandbox that does not run, a worker mounts
// root, volumes and bind mounts for itself ([Mount]).
//
// As with Docker, what is below /proc, /sys and /dev is the kernel's and not the
// sandbox's: they show what the root file system has there, and nothing is written to
// them.
//
// Paths are those of the sandbox. Links are followed inside of its root, whatever it
// does meanwhile; the work itself is done by descriptors, and follows none.
package boxfiles
