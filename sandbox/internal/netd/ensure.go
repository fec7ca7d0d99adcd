package netd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/rootless-sbx/sbx/internal/wire"
	"golang.org/x/sys/unix"
)

// Config says which network, and how to start its process.
type Config struct {
	StartConfig
	// Start starts the process that calls Main. Required.
	Start func(ctx context.Context, files StartFiles) error
	// Uplink is the open device of a network that was given one, for a process that has
	// to be started. It stays the caller's; nil if he has none.
	Uplink wire.Descriptor
	// StartTimeout bounds all of Ensure. Zero: 30 s.
	StartTimeout time.Duration
}

// StartFiles are the new process' descriptors. Ensure closes its copies.
type StartFiles struct {
	// Control becomes descriptor 3 and is given to Main as a wire.Conn.
	Control *os.File
	// Log becomes standard output and error. Standard input is /dev/null.
	Log *os.File
}

// Ensure returns a connection to the network's process, starting it if there is
// none. However many call it at once, one process is started.
//
// Start must return as soon as the process runs, and see to it that somebody
// reaps it if the caller lives longer. The process is to be an ordinary one of
// the user, in the host's namespaces, with working directory /.
func Ensure(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.StartTimeout <= 0 {
		cfg.StartTimeout = 30 * time.Second
	}
	if cfg.Start == nil {
		return nil, errors.New("netd: Config.Start is required")
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.StartTimeout)
	defer cancel()
	d, err := makeDir(cfg.RuntimeDir, cfg.Name)
	if err != nil {
		return nil, err
	}
	defer d.close()
	if c, err := connect(ctx, d, Hello{cfg.Name, cfg.ID}); !gone(err) {
		return c, err
	}
	lock, err := d.lock(ctx)
	if err != nil {
		return nil, wire.ToError("start network "+cfg.Name, err)
	}
	defer lock.Close()
	for {
		c, err := connect(ctx, d, Hello{cfg.Name, cfg.ID})
		if !gone(err) {
			return c, err
		}
		err = start(ctx, d, cfg)
		var we *wire.Error
		switch {
		case err == nil:
		case errors.As(err, &we) && we.Code == CodeBusy:
			// Started by somebody who was killed before it could answer.
			select {
			case <-ctx.Done():
				return nil, err
			case <-time.After(50 * time.Millisecond):
			}
		default:
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, wire.ToError("start network "+cfg.Name, context.Cause(ctx))
		}
	}
}

// Join is Ensure and Lease. A process that is killed between the two is followed by
// another one.
func Join(ctx context.Context, cfg Config, req LeaseRequest) (*Client, *Lease, error) {
	for {
		c, err := Ensure(ctx, cfg)
		if err != nil {
			return nil, nil, err
		}
		l, err := c.Lease(ctx, req)
		if err == nil {
			return c, l, nil
		}
		c.Close()
		if !gone(err) || ctx.Err() != nil {
			return nil, nil, err
		}
	}
}

// Connect returns a connection to the network's process if there is one; nil if not.
func Connect(ctx context.Context, runtimeDir string, hello Hello) (*Client, error) {
	d, err := openDir(runtimeDir, hello.Name)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.close()
	c, err := connect(ctx, d, hello)
	if gone(err) {
		return nil, nil
	}
	return c, err
}

// Forget waits until the process of a network that was told to leave has gone, and
// removes what it leaves. Nobody else may start one meanwhile.
func Forget(ctx context.Context, runtimeDir, name string, patience time.Duration) error {
	d, err := openDir(runtimeDir, name)
	if gone(err) {
		return nil // none was ever started
	}
	if err != nil {
		return err
	}
	defer d.close()
	if err := d.claim(ctx, patience); err != nil {
		return wire.ToError("wait for the end of network "+name, err)
	}
	return os.RemoveAll(d.path)
}

// gone says that there is no process behind the socket, or one that is leaving.
func gone(err error) bool {
	for _, e := range []error{io.EOF, syscall.ENOENT, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// connect says hello to the process that listens, if any.
func connect(ctx context.Context, d *directory, hello Hello) (*Client, error) {
	step := "connect to network " + hello.Name
	uc, err := d.dial()
	for errors.Is(err, syscall.EAGAIN) { // its backlog is full
		select {
		case <-ctx.Done():
			return nil, wire.ToError(step, err)
		case <-time.After(10 * time.Millisecond):
		}
		uc, err = d.dial()
	}
	if err != nil {
		return nil, wire.ToError(step, err)
	}
	c := newClient(wire.NewUnixConn(uc))
	if err := checkPeer(c.conn); err != nil {
		c.Close()
		return nil, wire.ToError(step, err)
	}
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	if err := c.call(ctx, msgHello, hello, &c.info); err != nil {
		c.Close()
		if ctx.Err() != nil {
			return nil, &wire.Error{Step: step, Path: d.path, Msg: "its process does not answer",
				Fix: "look into the log beside the socket; end the process, and the sandboxes start another one"}
		}
		return nil, fmt.Errorf("%s: %w", step, err)
	}
	return c, nil
}

func checkPeer(c *wire.Conn) error {
	peer, err := c.Peer()
	if err != nil {
		return err
	}
	if int(peer.Uid) != os.Geteuid() {
		return &wire.Error{Code: CodeMisuse, Msg: fmt.Sprintf("the other end belongs to user %d", peer.Uid)}
	}
	return nil
}

// start starts the process and waits until it says that it is ready, or why it
// is not. The lock is held.
func start(ctx context.Context, d *directory, cfg Config) error {
	step := "start network " + cfg.Name
	log, err := d.open(logName, unix.O_RDWR|unix.O_CREAT|unix.O_APPEND)
	if err != nil {
		return wire.ToError(step, err)
	}
	defer log.Close()
	ours, theirs, err := wire.Pair()
	if err != nil {
		return wire.ToError(step, err)
	}
	err = cfg.Start(ctx, StartFiles{Control: theirs, Log: log})
	theirs.Close()
	if err != nil {
		ours.Close()
		return wire.ToError(step, err)
	}
	conn, err := wire.NewConn(ours)
	if err != nil {
		return wire.ToError(step, err)
	}
	c := newClient(conn)
	defer c.Close()
	var files []wire.File
	if cfg.Uplink != nil {
		files = append(files, wire.File{Name: fileUplink, File: cfg.Uplink})
	}
	err = c.call(ctx, msgStart, cfg.StartConfig, nil, files...)
	if errors.Is(err, io.EOF) {
		return &wire.Error{Step: step, Path: d.path + "/" + logName, Msg: "the process ended before it was ready; see its log"}
	}
	if err != nil {
		return wire.ToError(step, err)
	}
	return nil
}
