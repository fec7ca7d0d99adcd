package netd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"syscall"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/userns"
	"golang.org/x/sys/unix"
)

// ErrNotRunning is returned by Connect where a network has no process.
var ErrNotRunning = errors.New("the network's process does not run")

// EnsureConfig says which network to reach and how to start its process.
type EnsureConfig struct {
	RuntimeDir string
	Name       string
	// InitPath is the binary and Role its argv[0].
	InitPath, Role string
	// Linger is how long the process stays without sandboxes; empty means 3s.
	Linger string
	Logger *slog.Logger
}

// Ensure connects to a network's process and starts it if there is none.
func Ensure(ctx context.Context, cfg EnsureConfig) (*Client, error) {
	c, err := Connect(ctx, cfg.RuntimeDir, cfg.Name)
	if !errors.Is(err, ErrNotRunning) {
		return c, err
	}
	d, err := openDir(cfg.RuntimeDir, cfg.Name)
	if err != nil {
		return nil, err
	}
	lock, err := d.lock()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	// Somebody else may have been faster. One that is about to leave does so
	// under the lock: it is either gone or will stay for us.
	if c, err := Connect(ctx, cfg.RuntimeDir, cfg.Name); !errors.Is(err, ErrNotRunning) {
		return c, err
	}
	if err := start(ctx, d, cfg); err != nil {
		return nil, err
	}
	return Connect(ctx, cfg.RuntimeDir, cfg.Name)
}

// start starts the process and waits until it listens.
func start(ctx context.Context, d netDir, cfg EnsureConfig) error {
	log, err := d.openLog()
	if err != nil {
		return err
	}
	defer log.Close()
	child, err := userns.Start(ctx, userns.Spec{
		Path: cfg.InitPath, Args: []string{cfg.Role}, Dir: "/",
		Stdout: log, Stderr: log, Setsid: true, Logger: cfg.Logger,
	})
	if err != nil {
		return err
	}
	// It outlives us; closing our ends does not concern it.
	defer child.Close()
	go child.Serve(func(*wire.Message) {})
	m, err := child.Conn.Call(ctx, msgServe, serve{RuntimeDir: cfg.RuntimeDir, Name: cfg.Name, Linger: cfg.Linger}, nil)
	switch {
	case err == nil:
		m.CloseFiles()
		return nil
	case errors.Is(err, io.EOF):
		return errors.Join(fmt.Errorf("the network's process ended while it started, see %s", d.file("log")), child.Failure(ctx))
	}
	child.Kill()
	return err
}

// Client is a connection to a network's process.
type Client struct {
	conn *wire.Conn
	done chan struct{}
	// PID of the process.
	PID int
}

// Connect connects to a network's process.
func Connect(ctx context.Context, runtimeDir, name string) (*Client, error) {
	d, err := openDir(runtimeDir, name)
	if err != nil {
		return nil, err
	}
	uc, err := d.dial()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, ErrNotRunning
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the network's process: %w", err)
	}
	c := &Client{conn: wire.NewUnixConn(uc), done: make(chan struct{})}
	if err := checkPeer(c.conn); err != nil {
		c.conn.Close()
		return nil, err
	}
	go func() {
		defer close(c.done)
		c.conn.Serve(func(*wire.Message) {})
	}()
	var h Hello
	m, err := c.conn.Call(ctx, msgHello, Hello{PID: os.Getpid(), Network: name}, &h)
	if err != nil {
		c.Close()
		// It was about to leave and has not accepted us.
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
			return nil, ErrNotRunning
		}
		return nil, err
	}
	m.CloseFiles()
	c.PID = h.PID
	return c, nil
}

// checkPeer refuses a process of another user.
func checkPeer(c *wire.Conn) error {
	uid, err := c.PeerUID()
	if err != nil {
		return err
	}
	if int(uid) != os.Geteuid() {
		return fmt.Errorf("the other end of the control socket belongs to user %d", uid)
	}
	return nil
}

// Done is closed when the process has gone.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection and with it the lease.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	return err
}

// Lease gets addresses for a sandbox.
func (c *Client) Lease(ctx context.Context, req LeaseRequest) (Lease, error) {
	var l Lease
	m, err := c.conn.Call(ctx, msgLease, req, &l)
	if err != nil {
		return l, err
	}
	m.CloseFiles()
	return l, nil
}

// Attach connects the sandbox's link and publishes its ports. sockets is the other
// end of a SocketServer's connection. The caller keeps its descriptors.
func (c *Client) Attach(ctx context.Context, req Attach, link, sockets *os.File) ([]port.Status, error) {
	var res Attached
	m, err := c.conn.Call(ctx, msgAttach, req, &res,
		wire.File{Name: "link", File: link}, wire.File{Name: "sockets", File: sockets})
	if err != nil {
		return nil, err
	}
	m.CloseFiles()
	return res.Ports, nil
}

// Stats returns the network's counters.
func (c *Client) Stats(ctx context.Context) (*Stats, error) {
	var s Stats
	m, err := c.conn.Call(ctx, msgStats, nil, &s)
	if err != nil {
		return nil, err
	}
	m.CloseFiles()
	return &s, nil
}
