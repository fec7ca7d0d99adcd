package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

const (
	vnetHdrLen = 10      // struct virtio_net_hdr, before each frame (PACKET_VNET_HDR)
	maxFrame   = 1 << 17 // more than any super-segment
	maxQueue   = 4096    // frames on their way in one direction; what comes on top is dropped
)

// relay carries frames between two interfaces, each held back for d: a link with
// latency where the kernel has no netem. Frames cross with their virtio header, so
// that unfinished checksums and super-segments stay what they are.
func relay(a, b string, d time.Duration) error {
	left, err := openPacket(a)
	if err != nil {
		return err
	}
	right, err := openPacket(b)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	errs := make(chan error)
	for _, way := range [][2]int{{left, right}, {right, left}} {
		queue := make(chan delayed, maxQueue)
		go func() { errs <- receive(way[0], d, queue) }()
		go func() { errs <- send(way[1], queue) }()
	}
	return <-errs
}

type delayed struct {
	due   time.Time
	frame []byte
}

func openPacket(name string) (int, error) {
	ifc, err := net.InterfaceByName(name)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("packet socket: %w", err)
	}
	for opt, value := range map[int]int{unix.PACKET_VNET_HDR: 1, unix.PACKET_IGNORE_OUTGOING: 1} {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, opt, value); err != nil {
			return 0, fmt.Errorf("packet socket option %d: %w", opt, err)
		}
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20); err != nil {
		return 0, fmt.Errorf("receive buffer: %w", err)
	}
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifc.Index}); err != nil {
		return 0, fmt.Errorf("bind to %s: %w", name, err)
	}
	return fd, nil
}

func receive(fd int, d time.Duration, queue chan<- delayed) error {
	buf := make([]byte, maxFrame)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENETDOWN) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if n < vnetHdrLen {
			continue
		}
		select {
		case queue <- delayed{time.Now().Add(d), append([]byte(nil), buf[:n]...)}:
		default: // a full queue drops, as a router's does
		}
	}
}

func send(fd int, queue <-chan delayed) error {
	for f := range queue {
		time.Sleep(time.Until(f.due))
		_, err := unix.Write(fd, f.frame)
		switch {
		case err == nil, errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EMSGSIZE):
			// A frame that the device does not take is lost, as on any wire.
		default:
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}
