package portfwd

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"github.com/rootless-sbx/sbx/internal/wire"
)

var (
	// ErrClosed is returned by a Manager after Close.
	ErrClosed = errors.New("the port manager is closed")
	// ErrUnknownPort is returned by RemovePort for an id that is not published.
	ErrUnknownPort = errors.New("no such published port")
	// ErrTooManyPorts is returned by AddPort over Limits.Ports.
	ErrTooManyPorts = errors.New("too many published ports")
)

// ErrPortInUse says that another listener has the host port, or the wildcard
// address with that port.
type ErrPortInUse struct {
	// Proto is "tcp" or "udp".
	Proto string
	// Addr is what could not be bound.
	Addr netip.AddrPort
	// Last is the last of several ports, of which all were in use; 0 for one.
	Last uint16
	// Owner says who holds it, in words; empty if it is not known.
	Owner string
	// OwnerPID is the holder's, 0 if it belongs to another user or has gone.
	OwnerPID int
	// Free is a port near it that could be bound a moment ago; 0 if none was found.
	Free uint16
}

func (e *ErrPortInUse) Error() string { return wireText(e.ToWire()) }

// Unwrap makes errors.Is(err, syscall.EADDRINUSE) work.
func (e *ErrPortInUse) Unwrap() error { return syscall.EADDRINUSE }

// ToWire returns the error as it travels between processes.
func (e *ErrPortInUse) ToWire() *wire.Error {
	w := &wire.Error{Code: "port-in-use", Step: "publish", Path: addrText(e.Proto, e.Addr), Errno: syscall.EADDRINUSE}
	if e.Owner != "" {
		w.Msg = "in use by " + e.Owner
	}
	if e.Last != 0 {
		w.Path = fmt.Sprintf("%s-%d/%s", e.Addr, e.Last, e.Proto)
		w.Msg, w.Fix = "all of these ports are in use", "choose other host ports, or stop a listener"
	} else if e.Free != 0 {
		w.Fix = fmt.Sprintf("choose another host port, for example %d, or stop the other listener", e.Free)
	} else {
		w.Fix = "choose another host port, or stop the other listener"
	}
	return w
}

// As lets wire.ToError, and so every reply between processes, find the wire form.
func (e *ErrPortInUse) As(target any) bool { return asWire(target, e.ToWire) }

// ErrPrivilegedPort says that the kernel keeps the host port for privileged processes.
type ErrPrivilegedPort struct {
	Proto string
	Addr  netip.AddrPort
	// Start is the first port that anybody may bind (net.ipv4.ip_unprivileged_port_start,
	// which holds for IPv6 too).
	Start int
	// Free is an unprivileged port that could be bound a moment ago; 0 if none was found.
	Free uint16
}

func (e *ErrPrivilegedPort) Error() string { return wireText(e.ToWire()) }

// Unwrap makes errors.Is(err, syscall.EACCES) work.
func (e *ErrPrivilegedPort) Unwrap() error { return syscall.EACCES }

// ToWire returns the error as it travels between processes.
func (e *ErrPrivilegedPort) ToWire() *wire.Error {
	w := &wire.Error{
		Code: "port-privileged", Step: "publish", Path: addrText(e.Proto, e.Addr), Errno: syscall.EACCES,
		Msg: fmt.Sprintf("ports below %d are for privileged processes (%s = %d)", e.Start, portStartSysctl, e.Start),
	}
	w.Fix = fmt.Sprintf("choose a host port from %d on", e.Start)
	if e.Free != 0 {
		w.Fix = fmt.Sprintf("use host port %d", e.Free)
	}
	w.Fix += fmt.Sprintf(", or have an administrator run: sudo sysctl -w %s=%d", portStartSysctl, e.Addr.Port())
	return w
}

// As lets wire.ToError find the wire form.
func (e *ErrPrivilegedPort) As(target any) bool { return asWire(target, e.ToWire) }

// ErrNoSuchAddress says that the host has no such address to listen on.
type ErrNoSuchAddress struct {
	Proto string
	Addr  netip.AddrPort
}

func (e *ErrNoSuchAddress) Error() string { return wireText(e.ToWire()) }

// Unwrap makes errors.Is(err, syscall.EADDRNOTAVAIL) work.
func (e *ErrNoSuchAddress) Unwrap() error { return syscall.EADDRNOTAVAIL }

// ToWire returns the error as it travels between processes.
func (e *ErrNoSuchAddress) ToWire() *wire.Error {
	return &wire.Error{
		Code: "port-address", Step: "publish", Path: addrText(e.Proto, e.Addr), Errno: syscall.EADDRNOTAVAIL,
		Msg: fmt.Sprintf("%s is not an address of this host", e.Addr.Addr()),
		Fix: "publish on an address that `ip addr` lists, or leave it out for all addresses",
	}
}

// As lets wire.ToError find the wire form.
func (e *ErrNoSuchAddress) As(target any) bool { return asWire(target, e.ToWire) }

// ToWire of a bad spec has no errno: nothing was tried.
func (e *SpecError) ToWire() *wire.Error {
	return &wire.Error{Code: "port-spec", Step: "publish", Path: strconv.Quote(e.Spec), Msg: e.Why, Fix: e.Fix}
}

// As lets wire.ToError find the wire form.
func (e *SpecError) As(target any) bool { return asWire(target, e.ToWire) }

func asWire(target any, w func() *wire.Error) bool {
	t, ok := target.(**wire.Error)
	if ok {
		*t = w()
	}
	return ok
}

func wireText(w *wire.Error) string {
	s := w.Error()
	if w.Fix != "" {
		s += " (" + w.Fix + ")"
	}
	return s
}

func addrText(proto string, a netip.AddrPort) string {
	return net.JoinHostPort(a.Addr().String(), strconv.Itoa(int(a.Port()))) + "/" + proto
}
