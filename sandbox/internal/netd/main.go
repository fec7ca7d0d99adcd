package netd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rootless-sbx/sbx/internal/atomicfile"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/netstack"
	"github.com/rootless-sbx/sbx/sandbox/internal/netdef"
	"golang.org/x/sys/unix"
)

// MainConfig is what the process' role dispatch knows.
type MainConfig struct {
	// Log is standard error, the log file. Nil: no log. It is kept below 1 MiB.
	Log *os.File
	// Confine takes from the whole process what a network does not need.
	Confine bool
}

// claimPatience is how long a killed predecessor may take to be gone. Ensure
// tries again after it.
const claimPatience = time.Second

// settle is how long the sandboxes of a killed process may take to be back on a machine
// that has much else to do: who asks for the name of one waits, and is not told meanwhile
// that there is no such name.
const settle = 15 * time.Second

// Main is the body of a network's process. conn is the connection to the
// starter; Main reads the start message, answers it and closes conn. It returns
// nil after the linger time or when ctx ends, and then nothing of it runs.
func Main(ctx context.Context, conn *wire.Conn, cfg MainConfig) error {
	defer conn.Close()
	// Away from the starter's terminal and its signals. EPERM: already so.
	if _, err := unix.Setsid(); err != nil && !errors.Is(err, unix.EPERM) {
		return os.NewSyscallError("setsid", err)
	}
	return serve(ctx, conn, cfg)
}

func serve(ctx context.Context, conn *wire.Conn, cfg MainConfig) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	m, err := conn.Recv()
	if errors.Is(err, io.EOF) {
		return nil // the starter was killed
	}
	if err != nil {
		return fmt.Errorf("start message: %w", err)
	}
	defer m.CloseFiles()
	s, err := newServer(ctx, m, cfg)
	if err != nil {
		return errors.Join(err, conn.Reply(m, nil, err))
	}
	if err := conn.Reply(m, s.info(), nil); err != nil {
		s.log.Warn("the starter has gone", "err", err) // somebody else may come
	}
	conn.Close()
	return s.run(ctx)
}

// server is a network with its sessions.
type server struct {
	cfg  StartConfig
	log  *slog.Logger
	dir  *directory
	ln   *net.UnixListener
	net  *netstack.Network
	dns  *netstack.Resolver
	defs netdef.Dir
	// names finds those of other networks.
	names  *names
	killed bool // the process before this one: its sandboxes come, one by one
	// uplink is a duplicate of the device that was given as a descriptor, for others.
	uplink *wire.Handle

	ctx     context.Context // ends when the process leaves
	cancel  context.CancelFunc
	refused atomic.Uint64

	counting sync.Mutex // guards fds
	fds      *os.File   // the process's descriptors, see usage

	mu        sync.Mutex // guards what follows
	sessions  map[*session]struct{}
	byID      map[string]*session
	published map[portKey]*session
	leaving   bool
	told      bool        // to leave, as the network is removed
	idle      *time.Timer // runs while there are no sessions

	idleC chan struct{}
	wg    sync.WaitGroup // sessions
}

