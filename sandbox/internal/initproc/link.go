package initproc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/netstack"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

// Linker is the body of a process that makes, changes and removes links of a sandbox that
// runs. It was born in the sandbox's network namespace, and is in no other of its.
func Linker(_ context.Context, conn *wire.Conn) error {
	for {
		m, err := conn.Recv()
		if errors.Is(err, io.EOF) {
			return nil // the monitor needs us no more
		}
		if err != nil {
			return err
		}
		switch m.Type {
		case proto.MsgNet:
			err = makeLink(conn, m)
		case proto.MsgUnlink:
			var n proto.Name
			if err = m.Decode(&n); err == nil {
				err = netstack.RemoveGuest(n.Name)
			}
			err = conn.Reply(m, nil, err)
		case proto.MsgMove:
			var move proto.Move
			if err = m.Decode(&move); err == nil {
				err = netstack.MoveGuest(move.Gone, move.Guest)
			}
			err = conn.Reply(m, nil, err)
		default:
			err = conn.Reply(m, nil, fmt.Errorf("unknown request %q", m.Type))
		}
		m.CloseFiles()
		if err != nil {
			return err
		}
	}
}

// makeLink makes a device of the sandbox and hands its descriptor out.
func makeLink(conn *wire.Conn, m *wire.Message) error {
	var req proto.Net
	err := m.Decode(&req)
	if err == nil {
		err = netstack.SetupLoopback()
	}
	if err != nil {
		return conn.Reply(m, nil, err)
	}
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return conn.Reply(m, nil, fmt.Errorf("open the sandbox's network namespace: %w", err))
	}
	defer ns.Close()
	files := []wire.File{{Name: "netns", File: ns}}
	if req.Loopback {
		return conn.Reply(m, proto.Link{}, nil, files...)
	}
	link, err := netstack.SetupGuest(req.Guest)
	if err != nil {
		return conn.Reply(m, nil, err)
	}
	defer link.File.Close()
	return conn.Reply(m, proto.Link{Driver: link.Driver, HdrLen: link.HdrLen, MTU: link.MTU, Reason: link.Reason}, nil,
		append(files, wire.File{Name: "link", File: link.File})...)
}
