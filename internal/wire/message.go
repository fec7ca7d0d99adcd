package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Version is the protocol's. Both ends of a Conn are the same binary, except
// after an upgrade while sandboxes run; then the older side refuses.
const Version = 1

const (
	maxDatagram = 64 << 10
	maxBody     = 16 << 20
	maxFiles    = 32
)

// ErrVersion is returned for a message of another protocol version.
var ErrVersion = errors.New("the other process runs a different version of sbx")

// Message is the header of one datagram and, unless spilled, its body.
type Message struct {
	V    int    `json:"v"`
	Type string `json:"t"`
	// ID pairs a reply with its request; 0 for a message without reply.
	ID uint64 `json:"id,omitempty"`
	// Reply marks an answer to the request ID.
	Reply bool            `json:"re,omitempty"`
	Body  json.RawMessage `json:"b,omitempty"`
	// Spill says that the body is in the first descriptor.
	Spill bool `json:"spill,omitempty"`
	// Files names the descriptors, in order.
	Files []string `json:"files,omitempty"`
	Err   *Error   `json:"err,omitempty"`

	fds []*os.File
}

// Decode unmarshals the body into v.
func (m *Message) Decode(v any) error {
	if len(m.Body) == 0 {
		return nil
	}
	if err := json.Unmarshal(m.Body, v); err != nil {
		return fmt.Errorf("message %q: %w", m.Type, err)
	}
	return nil
}

// Take hands over the descriptor that the sender called name. The caller closes it.
func (m *Message) Take(name string) (*os.File, error) {
	for i, n := range m.Files {
		if n == name && i < len(m.fds) && m.fds[i] != nil {
			f := m.fds[i]
			m.fds[i] = nil
			return f, nil
		}
	}
	return nil, fmt.Errorf("message %q carries no descriptor %q", m.Type, name)
}

// CloseFiles closes the descriptors that nobody took.
func (m *Message) CloseFiles() {
	for i, f := range m.fds {
		if f != nil {
			f.Close()
			m.fds[i] = nil
		}
	}
}

// Descriptor is an *os.File, a *Handle or a connection.
type Descriptor interface {
	syscall.Conn
	io.Closer
}

// File is a descriptor to send, with its name. Sending does not close it.
type File struct {
	Name string
	File Descriptor
}

// spill puts a body into a memfd that can no longer change.
func spill(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("sbx-message", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "sbx-message")
	if _, err := f.Write(b); err != nil {
		f.Close()
		return nil, err
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, os.NewSyscallError("fcntl F_ADD_SEALS", err)
	}
	return f, nil
}

// parse decodes the header of a datagram.
func parse(b []byte) (*Message, error) {
	m := &Message{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	if m.V != Version {
		return nil, ErrVersion
	}
	if len(m.Files) > maxFiles {
		return nil, fmt.Errorf("message %q: %d descriptors named, limit %d", m.Type, len(m.Files), maxFiles)
	}
	return m, nil
}

// unspill reads a body that nobody can change or shorten while it is read.
func unspill(f *os.File) ([]byte, error) {
	fd, err := rawFd(f)
	if err != nil {
		return nil, err
	}
	const need = unix.F_SEAL_SHRINK | unix.F_SEAL_WRITE
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&need != need {
		return nil, errors.New("body is not a sealed memory file")
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Size() > maxBody {
		return nil, fmt.Errorf("body of %d bytes, limit %d", fi.Size(), maxBody)
	}
	b := make([]byte, fi.Size())
	_, err = f.ReadAt(b, 0)
	return b, err
}

func parseRights(oob []byte) []*os.File {
	cmsgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var files []*os.File
	for i := range cmsgs {
		fds, err := unix.ParseUnixRights(&cmsgs[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files
}
