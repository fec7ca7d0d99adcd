package probe

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// who tells each client its address and who has answered, by TCP and UDP.
func who(ports []string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	errs := make(chan error)
	for _, p := range ports {
		l, err := net.Listen("tcp", listenAddr(p))
		if err != nil {
			return err
		}
		u, err := net.ListenPacket("udp", listenAddr(p))
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					errs <- err
					return
				}
				fmt.Fprintf(c, "%s %s", c.RemoteAddr(), host)
				c.Close()
			}
		}()
		go func() {
			buf := make([]byte, 64)
			for {
				_, from, err := u.ReadFrom(buf)
				if err != nil {
					errs <- err
					return
				}
				if _, err := u.WriteTo(fmt.Appendf(nil, "%s %s", from, host), from); err != nil {
					fmt.Fprintln(os.Stderr, "probe: who:", err)
				}
			}
		}()
	}
	ready()
	return <-errs
}

// Ask returns as what address a server of who sees this side, and the server's name. A datagram that is lost
// is sent again.
func Ask(network, addr string) (string, error) {
	var err error
	for range 3 {
		var answer string
		if answer, err = askOnce(network, addr); !errors.Is(err, os.ErrDeadlineExceeded) {
			return answer, err
		}
	}
	return "", err
}

func askOnce(network, addr string) (string, error) {
	c, err := net.DialTimeout(network, addr, 3*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return "", err
	}
	if strings.HasPrefix(network, "udp") {
		if _, err := c.Write([]byte("?")); err != nil {
			return "", err
		}
	}
	buf := make([]byte, 256)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

func ask(args []string) error {
	answer, err := Ask(args[0], args[1])
	if err == nil {
		fmt.Println(answer)
	}
	return err
}
