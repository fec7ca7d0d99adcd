package netd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/portfwd"
)

const (
	keepFirst = 20 * time.Millisecond // wait before the second attempt, doubled up to
	keepMost  = 2 * time.Second
	// portRetry is how often a port that could not be published again is tried.
	portRetry = 5 * time.Second
	// closeTimeout is for giving all published ports back.
	closeTimeout = 2 * time.Second
)

// KeepConfig is an attachment to be kept.
type KeepConfig struct {
	// Config for Ensure, when the process has to be started again.
	Config
	// Lease is the client's.
	Lease *Lease
	// Attach is what to ask for.
	Attach AttachRequest
	// Link is the near end of the sandbox's link. It stays the caller's and must
	// be open until Close: best a wire.Handle, which wakes nobody.
	Link wire.Descriptor
	// Sockets serves the forwarders; nil: published ports go through the stack.
	Sockets *SocketServer
	// Moved is told, without waiting, of a lease with other addresses than the one
	// before, which only a server outside makes; nil: that is a failure.
	Moved func(*Lease)
	// Logger; nil discards.
	Logger *slog.Logger
}

// Keeper keeps a sandbox attached to its network for as long as the sandbox
// lives: when netd dies, it starts another one and attaches the link again,
// with the same addresses and published ports. It is a port.Manager whose ids
// stay the same throughout.
type Keeper struct {
	cfg    KeepConfig
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	ended  chan struct{}

	op   chan struct{} // of one: held by who changes client, ports or uplink
	once sync.Once
	// uplink is a duplicate of the network's device, if that was given as a descriptor.
	uplink *wire.Handle

	metering sync.Mutex // guards meter
	meter    meter

	mu     sync.Mutex // guards what follows; changes need op as well
	client *Client
	ports  []*keptPort
	nextID int
	times  int
}

type keptPort struct {
	id     int
	spec   port.Spec // with the host port that was bound first
	remote int       // netd's id, guarded by op; 0: not published at the moment
}

// ErrDetached is returned by calls on a Keeper after Close.
var ErrDetached = errors.New("the sandbox is detached from its network")

// Keep attaches the sandbox over client, which it takes over on success, and
// keeps it attached until Close.
func Keep(ctx context.Context, client *Client, cfg KeepConfig) (*Keeper, error) {
	if cfg.Lease == nil || cfg.Link == nil {
		return nil, errors.New("netd: KeepConfig.Lease and Link are required")
	}
	k := &Keeper{cfg: cfg, log: cfg.Logger, client: client, uplink: client.takeUplink(), op: make(chan struct{}, 1), ended: make(chan struct{})}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	// A new process must not choose other subnets.
	info := client.Info()
	k.cfg.Subnet4, k.cfg.Subnet6 = info.Subnet4, info.Subnet6
	list, err := k.attach(ctx, client, cfg.Attach)
	if gone(err) { // killed since the lease
		if k.client, list, err = k.attempt(ctx, cfg.Attach); err == nil {
			client.Close()
		}
	}
	if err != nil {
		client.uplink = k.uplink
		return nil, err
	}
	for _, st := range list {
		k.remember(st)
	}
	k.ctx, k.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go k.run()
	return k, nil
}

func (k *Keeper) attach(ctx context.Context, c *Client, req AttachRequest) ([]port.Status, error) {
	var sockets *os.File
	if k.cfg.Sockets != nil {
		var err error
		if sockets, err = k.cfg.Sockets.Connect(); err != nil {
			return nil, err
		}
		defer sockets.Close()
	}
	return c.Attach(ctx, req, k.cfg.Link, sockets)
}

func (k *Keeper) remember(st port.Status) *keptPort {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.nextID++
	p := &keptPort{k.nextID, st.Spec, st.ID}
	k.ports = append(k.ports, p)
	return p
}

// run waits for the end of netd.
func (k *Keeper) run() {
	defer close(k.ended)
	retry := time.NewTicker(portRetry)
	defer retry.Stop()
	for {
		select {
		case <-k.ctx.Done():
			return
		case <-k.current().Done():
			if !k.again() {
				return
			}
		case <-retry.C:
			if k.begin(k.ctx) == nil {
				k.republish()
				k.end()
			}
		}
	}
}

// again attaches over a new connection; false after Close.
func (k *Keeper) again() bool {
	if k.begin(k.ctx) != nil {
		return false
	}
	defer k.end()
	return k.reattach(k.ctx) == nil
}