func newServer(ctx context.Context, m *wire.Message, mc MainConfig) (_ *server, err error) {
	s := &server{sessions: map[*session]struct{}{}, byID: map[string]*session{}, published: map[portKey]*session{}, idleC: make(chan struct{}, 1)}
	if m.Type != msgStart {
		return nil, wire.Errorf(CodeMisuse, "the first message is %.40q, not %q", m.Type, msgStart)
	}
	if err := m.Decode(&s.cfg); err != nil {
		return nil, err
	}
	if s.cfg.Linger <= 0 {
		s.cfg.Linger = 3 * time.Second
	}
	s.log = newLog(mc.Log, s.cfg.Debug)
	s.defs, s.names = netdef.In(s.cfg.DataDir), newNames(s)
	if s.dir, err = openDir(s.cfg.RuntimeDir, s.cfg.Name); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := s.dir.claim(ctx, claimPatience); err != nil {
		return nil, err
	}
	// A process that has left takes its socket with it.
	if s.killed, err = s.dir.has(sockName); err != nil {
		return nil, err
	}
	if err := s.makeNetwork(m); err != nil {
		return nil, wire.ToError("make network "+s.cfg.Name, toWire(err))
	}
	if s.ln, err = s.dir.listen(); err != nil {
		return nil, wire.ToError("listen for sandboxes of network "+s.cfg.Name, err)
	}
	if err := s.openUsage(); err != nil {
		return nil, wire.ToError("see what network "+s.cfg.Name+" holds", err)
	}
	if mc.Confine {
		c, err := s.confinement()
		if err != nil {
			return nil, wire.ToError("confine network "+s.cfg.Name, err)
		}
		c.confine(s.log)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.idle = time.AfterFunc(s.cfg.Linger, s.wake)
	s.log.Info("network is up", "name", s.cfg.Name, "pid", os.Getpid(), "info", s.info())
	return s, nil
}

// state is what state.json holds: the subnets that were chosen.
type state struct {
	Version int          `json:"version"`
	Subnet4 netip.Prefix `json:"subnet4"`
	Subnet6 netip.Prefix `json:"subnet6,omitzero"`
}

// makeNetwork makes the network as it is defined.
func (s *server) makeNetwork(start *wire.Message) error {
	n := &s.cfg.Network
	if len(n.Subnets()) == 0 && !n.Uplink() {
		if err := s.chooseSubnets(n); err != nil {
			return err
		}
	}
	var uplink *netstack.Uplink
	if n.Uplink() {
		var err error
		if uplink, err = s.openUplink(start); err != nil {
			return err
		}
		if n.DHCP() {
			return s.serveNetwork(uplink)
		}
	}
	if n.Subnet4.IsValid() && !n.Gateway4.IsValid() {
		n.Gateway4 = n.Subnet4.Addr().Next()
	}
	if n.Subnet6.IsValid() && !n.Gateway6.IsValid() {
		n.Gateway6 = n.Subnet6.Addr().Next()
	}
	if _, err := netstack.NewIPAM(n.IPAM(0)); err != nil {
		return err
	}
	return s.serveNetwork(uplink)
}

// serveNetwork starts the switch and the name server.
func (s *server) serveNetwork(uplink *netstack.Uplink) (err error) {
	n := &s.cfg.Network
	var wait time.Duration
	if s.killed {
		wait = settle
	}
	if s.dns, err = netstack.NewResolver(netstack.ResolverConfig{
		Settle: wait, Gateway4: n.Gateway4, Gateway6: n.Gateway6, Subnets: n.Subnets(), Network: n.PublicName(), Internal: n.Internal, Peers: s.names.elsewhere,
		ResolvConf: s.cfg.ResolvConf, Logger: s.log, MaxRate: n.DNSRate, RefuseInside: n.RebindProtection,
	}); err != nil {
		return err
	}
	s.net, err = netstack.New(netstack.Config{
		Name: n.Name, Subnet4: n.Subnet4, Subnet6: n.Subnet6, Gateway4: n.Gateway4, Gateway6: n.Gateway6, MTU: n.MTU,
		Internal: n.Internal, Isolate: n.Isolate, Private: n.Private, VLAN: n.VLAN, Hairpin: true, DNS: s.dns, Logger: s.log,
		Limits: netstack.Limits{TCPFlows: n.TCPFlows, TCPMemory: n.TCPMemory, UDPFlows: n.UDPFlows},
		Uplink: uplink, Elsewhere: (&neighbours{s: s}).has,
	})
	return err
}

// chooseSubnets takes those of the process before this one if that was killed, for
// its sandboxes are still there.
func (s *server) chooseSubnets(n *netdef.Network) error {
	if old := s.readState(); old != nil {
		n.Subnet4, n.Subnet6 = old.Subnet4, old.Subnet6
		s.log.Info("took over from a process that was killed")
		return nil
	}
	host, err := netstack.HostPrefixes()
	if err != nil {
		return err
	}
	others, err := s.defs.List()
	if err != nil {
		s.log.Warn("other networks", "err", err)
	}
	c, err := netdef.ChooseDefault(others, host)
	if err != nil {
		return err
	}
	if c.Overlap.IsValid() {
		s.log.Warn("no subnet is free of the host's routes; sandboxes cannot reach this part of one", "route", c.Overlap, "subnet", c.Subnet4)
	}
	n.Subnet4, n.Subnet6 = c.Subnet4, c.Subnet6
	b, err := json.Marshal(state{1, n.Subnet4, n.Subnet6})
	if err == nil {
		err = s.dir.write(stateName, b)
	}
	return err
}

func (s *server) readState() *state {
	st, err := readState(s.dir.at(stateName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("unusable state of the process before this one", "err", err)
	}
	return st
}

// readState returns what a process of the default network has written.
func readState(path string) (*state, error) {
	b, err := atomicfile.Read(path, 64<<10)
	if err != nil {
		return nil, err
	}
	var st state
	if err := json.Unmarshal(b, &st); err != nil {
		return nil, err
	}
	if st.Version != 1 || !st.Subnet4.IsValid() {
		return nil, fmt.Errorf("version %d, subnet %s", st.Version, st.Subnet4)
	}
	return &st, nil
}

func (s *server) info() Info {
	i := Info{PID: os.Getpid(), Name: s.cfg.Name, MTU: s.cfg.MTU}
	if i.MTU == 0 {
		i.MTU = s.net.MTU()
	}
	i.Subnet4, i.Subnet6 = s.cfg.Subnet4, s.cfg.Subnet6
	i.Gateway4, i.Gateway6 = s.cfg.Gateway4, s.cfg.Gateway6
	return i
}

func (s *server) wake() {
	select {
	case s.idleC <- struct{}{}:
	default:
	}
}

// run serves until the network has been idle for the linger time, or ctx ends.
func (s *server) run(ctx context.Context) error {
	accepted := make(chan error, 1)
	go func() { accepted <- s.accept() }()
	var err error
	leave := false
	for !leave {
		select {
		case <-s.idleC:
			leave = s.mayLeave()
		case <-ctx.Done():
			s.log.Info("network is told to go", "cause", context.Cause(ctx))
			// The subnets stay: sandboxes that are attached will want them.
			err = s.closeSocket()
			leave = true
		case err = <-accepted:
			err = fmt.Errorf("accept: %w", err)
			accepted <- nil
			leave = true
		}
	}
	s.mu.Lock()
	s.leaving = true
	s.mu.Unlock()
	s.ln.Close()
	<-accepted
	s.cancel()
	s.wg.Wait()
	return errors.Join(err, s.close())
}

// mayLeave removes the network's files if nobody is here and nobody is on the
// way. From then on a client finds no socket, or one whose other end closes.
func (s *server) mayLeave() bool {
	if s.mustStay() {
		return false
	}
	lock, err := s.dir.tryLock()
	switch {
	case err != nil:
		// The directory was removed, with the session of the user perhaps.
		// Nobody finds us any more; who has a connection stays.
		s.log.Error("leave without the lock", "err", err)
	case lock == nil: // somebody is about to connect
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.sessions) == 0 {
			s.idle.Reset(s.cfg.Linger)
		}
		return false
	default:
		defer lock.Close()
	}
	s.mu.Lock()
	// From here on a connection is closed before its hello.
	s.leaving = len(s.sessions) == 0
	s.mu.Unlock()
	if !s.leaving {
		return false
	}
	s.log.Info("network is idle: leaving")
	// The socket goes first: without it the rest is of no use to anybody.
	for _, name := range []string{sockName, stateName, stateName + ".new", logName} {
		if err := s.dir.remove(name); err != nil {
			s.log.Error("leave", "err", err)
		}
	}
	return true
}

func (s *server) closeSocket() error {
	lock, err := s.dir.tryLock()
	if err != nil || lock == nil {
		return err // somebody is starting: he will replace the socket
	}
	defer lock.Close()
	return s.dir.remove(sockName)
}

// accept hands each connection to a session of its own.
func (s *server) accept() error {
	for {
		uc, err := s.ln.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.ENOMEM) {
				s.refused.Add(1)
				s.log.Error("accept", "err", err)
				time.Sleep(100 * time.Millisecond)
				continue
			}
			return err
		}
		conn := wire.NewUnixConn(uc)
		if err := checkPeer(conn); err != nil {
			s.refused.Add(1)
			s.log.Warn("connection refused", "err", err)
			conn.Close()
			continue
		}
		if !s.begin(conn) {
			s.refused.Add(1)
			s.log.Warn("connection refused: leaving, or too many", "limit", maxConns)
			conn.Close()
		}
	}
}

func (s *server) begin(conn *wire.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sessions) >= maxConns || s.leaving {
		return false
	}
	x := newSession(s, conn)
	s.sessions[x] = struct{}{}
	s.idle.Stop()
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		x.run()
		s.end(x)
	}()
	return true
}

func (s *server) end(x *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, x)
	if len(s.sessions) == 0 {
		s.idle.Reset(s.cfg.Linger)
	}
}

// close ends the network; the claim on the directory goes last.
func (s *server) close() error {
	var errs []error
	if s.idle != nil {
		s.idle.Stop()
	}
	if s.fds != nil {
		s.fds.Close()
	}
	if s.uplink != nil {
		s.uplink.Close()
	}
	if s.ln != nil {
		s.ln.Close()
	}
	if s.net != nil {
		errs = append(errs, s.net.Close())
	}
	s.names.close()
	if s.dns != nil {
		errs = append(errs, s.dns.Close())
	}
	return errors.Join(append(errs, s.dir.close())...)
}
