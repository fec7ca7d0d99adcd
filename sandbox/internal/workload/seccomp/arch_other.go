//go:build !amd64 && !386 && !arm64 && !arm && !riscv64

package seccomp

// arches is empty: no profile can be compiled here.
var arches []arch
