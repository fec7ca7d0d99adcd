// Package workload is the last stage before the user's program runs: it gives
// init the program's identity, limits and rights and then executes the program
// in its place. It also holds the pure functions that turn an image's
// configuration and the user's options into a Spec.
package workload
