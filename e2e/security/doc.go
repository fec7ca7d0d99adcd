// Package security is the catalogue of attempts to get out of a sandbox or to do harm
// from inside, each a real program (package probe) in a real sandbox.
//
// Each attempt states how it is to be refused. After each, the outside is looked at: a
// file, a process, sockets and settings of the host that nobody may have touched. Where
// that is safe the same attempt is made once more without the protection, inside with
// it off or on the host as the same user, and must succeed there: an attempt that
// cannot succeed proves nothing.
//
// make test-security runs it; SBX_SECURITY_PEER=podman, docker, bwrap or runc makes the same
// attempts in one of these instead and prints how they end.
package security
