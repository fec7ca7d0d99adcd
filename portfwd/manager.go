package portfwd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
)

// Drivers for Config.Driver.
const (
	// DriverAuto takes direct for clients on this host and stack for all others.
	DriverAuto = "auto"
	// DriverDirect connects a socket made in the guest's network namespace and
	// lets the kernel splice. The guest sees its own address as the client's.
	DriverDirect = "direct"
	// DriverStack dials through the gateway stack with the client's address.
	DriverStack = "stack"
	// DriverBuiltin is RootlessKit's builtin driver; see RunBuiltinChild.
	DriverBuiltin = "builtin"
)

// Guest is the sandbox that the ports lead to.
type Guest interface {
	// Addr4 and Addr6 return its addresses, invalid where it has none.
	Addr4() netip.Addr
	Addr6() netip.Addr
	// Socket returns a fresh, unconnected, non-blocking socket made in the
	// guest's network namespace. family is AF_INET or AF_INET6, typ SOCK_STREAM
	// or SOCK_DGRAM. It may be called from many goroutines at once.
	Socket(ctx context.Context, family, typ int) (*os.File, error)
}

// Config is a Manager's set-up. Zero values mean defaults; Guest is required,
// and so is what the driver needs.
type Config struct {
	// Driver is one of the Driver constants; empty means auto. auto without a
	// Stack is direct.
	Driver string
	Guest  Guest
	// Stack is required by the stack driver.
	Stack Stack
	// Gateway4 and Gateway6 stand for clients whose own address cannot be used
	// towards the guest, such as 127.0.0.1. Required by stack, per guest family.
	Gateway4, Gateway6 netip.Addr
	// Subnets are the guest's own networks: a client whose address lies in one of
	// them is shown as the gateway, because the guest would answer it directly.
	Subnets []netip.Prefix
	// StateDir is the directory for the builtin driver's socket; required by it.
	StateDir string
	Limits   Limits
	// Logger gets what goes wrong on single connections, at debug level. nil
	// discards.
	Logger *slog.Logger
}

// Limits bound what clients can make a Manager hold. Zero means the default.
type Limits struct {
	// Ports is the number of published ports; MaxSpecs.
	Ports int
	// Conns is the number of TCP connections; 4096. One over it is reset.
	Conns int
	// DialsPerPort is the number of connections of one port whose guest side is
	// not established yet; 128. Over it, clients wait in the listen backlog.
	DialsPerPort int
	// Backlog is the listen backlog; 1024, capped by net.core.somaxconn.
	Backlog int
	// DialTimeout bounds the connection to the guest; 10 s.
	DialTimeout time.Duration
	// UDPFlows is the number of UDP clients; 2048. A new one over it is dropped.
	UDPFlows int
	// UDPBytes bounds the datagrams that wait until their flow is set up; 8 MiB.
	UDPBytes int
	// UDPIdle ends a flow that had a reply; 180 s. RFC 4787 asks for 120 s or more.
	UDPIdle time.Duration
	// UDPUnreplied ends a flow that never had a reply; 30 s.
	UDPUnreplied time.Duration
	// SocketPool is the number of guest sockets made in advance per family; 16.
	// Negative means none.
	SocketPool int
}

func (l Limits) withDefaults() Limits {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	dur := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.Ports, MaxSpecs)
	def(&l.Conns, 4096)
	def(&l.DialsPerPort, 128)
	def(&l.Backlog, 1024)
	dur(&l.DialTimeout, 10*time.Second)
	def(&l.UDPFlows, 2048)
	def(&l.UDPBytes, 8<<20)
	dur(&l.UDPIdle, 180*time.Second)
	dur(&l.UDPUnreplied, 30*time.Second)
	if l.SocketPool == 0 {
		l.SocketPool = 16
	}
	return l
}