// reattach makes a new connection if the one that there is has ended. op is held.
func (k *Keeper) reattach(ctx context.Context) error {
	if !k.current().ended() {
		return nil
	}
	k.log.Warn("the network's process has gone: attaching again")
	k.current().Close()
	for _, p := range k.ports {
		p.remote = 0
	}
	for wait := keepFirst; ; wait = min(2*wait, keepMost) {
		req := k.cfg.Attach
		req.Publish = nil // one by one, below: a port that is taken must not cost the rest
		c, _, err := k.attempt(ctx, req)
		if err == nil {
			k.mu.Lock()
			k.client = c
			k.times++
			k.mu.Unlock()
			k.republish()
			k.log.Info("attached again", "pid", c.Info().PID)
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		k.log.Warn("attach again", "err", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// attempt attaches over a new connection with the addresses that the sandbox has, or,
// from a server outside, with others.
func (k *Keeper) attempt(ctx context.Context, req AttachRequest) (*Client, []port.Status, error) {
	cfg := k.cfg.Config
	if k.uplink != nil {
		cfg.Uplink = k.uplink
	}
	was := k.cfg.Lease
	ctx, cancel := context.WithTimeout(ctx, 25*time.Second)
	defer cancel()
	c, l, err := Join(ctx, cfg, LeaseRequest{ID: was.ID, Name: was.Name, Addr4: was.Addr4, Addr6: was.Addr6, MAC: was.MAC, DHCP: was.DHCP})
	if err != nil {
		return nil, nil, err
	}
	var list []port.Status
	other := l.Gateway4 != was.Gateway4 || l.Gateway6 != was.Gateway6 || l.Prefix4 != was.Prefix4 || l.Prefix6 != was.Prefix6
	moved := other && l.DHCP && k.cfg.Moved != nil
	if other && !moved {
		err = &wire.Error{Code: CodeAddrBad, Step: "attach again", Msg: fmt.Sprintf("the network is now %s, %s with gateways %s, %s", l.Prefix4, l.Prefix6, l.Gateway4, l.Gateway6)}
	} else {
		list, err = k.attach(ctx, c, req)
	}
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	if k.cfg.Lease = l; moved {
		k.log.Info("another address", "addr", l.Prefix4)
		k.cfg.Moved(l)
	}
	return c, list, nil
}

// republish publishes what is not published at the moment. op is held.
func (k *Keeper) republish() {
	k.mu.Lock()
	c, ports := k.client, slices.Clone(k.ports)
	k.mu.Unlock()
	for _, p := range ports {
		if p.remote != 0 {
			continue
		}
		st, err := c.AddPort(k.ctx, p.spec)
		if err != nil {
			if gone(err) || k.ctx.Err() != nil {
				return
			}
			k.log.Warn("publish a port again", "port", p.spec.ParentPort, "err", err)
			continue
		}
		p.remote = st.ID
	}
}

func (k *Keeper) begin(ctx context.Context) error {
	select {
	case k.op <- struct{}{}:
		if k.ctx.Err() == nil {
			return nil
		}
		<-k.op
		return ErrDetached
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-k.ctx.Done():
		return ErrDetached
	}
}

func (k *Keeper) end() { <-k.op }

func (k *Keeper) current() *Client {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.client
}

// Rename gives the sandbox another name, also in the network of a later process.
func (k *Keeper) Rename(ctx context.Context, name string) error {
	if err := k.begin(ctx); err != nil {
		return err
	}
	defer k.end()
	l := *k.cfg.Lease
	if l.Name == name {
		return nil
	}
	l.Name = name
	k.cfg.Lease = &l
	if err := k.current().Rename(ctx, name); err != nil && !gone(err) {
		return err
	}
	return nil
}

// Update tells the network what else it is to know of the sandbox, also the network
// of a later process.
func (k *Keeper) Update(ctx context.Context, m Member) error {
	if err := k.begin(ctx); err != nil {
		return err
	}
	defer k.end()
	k.cfg.Attach.Member = m
	if err := k.current().Update(ctx, m); err != nil && !gone(err) {
		return err
	}
	return nil
}

// AddPort publishes a port.
func (k *Keeper) AddPort(ctx context.Context, spec port.Spec) (*port.Status, error) {
	return k.Publish(ctx, portfwd.Spec{Spec: spec})
}

// Publish is AddPort for a spec that may leave a choice of host ports.
func (k *Keeper) Publish(ctx context.Context, spec portfwd.Spec) (*port.Status, error) {
	if err := k.begin(ctx); err != nil {
		return nil, err
	}
	defer k.end()
	st, err := k.current().Publish(ctx, spec)
	if gone(err) { // killed a moment ago
		k.current().Close()
		if err = k.reattach(ctx); err == nil {
			st, err = k.current().Publish(ctx, spec)
		}
	}
	if err != nil {
		return nil, err
	}
	st.ID = k.remember(*st).id
	return st, nil
}

// RemovePort takes a port back.
func (k *Keeper) RemovePort(ctx context.Context, id int) error {
	if err := k.begin(ctx); err != nil {
		return err
	}
	defer k.end()
	k.mu.Lock()
	i := slices.IndexFunc(k.ports, func(p *keptPort) bool { return p.id == id })
	k.mu.Unlock()
	if i < 0 {
		return wire.Errorf(CodeMisuse, "no published port has the id %d", id)
	}
	if remote := k.ports[i].remote; remote != 0 {
		if err := k.current().RemovePort(ctx, remote); err != nil && !gone(err) {
			return err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ports = slices.Delete(k.ports, i, i+1)
	return nil
}

// ListPorts returns the published ports, also such as are being published again.
func (k *Keeper) ListPorts(context.Context) ([]port.Status, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]port.Status, 0, len(k.ports))
	for _, p := range k.ports {
		out = append(out, port.Status{ID: p.id, Spec: p.spec})
	}
	return out, nil
}

// Stats asks netd for the counters. Reattached says how often the attachment
// was made again.
func (k *Keeper) Stats(ctx context.Context) (st Stats, reattached int, err error) {
	k.mu.Lock()
	c, reattached := k.client, k.times
	k.mu.Unlock()
	st, err = c.Stats(ctx)
	return st, reattached, err
}

// Close detaches the sandbox. Its published ports are free when it returns: whoever
// ends a sandbox may publish the same port in the next moment.
func (k *Keeper) Close() (err error) {
	k.once.Do(func() {
		k.cancel()
		<-k.ended
		c := k.current()
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		for _, p := range k.ports {
			if p.remote == 0 {
				continue
			}
			if err = c.RemovePort(ctx, p.remote); err != nil {
				break // the end of the connection frees the rest
			}
		}
		if gone(err) {
			err = nil
		}
		if cerr := c.Close(); !errors.Is(cerr, net.ErrClosed) { // which reattach has closed
			err = errors.Join(err, cerr)
		}
		if k.uplink != nil {
			err = errors.Join(err, k.uplink.Close())
		}
	})
	return err
}
