// Package harness runs the real sbx binary for the end-to-end tests, as an
// ordinary user, and looks after each test whether anything is left: processes,
// mounts, sockets, listening ports, files.
//
// The test process makes itself the reaper of its descendants
// (PR_SET_CHILD_SUBREAPER), so that a process which outlives the sbx that started
// it stays in sight whatever its user id, name or session.
//
// The binary is $SBX_BIN, else bin/sbx in the checkout.
package harness