// Manager publishes the ports of one sandbox. All methods may be called from
// several goroutines.
type Manager interface {
	// AddPort listens and starts forwarding; the Status carries the port chosen
	// where the spec left it open. Errors: *SpecError, *ErrPortInUse,
	// *ErrPrivilegedPort, *ErrNoSuchAddress, ErrTooManyPorts, ErrClosed.
	// ListPorts is sorted by id. RemovePort closes the listeners and resets the
	// port's live connections: a port that is no longer published is closed to
	// everybody.
	port.Manager
	// Publish is AddPort for a spec that may leave a choice of host ports.
	Publish(ctx context.Context, spec Spec) (*port.Status, error)
	// Stats returns the counters.
	Stats() Stats
	// Close removes all ports. It returns when nothing of the Manager runs any more.
	Close() error
}

// New starts a Manager without ports.
func New(cfg Config) (Manager, error) {
	if cfg.Guest == nil {
		return nil, errors.New("portfwd: Config.Guest is required")
	}
	if !cfg.Guest.Addr4().IsValid() && !cfg.Guest.Addr6().IsValid() {
		return nil, errors.New("portfwd: the guest has no address to forward to")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	m := &manager{cfg: cfg, lim: cfg.Limits.withDefaults(), ports: map[int]*published{}}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.locals = &localAddrs{}
	m.pipes = newPipePool()
	for i, fam := range []int{familyInet, familyInet6} {
		m.pools[i] = newSocketPool(m.ctx, cfg.Guest, fam, m.lim.SocketPool, cfg.Logger)
	}
	switch cfg.Driver {
	case "", DriverAuto, DriverDirect:
	case DriverStack:
		if cfg.Stack == nil {
			return nil, errors.New("portfwd: driver stack needs Config.Stack")
		}
		if cfg.Guest.Addr4().IsValid() && !cfg.Gateway4.IsValid() || cfg.Guest.Addr6().IsValid() && !cfg.Gateway6.IsValid() {
			return nil, errors.New("portfwd: driver stack needs a gateway address for each of the guest's")
		}
	case DriverBuiltin:
		b, err := newBuiltin(cfg.StateDir, cfg.Logger)
		if err != nil {
			return nil, err
		}
		m.builtin = b
	default:
		return nil, fmt.Errorf("portfwd: unknown port driver %q (auto, direct, stack or builtin)", cfg.Driver)
	}
	return m, nil
}

type manager struct {
	cfg    Config
	lim    Limits
	ctx    context.Context
	cancel context.CancelFunc
	count  counters

	pools   [2]*socketPool // TCP sockets of the guest, IPv4 and IPv6
	pipes   *pipePool
	loops   loops
	locals  *localAddrs
	builtin *builtinDriver // nil unless Driver is builtin

	addMu sync.Mutex // serialises AddPort; taken before mu

	mu     sync.Mutex // guards what follows
	ports  map[int]*published
	nextID int
	closed bool
}

// published is one spec with its listening sockets.
type published struct {
	m       *manager
	id      int
	spec    port.Spec  // ParentPort filled in
	childIP netip.Addr // invalid: the guest's own
	socks   []boundSocket
	dials   chan struct{} // a slot per connection that is being set up

	ctx    context.Context // ends with the port
	cancel context.CancelFunc
	wg     sync.WaitGroup // accept loops, connections, flows
}

// String is the port as the user would write it.
func (p *published) String() string { return Spec{Spec: p.spec}.String() }

// boundSocket is one bound address of a published port.
type boundSocket interface {
	localPort() uint16
	// start begins to forward; close ends it.
	start(p *published)
	close() error
}

func (m *manager) AddPort(ctx context.Context, spec port.Spec) (*port.Status, error) {
	return m.Publish(ctx, Spec{Spec: spec})
}

func (m *manager) Publish(ctx context.Context, spec Spec) (*port.Status, error) {
	hostIP, childIP, err := validate(spec)
	if err != nil {
		return nil, err
	}
	if hostIP.IsValid() {
		spec.ParentIP = hostIP.String()
	}
	if err := m.checkChild(spec, childIP); err != nil {
		return nil, err
	}
	m.addMu.Lock()
	defer m.addMu.Unlock()
	if err := m.admit(spec, hostIP); err != nil {
		return nil, err
	}
	if m.builtin != nil {
		if err := m.builtin.ready(ctx); err != nil {
			return nil, fmt.Errorf("publish %s: %w", spec, err)
		}
	}
	socks, err := m.bindAll(ctx, spec, hostIP)
	if err != nil {
		return nil, err
	}
	spec.ParentPort, spec.ParentEnd = int(socks[0].localPort()), 0
	p := &published{m: m, spec: spec.Spec, childIP: childIP, socks: socks, dials: make(chan struct{}, m.lim.DialsPerPort)}
	p.ctx, p.cancel = context.WithCancel(m.ctx)
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		p.close()
		return nil, ErrClosed
	}
	m.nextID++
	p.id = m.nextID
	m.ports[p.id] = p
	// Under the lock, so that a Close that follows finds everything started.
	for _, s := range socks {
		s.start(p)
	}
	m.mu.Unlock()
	return &port.Status{ID: p.id, Spec: p.spec}, nil
}

