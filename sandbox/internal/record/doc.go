// Package record is what a sandbox is on disk, for commands that were not there
// when it was made: two files in its directory (see boxdir).
//
//	config.json  what was asked for and resolved; written once, before the start
//	state.json   what has become of it; written by the owner of the directory
//
// Both are replaced by a rename, so that readers need no lock and see one whole
// version or the other. A directory without state.json is that of a sandbox that
// is being made, or, without an owner, what a killed command left of one.
//
// A state that says running while the directory has no owner is that of a
// sandbox whose monitor was killed; whoever finds it repairs it.
//
// # Limits
//
// 16 MiB a file, of which a seccomp profile is the largest part that is known.
package record
