package workload

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// elf32 is a static i386 program: mov eax, NR; mov ebx.. ; int 0x80; then
// exit(-eax & 0x7f), so that the exit status is the errno.
func elf32(nr, ebx, ecx, edx uint32) string {
	le := func(v uint32) string { return string([]byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)}) }
	const base, head = 0x08048000, 52 + 32
	code := "\xb8" + le(nr) + "\xbb" + le(ebx) + "\xb9" + le(ecx) + "\xba" + le(edx) + "\xcd\x80" +
		"\x89\xc3" + // mov ebx, eax
		"\x85\xdb" + // test ebx, ebx
		"\x79\x02" + // jns +2: a descriptor or 0 means success
		"\xf7\xdb" + // neg ebx
		"\x79\x00" +
		"\xb8" + le(1) + "\xcd\x80"
	size := uint32(head + len(code))
	return "\x7fELF\x01\x01\x01" + strings.Repeat("\x00", 9) +
		"\x02\x00\x03\x00" + le(1) + le(base+head) + le(52) + le(0) + le(0) + "\x34\x00\x20\x00\x01\x00\x00\x00\x00\x00\x00\x00" +
		le(1) + le(0) + le(base) + le(base) + le(size) + le(size) + le(5) + le(0x1000) + code
}

// 32-bit programs on a 64-bit kernel: numbers are their own, arguments are
// filtered too.
func TestSeccomp32Bit(t *testing.T) {
	root := newRoot(t)
	for _, tt := range []struct {
		name         string
		nr, ebx, ecx uint32
		profile      string
		status       int
	}{
		{"getuid32", 199, 0, 0, "", 0},
		{"mount", 21, 0, 0, "", errnoPerm},
		{"AF_VSOCK", 359, unix.AF_VSOCK, unix.SOCK_STREAM, "", errnoPerm},
		{"socketcall socket", 102, 1, 0, "", errnoNoSys},
		{"socketcall socketpair", 102, 8, 0, "", errnoNoSys},
		{"socketcall connect", 102, 3, 0, "", int(unix.EFAULT)},
		{"socketcall accept4", 102, 18, 0, "", int(unix.EFAULT)},
		{"socketcall of the future", 102, 99, 0, "", errnoPerm},
		{"socketcall socket, allowed", 102, 1, 0, "builtin-32bit", int(unix.EFAULT)},
		{"AF_VSOCK, socketcall allowed", 359, unix.AF_VSOCK, unix.SOCK_STREAM, "builtin-32bit", errnoPerm},
		{"socket", 359, unix.AF_INET, unix.SOCK_STREAM, "", 3},
		{"personality", 136, 0x40000, 0, "", errnoPerm},
		{"clone user", 120, unix.CLONE_NEWUSER | unix.CLONE_FS, 0, "", errnoPerm},
		{"of the future", 1000, 0, 0, "", errnoNoSys},
		{"not listed architecture", 199, 0, 0, `{"defaultAction":"SCMP_ACT_ALLOW"}`, 128 + int(unix.SIGSYS)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			write(t, root, "prog32", 0o755, elf32(tt.nr, tt.ebx, tt.ecx, 0))
			r := run(t, setup{Root: root, Spec: Spec{Args: []string{"/prog32"}, Seccomp: tt.profile}})
			if r.err != nil {
				t.Fatalf("this kernel does not run 32-bit programs, or the program is wrong: %v", r.err)
			}
			if r.status != tt.status {
				t.Errorf("status %d, want %d", r.status, tt.status)
			}
		})
	}
}
