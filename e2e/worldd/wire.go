package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"github.com/rootless-sbx/sbx/internal/impair"
	"golang.org/x/sys/unix"
)

const (
	vnetHdrLen = 10      // struct virtio_net_hdr, before each frame (PACKET_VNET_HDR)
	maxFrame   = 1 << 17 // more than any super-segment
)

// wire carries frames between two interfaces: a link as bad as cfg says, where the
// kernel has no netem. Frames cross with their virtio header, so that unfinished
// checksums and super-segments stay what they are.
func wire(a, b string, cfg impair.Config) error {
	left, err := openPacket(a)
	if err != nil {
		return err
	}
	right, err := openPacket(b)
	if err != nil {
		return err
	}
	fmt.Println("ready", cfg)
	errs := make(chan error)
	for _, way := range [][2]int{{left, right}, {right, left}} {
		to := impair.NewWay(cfg, func(frame []byte) {
			if err := send(way[1], frame); err != nil {
				errs <- err
			}
		})
		cfg.Seed++
		go func() { errs <- receive(way[0], to) }()
	}
	return <-errs
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

func receive(fd int, to *impair.Way) error {
	buf := make([]byte, maxFrame)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENETDOWN) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if n >= vnetHdrLen {
			to.Put(buf[:n])
		}
	}
}

func send(fd int, frame []byte) error {
	_, err := unix.Write(fd, frame)
	switch {
	case err == nil, errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EMSGSIZE):
		// A frame that the device does not take is lost, as on any wire.
		return nil
	}
	return fmt.Errorf("write: %w", err)
}
