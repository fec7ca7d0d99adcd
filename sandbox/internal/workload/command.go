package workload

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/internal/wire"
)

// lookupEnv finds the last value of a variable, as a shell would see it.
func lookupEnv(env []string, name string) (string, bool) {
	for _, kv := range slices.Backward(env) {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			return v, true
		}
	}
	return "", false
}

// lookPath finds the program as execvp does, with the rights of the calling
// thread. An empty element of PATH is the working directory.
func lookPath(file string, env []string) (string, error) {
	if file == "" {
		return "", commandError(CodeNotFound, file, "", "executable file not found in $PATH", 0, "give a command")
	}
	if strings.Contains(file, "/") {
		if err := executable(file); err != nil {
			return "", pathError(file, err)
		}
		return file, nil
	}
	path, ok := lookupEnv(env, "PATH")
	if !ok {
		path = DefaultPath
	}
	var denied error
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		full := strings.TrimSuffix(dir, "/") + "/" + file
		err := executable(full)
		if err == nil {
			return full, nil
		}
		// A directory of that name is not what was meant.
		if errors.Is(err, unix.EACCES) && denied == nil {
			denied = pathError(full, err)
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", commandError(CodeNotFound, file, "", "executable file not found in $PATH", 0,
		fmt.Sprintf("PATH in the sandbox is %q", path))
}

// executable says whether this thread's effective ids may execute the file.
func executable(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EISDIR
	}
	return unix.Faccessat(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS)
}

func pathError(path string, err error) error {
	var eno unix.Errno
	errors.As(err, &eno)
	switch eno {
	case unix.ENOENT, unix.ENOTDIR:
		return commandError(CodeNotFound, path, "stat "+path, "", eno, "")
	case unix.EISDIR:
		return commandError(CodeNotExecutable, path, "", "", eno, "")
	case unix.EACCES:
		fix := "set its execute permission in the image (chmod +x)"
		var fs unix.Statfs_t
		if unix.Statfs(path, &fs) == nil && fs.Flags&unix.ST_NOEXEC != 0 {
			fix = "it lies on a file system mounted noexec"
		}
		return commandError(CodeNotExecutable, path, "", "", eno, fix)
	}
	return commandError(CodeNotExecutable, path, "", "", eno, "")
}

// commandError has Docker's words: exec: "foo": reason.
func commandError(code, name, op, msg string, eno unix.Errno, fix string) error {
	switch {
	case op != "" && msg != "":
		msg = op + ": " + msg
	case msg == "":
		msg = op
	}
	return &Error{Wire: &wire.Error{Code: code, Step: fmt.Sprintf("exec: %q", name), Msg: msg, Errno: eno, Fix: fix}}
}

// execError explains why execve failed, now that the file is known to exist.
func execError(path string, eno unix.Errno) error {
	switch eno {
	case unix.ENOENT:
		if name := interpreter(path); name != "" {
			kind, fix := "ELF interpreter (dynamic loader)", "the program was built for another C library or architecture than the image's"
			if isScript(path) {
				kind, fix = "interpreter of its #! line", "install it in the image, or correct the line"
				if strings.HasSuffix(name, "\r") {
					fix = "the file has Windows line endings: convert it with dos2unix"
				}
			}
			return commandError(CodeNotFound, path, "", fmt.Sprintf("the %s %q does not exist in the sandbox", kind, name), eno, fix)
		}
		return commandError(CodeNotFound, path, "", "", eno, "")
	case unix.ENOEXEC:
		return commandError(CodeNotExecutable, path, "", "exec format error", 0, formatHint(path))
	case unix.EACCES:
		if name := interpreter(path); name != "" {
			if err := executable(name); err != nil {
				return commandError(CodeNotExecutable, path, "", fmt.Sprintf("its interpreter %q cannot be executed", name), eno, "")
			}
		}
		return pathError(path, eno)
	case unix.E2BIG:
		return commandError(CodeNotExecutable, path, "", "", eno, "make the arguments and the environment smaller, or the stack ulimit larger")
	case unix.EPERM:
		return commandError(CodeNotExecutable, path, "", "", eno, "the seccomp profile may forbid execve")
	}
	return commandError(CodeNotExecutable, path, "", "", eno, "")
}

// head reads the first bytes of a file the workload's user can read; nil if it
// cannot, and then there is nothing more to explain.
func head(path string, n int) []byte {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	b := make([]byte, n)
	m, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil
	}
	return b[:m]
}

func isScript(path string) bool { return bytes.HasPrefix(head(path, 2), []byte("#!")) }

// interpreter returns what the kernel would have run for the file: the program
// of a #! line or the PT_INTERP of an ELF file. Hostile files are fine, the
// reads are bounded.
func interpreter(path string) string {
	if b := head(path, 256); bytes.HasPrefix(b, []byte("#!")) {
		line, _, _ := bytes.Cut(b[2:], []byte("\n"))
		name, _, _ := strings.Cut(strings.TrimLeft(string(line), " \t"), " ")
		return name
	}
	f, err := elf.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz <= unix.PathMax {
			b := make([]byte, p.Filesz)
			if _, err := p.ReadAt(b, 0); err != nil {
				return ""
			}
			return strings.TrimRight(string(b), "\x00")
		}
	}
	return ""
}

// formatHint says why a file is no program for this machine.
func formatHint(path string) string {
	b := head(path, 20)
	switch {
	case b == nil:
		return ""
	case len(b) == 0:
		return "the file is empty"
	case !bytes.HasPrefix(b, []byte(elf.ELFMAG)):
		return "it is neither an ELF program nor a script: a script must begin with a line like #!/bin/sh"
	case len(b) < 20:
		return "the ELF file is truncated"
	}
	var order binary.ByteOrder = binary.LittleEndian
	if elf.Data(b[elf.EI_DATA]) == elf.ELFDATA2MSB {
		order = binary.BigEndian
	}
	m := elf.Machine(order.Uint16(b[18:]))
	if slices.Contains(machines[runtime.GOARCH], m) {
		return "the ELF file is damaged, or of a kind this kernel does not run"
	}
	return fmt.Sprintf("the program is for %s, this machine is %s: use an image for %s (--platform), or install qemu-user-static with binfmt support",
		strings.TrimPrefix(m.String(), "EM_"), runtime.GOARCH, runtime.GOARCH)
}

var machines = map[string][]elf.Machine{
	"amd64":   {elf.EM_X86_64, elf.EM_386},
	"386":     {elf.EM_386},
	"arm64":   {elf.EM_AARCH64, elf.EM_ARM},
	"arm":     {elf.EM_ARM},
	"riscv64": {elf.EM_RISCV},
	"loong64": {elf.EM_LOONGARCH},
	"ppc64le": {elf.EM_PPC64},
	"s390x":   {elf.EM_S390},
}
