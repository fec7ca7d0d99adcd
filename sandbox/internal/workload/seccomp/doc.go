// Package seccomp compiles seccomp profiles in Docker's format to classic BPF
// and loads them, in pure Go: libseccomp's bindings need cgo.
//
// A profile comes from github.com/moby/profiles (the default one too), which
// applies its conditions on capabilities, kernel and architecture. Names are
// turned into numbers by tables generated from golang.org/x/sys. A program is
// built for the native architecture and those its kernel also runs, if the
// profile lists them:
//
//	load arch -> per architecture: load nr -> binary search over ranges of
//	numbers with the same outcome -> return, or compare arguments
//
// The default profile on amd64 with x86 and x32 has about 350 instructions (the
// kernel allows 4096) and decides most calls after about 12 of them.
//
// # Meaning of a profile
//
// It is that of runc with libseccomp, except where noted:
//
//   - Names an architecture does not have are ignored.
//   - A rule without arguments wins over those with; the first one of several
//     wins. Of rules with arguments the first that matches wins. All conditions
//     of a rule must hold, except that if it names an argument twice, any one
//     does, as in runc.
//   - A rule whose action is the default one is ignored.
//   - A call with a higher number than every call the profile names is newer
//     than the profile: it fails with ENOSYS, so that the C library falls back
//     to an older one, unless the default action is allow, log or trace.
//   - A call by an architecture the profile does not list kills the process
//     (libseccomp: the thread).
//   - On x86 and other architectures with socketcall and ipc, a rule without
//     arguments for a multiplexed call applies to that way of calling it too.
//   - Where the kernel takes an argument as a 32-bit integer, only its low half
//     is compared, whatever the architecture. libseccomp compares 64 bits, so
//     that socket(AF_VSOCK + 1<<32) passes a filter that forbids AF_VSOCK.
//
// The default profile is Docker's, except that without CAP_NET_ADMIN sockets are those
// of five families: Unix, IPv4, IPv6, netlink and packet. And 32-bit programs on x86 can
// make none through socketcall, whose arguments no filter sees and which would get
// around every such rule, unless the profile is Builtin32.
//
// SCMP_ACT_NOTIFY and a listener are not supported.
package seccomp
