// Package e2e tests the whole program: the sbx binary, run by an ordinary user,
// with real images, servers and clients. Its tests need a built binary (make build)
// and are run by make test-e2e; see docs/testing.md.
package e2e
