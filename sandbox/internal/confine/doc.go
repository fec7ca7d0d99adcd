// Package confine takes from a process of sbx what it does not need any more, in named
// stages.
//
// A stage is tested by trying what it forbids, in a process that has shed it and in one
// that has not, and what must go on: package confinetest.
//
// All of it is for whole processes: Go runs on many threads, and the kernel keeps
// capabilities, no_new_privs and filters for each. Programs with cgo cannot change those
// of all threads, and keep their privileges.
package confine
