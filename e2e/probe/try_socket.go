package probe

import (
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socketAttempts want sockets that a sandbox has no use for, or others' ends.
var socketAttempts = map[string]attempt{
	"rawsock":   plain(func() error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) }),
	"vsock":     plain(func() error { return socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0) }),
	"packet":    plain(func() error { return socket(unix.AF_PACKET, unix.SOCK_RAW, 0) }),
	"alg":       plain(func() error { return socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0) }),
	"bluetooth": plain(func() error { return socket(unix.AF_BLUETOOTH, unix.SOCK_RAW, 1) }),
	"can":       plain(func() error { return socket(unix.AF_CAN, unix.SOCK_RAW, unix.CAN_RAW) }),
	"tipc":      plain(func() error { return socket(unix.AF_TIPC, unix.SOCK_RDM, 0) }),
	"rds":       plain(func() error { return socket(unix.AF_RDS, unix.SOCK_SEQPACKET, 0) }),
	"smc":       plain(func() error { return socket(unix.AF_SMC, unix.SOCK_STREAM, 0) }),
	"kcm":       plain(func() error { return socket(unix.AF_KCM, unix.SOCK_DGRAM, 0) }),
	"nfc":       plain(func() error { return socket(unix.AF_NFC, unix.SOCK_RAW, 0) }),
	"qipcrtr":   plain(func() error { return socket(unix.AF_QIPCRTR, unix.SOCK_DGRAM, 0) }),
	"xdp":       plain(func() error { return socket(unix.AF_XDP, unix.SOCK_RAW, 0) }),
	"audit":     plain(audit),
	"unix":      func(a []string) error { return reach("unix", a[0]) },
	"request":   func(a []string) error { return request(a[0]) },
	"abstract":  func(a []string) error { return reach("unix", "@"+a[0]) },
	"tcp":       func(a []string) error { return reach("tcp", a[0]) },
	"resolve":   resolve,
}

func socket(family, typ, proto int) error {
	return closing(unix.Socket(family, typ|unix.SOCK_CLOEXEC, proto))
}

func bindTCP(port int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: port}), unix.Close(fd))
}

// audit writes a line into the audit log of the kernel.
func audit() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_AUDIT)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const userMessage = 1005 // AUDIT_USER
	msg := []byte{20, 0, 0, 0, userMessage & 0xff, userMessage >> 8, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 's', 'b', 'x', 0}
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 64)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return err
	}
	if n >= 20 && buf[4] == unix.NLMSG_ERROR {
		if e := -int32(uint32(buf[16]) | uint32(buf[17])<<8 | uint32(buf[18])<<16 | uint32(buf[19])<<24); e != 0 {
			return syscall.Errno(e)
		}
	}
	return nil
}

func reach(network, addr string) error {
	c, err := net.DialTimeout(network, addr, 3*time.Second)
	var (
		timeout net.Error
		name    *net.DNSError
	)
	if errors.As(err, &name) {
		return unix.ENOENT
	}
	if errors.As(err, &timeout) && timeout.Timeout() {
		return unix.ETIMEDOUT
	}
	if err != nil {
		return err
	}
	return c.Close()
}

// request asks one of sbx's own processes something. An answer, though it says that there is
// no such request, is what was wanted; that the other end hangs up is ECONNRESET.
func request(path string) error {
	c, err := net.DialTimeout("unixpacket", path, 3*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte(`{"v":1,"t":"none","id":1}`)); errors.Is(err, unix.EPIPE) {
		return unix.ECONNRESET
	} else if err != nil {
		return err
	}
	n, err := c.Read(make([]byte, 4096))
	if n == 0 && (err == nil || errors.Is(err, io.EOF)) {
		return unix.ECONNRESET
	}
	return err
}

// resolve asks for a name; no answer is ENOENT.
func resolve(args []string) error {
	_, err := net.LookupHost(args[0])
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return unix.ENOENT
	}
	return err
}