// admit refuses what needs no system call to refuse.
func (m *manager) admit(spec Spec, hostIP netip.Addr) error {
	m.mu.Lock()
	closed, n := m.closed, len(m.ports)
	m.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if n >= m.lim.Ports {
		return fmt.Errorf("publish %s: %w: the limit is %d", spec, ErrTooManyPorts, m.lim.Ports)
	}
	if other, own := m.clash(spec); own {
		addr := netip.AddrPortFrom(families(spec.Proto, hostIP)[0], uint16(spec.ParentPort))
		return &ErrPortInUse{Proto: transport(spec.Proto), Addr: addr, Owner: "this sandbox, published as " + other,
			OwnerPID: os.Getpid(), Free: m.freePort(transport(spec.Proto), addr)}
	}
	return nil
}

// clash says which of our own ports has the spec's host port, if one has.
func (m *manager) clash(spec Spec) (other string, found bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	seen := newClashes()
	for _, p := range m.ports {
		seen.add(Spec{Spec: p.spec}, p.String())
	}
	other, ok := seen.add(spec, "")
	return other, !ok
}

// checkChild refuses a container address that the driver cannot reach.
func (m *manager) checkChild(spec Spec, ip netip.Addr) error {
	g := m.cfg.Guest
	if !ip.IsValid() || m.cfg.Driver != DriverStack || ip == g.Addr4() || ip == g.Addr6() {
		return nil
	}
	return &SpecError{Spec: spec.String(), Why: fmt.Sprintf("driver stack cannot reach container address %s", ip),
		Fix: "leave the container address out, or use driver direct"}
}

func (m *manager) ListPorts(context.Context) ([]port.Status, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]port.Status, 0, len(m.ports))
	for _, p := range m.ports {
		out = append(out, port.Status{ID: p.id, Spec: p.spec})
	}
	slices.SortFunc(out, func(a, b port.Status) int { return a.ID - b.ID })
	return out, nil
}

func (m *manager) RemovePort(_ context.Context, id int) error {
	m.mu.Lock()
	p := m.ports[id]
	delete(m.ports, id)
	m.mu.Unlock()
	if p == nil {
		return fmt.Errorf("remove published port %d: %w", id, ErrUnknownPort)
	}
	return p.close()
}

// close stops a port and waits for everything that it started. Every wait
// inside ends with p.ctx, so this needs no context of its own.
func (p *published) close() error {
	p.cancel()
	var errs []error
	for _, s := range p.socks {
		errs = append(errs, s.close())
	}
	p.wg.Wait()
	return errors.Join(errs...)
}

func (m *manager) Close() error {
	m.mu.Lock()
	m.closed = true
	ports := m.ports
	m.ports = map[int]*published{}
	m.mu.Unlock()
	m.cancel()
	var errs []error
	for _, p := range ports {
		errs = append(errs, p.close())
	}
	for _, pool := range m.pools {
		pool.close()
	}
	if m.builtin != nil {
		errs = append(errs, m.builtin.close())
	}
	m.loops.close()
	m.pipes.close()
	return errors.Join(errs...)
}
