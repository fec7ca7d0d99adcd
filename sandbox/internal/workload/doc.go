// Package workload is the last stage before the user's program runs, and the
// pure functions that turn an image's configuration and the user's options
// into it.
//
// # From init to the program
//
// Exec is called in init, once the root is final, and replaces it by the
// program. Its order is what makes it safe:
//
//  1. Everything that can be wrong with the user's wishes is found: user and
//     groups (from the passwd and group files of the root, regular files of at
//     most 16 MiB), capabilities, seccomp profile.
//  2. With all rights: umask, limits, OOM score, session keyring, session and
//     terminal, leave for the user to open its standard streams again, working
//     directory (made if missing, as Docker does).
//  3. Rights go: ambient set, bounding set, groups and ids, then permitted and
//     effective set. A user other than root keeps the bounding set only, as
//     with Docker; nobody has inheritable capabilities.
//  4. With the user's rights: parent death signal (any change of ids clears
//     it), the check that the working directory is inside the root, the look-up
//     of the program.
//  5. All descriptors from 3 on become close-on-exec, no_new_privs if asked
//     for, signals neither blocked nor ignored.
//  6. The seccomp filter, then execve, which is all that has to pass it. To
//     load a filter without no_new_privs the thread keeps CAP_SYS_ADMIN until
//     here; execve computes the program's capabilities from its bounding set
//     and user alone, and makes the process dumpable again.
//
// Ids and capabilities change by raw system calls, on one thread: execve ends
// the others.
//
// Groups that only the image's group file gives, and that the user namespace
// does not map, are left out; any id the user asked for must be mapped. In a
// namespace that denies setgroups (single id) the caller's groups stay, shown
// as 65534.
//
// # Errors
//
// Errors of Exec are *Error around a *wire.Error with a Code, so that they can
// cross processes; FromWire and ExitStatus work on both sides.
//
// # Init
//
// With --init, RunInit stays as pid 1: it forwards signals, reaps orphans and
// is out of reach of ptrace, with CAP_KILL only and no_new_privs (in a binary
// that uses cgo, which cannot change all its threads, it keeps what it has). It
// has no seccomp filter; a workload with CAP_SYS_PTRACE can take it over and so
// get rid of its own.
package workload
