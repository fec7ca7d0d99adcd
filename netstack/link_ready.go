package netstack

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The kernel makes a new link and its IPv6 addresses usable on work queues, some
// milliseconds after the calls that ask for it. A frame that arrives before is
// lost: if that is the reply to the guest's first neighbour discovery, the next
// try is a second later. So SetupGuest waits.

const (
	readyTimeout = 2 * time.Second
	readyPoll    = 500 * time.Microsecond
)

// awaitReady waits until both ends of a link work.
func awaitReady(cfg GuestConfig, link *GuestLink) error {
	h, err := newHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := poll(func() (string, error) { return h.notReady(cfg) }); err != nil {
		return fmt.Errorf("%s: %w", cfg.Name, err)
	}
	if link.Driver != DriverPacket {
		return nil
	}
	far, err := farNamespaceOf(link.File)
	if err != nil {
		return err
	}
	defer far.close()
	return far.do(func() error {
		h, err := newHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		if err := poll(func() (string, error) { return h.linkNotReady(peerName) }); err != nil {
			return fmt.Errorf("%s, the far end of %s: %w", peerName, cfg.Name, err)
		}
		return nil
	})
}

// poll asks until nothing is missing.
func poll(missing func() (string, error)) error {
	for start := time.Now(); ; time.Sleep(readyPoll) {
		what, err := missing()
		if err != nil {
			return fmt.Errorf("ask whether it is ready: %w", err)
		}
		if what == "" {
			return nil
		}
		if time.Since(start) > readyTimeout {
			return fmt.Errorf("not ready after %v: %s", readyTimeout, what)
		}
	}
}

// notReady says what the guest's end lacks, nothing if it is ready.
func (h handle) notReady(cfg GuestConfig) (string, error) {
	if what, err := h.linkNotReady(cfg.Name); what != "" || err != nil {
		return what, err
	}
	for _, p := range cfg.Addrs {
		if !p.Addr().Is6() || cfg.MTU < minMTU6 {
			continue
		}
		routes, err := h.RouteGet(p.Addr().AsSlice())
		if err != nil && !errors.Is(err, unix.ENETUNREACH) {
			return "", err
		}
		if len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL {
			return fmt.Sprintf("%s is not a local address yet", p.Addr()), nil
		}
	}
	return "", nil
}

func (h handle) linkNotReady(name string) (string, error) {
	l, err := h.LinkByName(name)
	if err != nil {
		return "", err
	}
	if s := l.Attrs().OperState; s != netlink.OperUp && s != netlink.OperUnknown {
		return "the link is " + s.String(), nil
	}
	return "", nil
}

// farNamespaceOf returns the namespace that a packet link's socket is in.
func farNamespaceOf(f *os.File) (*farNamespace, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	far := &farNamespace{fd: -1}
	cerr := rc.Control(func(sock uintptr) {
		fd, _, errno := unix.Syscall(unix.SYS_IOCTL, sock, unix.SIOCGSKNS, 0)
		if errno != 0 {
			err = os.NewSyscallError("ioctl(SIOCGSKNS)", errno)
			return
		}
		far.fd = int(fd)
		unix.CloseOnExec(far.fd)
	})
	if err = errors.Join(cerr, err); err != nil {
		return nil, fmt.Errorf("find the namespace of the packet link: %w", err)
	}
	return far, nil
}
