package netd

import (
	"context"
	"errors"
	"os"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/portfwd"
)

// Client is a sandbox's connection to its network's process. The connection is
// the lease: when it ends, the sandbox is detached. It is a port.Manager.
type Client struct {
	conn   *wire.Conn
	info   Info
	done   chan struct{}
	uplink *wire.Handle // that came with the lease, until somebody takes it
}

func newClient(conn *wire.Conn) *Client {
	c := &Client{conn: conn, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		conn.Serve(func(m *wire.Message) {}) // netd asks nothing on this connection
	}()
	return c
}

// Info describes the network.
func (c *Client) Info() Info { return c.info }

// PID is that of the network's process in our pid namespace.
func (c *Client) PID() (int, error) {
	peer, err := c.conn.Peer()
	if err != nil {
		return 0, err
	}
	return int(peer.Pid), nil
}

// Done is closed when the connection has ended: the process has gone.
func (c *Client) Done() <-chan struct{} { return c.done }

func (c *Client) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// Close detaches the sandbox and gives up its addresses. netd closes the
// forwarders, the port and the link after it.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	if h := c.takeUplink(); h != nil {
		err = errors.Join(err, h.Close())
	}
	return err
}

// Lease asks for the sandbox's addresses; once for each connection.
func (c *Client) Lease(ctx context.Context, req LeaseRequest) (*Lease, error) {
	var l Lease
	m, err := c.conn.Call(ctx, msgLease, req, &l)
	if err != nil {
		return nil, err
	}
	defer m.CloseFiles()
	if l.Given {
		if c.uplink, err = m.TakeHandle(fileUplink); err != nil {
			return nil, err
		}
	}
	return &l, nil
}

// takeUplink returns the duplicate of the network's device, which is the caller's then;
// nil if there is none.
func (c *Client) takeUplink() *wire.Handle {
	h := c.uplink
	c.uplink = nil
	return h
}

// Rename gives the sandbox another name in the network.
func (c *Client) Rename(ctx context.Context, name string) error {
	return c.call(ctx, msgRename, Rename{name}, nil)
}

// Update tells what else the network is to know of the sandbox.
func (c *Client) Update(ctx context.Context, m Member) error {
	return c.call(ctx, msgUpdate, m, nil)
}

// Members returns the sandboxes that are on the network.
func (c *Client) Members(ctx context.Context) (*Members, error) {
	var m Members
	if err := c.call(ctx, msgMembers, nil, &m); err != nil {
		return nil, err
	}
	return &m, nil
}

// Leave tells the process of a network that is being removed to go at once.
func (c *Client) Leave(ctx context.Context) error { return c.call(ctx, msgLeave, nil, nil) }

// Resolve asks for one of the network's own names.
func (c *Client) Resolve(ctx context.Context, query []byte) (Answer, error) {
	var a Answer
	err := c.call(ctx, msgResolve, Question{query}, &a)
	return a, err
}

// Attach joins the sandbox to the network and publishes its ports. The process
// gets duplicates of link and sockets (see SocketServer; nil: none), so that
// both stay the caller's, for the process after it.
func (c *Client) Attach(ctx context.Context, req AttachRequest, link wire.Descriptor, sockets *os.File) ([]port.Status, error) {
	files := []wire.File{{Name: fileLink, File: link}}
	if sockets != nil {
		files = append(files, wire.File{Name: fileSockets, File: sockets})
	}
	var p Ports
	if err := c.call(ctx, msgAttach, req, &p, files...); err != nil {
		return nil, err
	}
	return p.Ports, nil
}

// AddPort publishes a port; the Status has the host port actually bound.
func (c *Client) AddPort(ctx context.Context, spec port.Spec) (*port.Status, error) {
	return c.Publish(ctx, portfwd.Spec{Spec: spec})
}

// Publish is AddPort for a spec that may leave a choice of host ports.
func (c *Client) Publish(ctx context.Context, spec portfwd.Spec) (*port.Status, error) {
	var s port.Status
	if err := c.call(ctx, msgAddPort, spec, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// RemovePort takes a published port back.
func (c *Client) RemovePort(ctx context.Context, id int) error {
	return c.call(ctx, msgRmPort, portID{id}, nil)
}

// ListPorts returns the published ports.
func (c *Client) ListPorts(ctx context.Context) ([]port.Status, error) {
	var p Ports
	err := c.call(ctx, msgPorts, nil, &p)
	return p.Ports, err
}

// Stats returns the counters.
func (c *Client) Stats(ctx context.Context) (Stats, error) {
	var s Stats
	err := c.call(ctx, msgStats, nil, &s)
	return s, err
}

func (c *Client) call(ctx context.Context, typ string, req, resp any, files ...wire.File) error {
	m, err := c.conn.Call(ctx, typ, req, resp, files...)
	if err != nil {
		return err
	}
	m.CloseFiles()
	return nil
}
