// Package cgroup limits, measures, freezes and kills what runs in a sandbox, through
// a part of the cgroup v2 tree that belongs to the user.
//
// # How it works
//
// Find only reads. It looks for the two ways in which an ordinary user gets a part of
// the tree, and New takes the first that works:
//
//	systemd   the user's service manager, asked over D-Bus (its bus, else its own
//	          socket) for the transient scope sbx-ID.scope with Delegate=yes. A login
//	          session's own scope is root's; the manager has the monitor moved out of it.
//	subtree   the nearest group at or above this process's own that the user may write
//	          to and that may be divided, as in a container with a writable cgroup v2.
//
// A group that has processes can give no controller to its children, so a Group is a
// directory with leaves:
//
//	sbx-ID.scope/          or BASE/sbx-ID/
//	    monitor/           the monitor and the storage driver; not in a subtree, where
//	                       they stay where they are
//	    box/               the workload: Limits, Stats, Freeze, Kill and Watch are about it
//
// The first process of the workload is born in box/ (CLONE_INTO_CGROUP, with the
// descriptor that Box returns): there is no moment at which it is not limited. It
// unshares its cgroup namespace afterwards, whose root is then box/. The kernel lets
// no process change the limits of its namespace's root where the tree is mounted with
// nsdelegate, as systemd does; elsewhere a workload with CAP_SYS_ADMIN could.
//
// What competes with other sandboxes is the whole group: weights and the memory
// reservation are set on it too, and systemd is told (Keep), or it would set them back
// at its next daemon-reload. What serves several sandboxes has a scope of its own
// (Settle).
//
// A directory says everything, so any process of the user can Open it. systemd removes
// a scope when its last process has ended; Remove does the rest, and List finds by its
// id what a killed process has left.
//
// Limits have Docker's names, syntax and checks; runc's library converts them
// (--cpu-shares to cpu.weight, --memory-swap to memory.swap.max) and writes and reads
// the files. Waiting (frozen, empty, out of memory) is for events of the kernel, not
// for time to pass.
//
// # Limits
//
//   - A subtree between the groups of a systemd that cannot be asked is still systemd's:
//     when a unit beside it ends, systemd may take a controller from it, and with that
//     its limits.
//   - A stock systemd delegates cpu, memory and pids. For io and cpuset an
//     administrator must write FixDelegate's file; an error says so.
//   - --cpus needs CONFIG_CFS_BANDWIDTH, --blkio-weight one of io.weight and
//     io.bfq.weight, --memory-swap a kernel that counts swap. Without the last,
//     --memory alone limits memory only.
//   - cgroup v2 has no real-time budgets, no swappiness and no way to switch the OOM
//     killer off.
//   - Freeze needs Linux 5.2, birth in a group 5.7, cgroup.kill 5.14 (before that the
//     processes are frozen and killed one by one), memory.peak 5.19.
//   - A call of systemd may take 30 s, freezing 10 s, the death of what was killed 10 s.
package cgroup
