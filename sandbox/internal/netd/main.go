package netd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/netstack"
	"golang.org/x/sys/unix"
)

// MainConfig is what the process' role dispatch knows.
type MainConfig struct {
	// Log is standard error, the log file. Nil: no log. It is kept below 1 MiB.
	Log *os.File
}

// claimPatience is how long a killed predecessor may take to be gone. Ensure
// tries again after it.
const claimPatience = time.Second

// Main is the body of a network's process. conn is the connection to the
// starter; Main reads the start message, answers it and closes conn. It returns
// nil after the linger time or when ctx ends, and then nothing of it runs.
func Main(ctx context.Context, conn *wire.Conn, cfg MainConfig) error {
	defer conn.Close()
	// Away from the starter's terminal and its signals. EPERM: already so.
	if _, err := unix.Setsid(); err != nil && !errors.Is(err, unix.EPERM) {
		return os.NewSyscallError("setsid", err)
	}
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
	ipam *netstack.IPAM

	ctx     context.Context // ends when the process leaves
	cancel  context.CancelFunc
	refused atomic.Uint64

	mu        sync.Mutex // guards what follows
	sessions  map[*session]struct{}
	byID      map[string]*session
	published map[portKey]*session
	leaving   bool
	idle      *time.Timer // runs while there are no sessions

	idleC   chan struct{}
	wg      sync.WaitGroup // sessions
	stateMu sync.Mutex     // orders writes of the state
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
	if s.cfg.Hold <= 0 {
		s.cfg.Hold = 10 * time.Second
	}
	s.log = newLog(mc.Log, s.cfg.Debug)
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
	if err := s.makeNetwork(); err != nil {
		return nil, wire.ToError("make network "+s.cfg.Name, toWire(err))
	}
	if s.ln, err = s.dir.listen(); err != nil {
		return nil, wire.ToError("listen for sandboxes of network "+s.cfg.Name, err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.idle = time.AfterFunc(s.cfg.Linger, s.wake)
	s.log.Info("network is up", "name", s.cfg.Name, "pid", os.Getpid(), "info", s.info())
	return s, nil
}

// state is what state.json holds.
type state struct {
	Version int             `json:"version"`
	Subnet4 netip.Prefix    `json:"subnet4"`
	Subnet6 netip.Prefix    `json:"subnet6,omitzero"`
	IPAM    json.RawMessage `json:"ipam"`
}

// makeNetwork chooses the subnets: the caller's, those of before a crash, or
// such as the host does not use.
func (s *server) makeNetwork() error {
	old := s.readState()
	sub4, sub6 := s.cfg.Subnet4, s.cfg.Subnet6
	switch {
	case sub4.IsValid():
	case old != nil:
		sub4, sub6 = old.Subnet4, old.Subnet6
	default:
		host, err := netstack.HostPrefixes()
		if err != nil {
			return err
		}
		c, err := netstack.ChooseSubnets(uint32(os.Geteuid()), s.cfg.Name, nil, host)
		if err != nil {
			return err
		}
		if c.Overlap.IsValid() {
			s.log.Warn("no subnet is free of the host's routes; sandboxes cannot reach this part of one", "route", c.Overlap, "subnet", c.Subnet4)
		}
		sub4, sub6 = c.Subnet4, c.Subnet6
	}
	var err error
	if s.ipam, err = netstack.NewIPAM(netstack.IPAMConfig{Subnet4: sub4, Subnet6: sub6, MaxLeases: s.cfg.MaxSandboxes}); err != nil {
		return err
	}
	if old != nil {
		n, err := s.ipam.Restore(old.IPAM, s.cfg.Hold)
		if err != nil {
			s.log.Warn("leases of the process before this one are lost", "err", err)
		} else {
			s.log.Info("took over from a process that was killed", "leases", n)
		}
	}
	g4, g6 := s.ipam.Gateways()
	sub4, sub6 = s.ipam.Subnets()
	subnets := []netip.Prefix{sub4}
	if sub6.IsValid() {
		subnets = append(subnets, sub6)
	}
	if s.dns, err = netstack.NewResolver(netstack.ResolverConfig{Gateway4: g4, Gateway6: g6, Subnets: subnets, Network: s.cfg.Name, Internal: s.cfg.Internal,
		ResolvConf: s.cfg.ResolvConf, Logger: s.log}); err != nil {
		return err
	}
	s.net, err = netstack.New(netstack.Config{Name: s.cfg.Name, Subnet4: sub4, Subnet6: sub6, Gateway4: g4, Gateway6: g6, MTU: s.cfg.MTU, DNS: s.dns, Logger: s.log,
		Internal: s.cfg.Internal, Isolate: s.cfg.Isolate, Private: s.cfg.Private, VLAN: s.cfg.VLAN, Hairpin: true})
	return err
}

func (s *server) readState() *state {
	f, err := s.dir.open(stateName, unix.O_RDONLY)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			s.log.Warn("state of the process before this one", "err", err)
		}
		return nil
	}
	defer f.Close()
	var st state
	b, err := io.ReadAll(io.LimitReader(f, 4<<20))
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	if err == nil && (st.Version != 1 || !st.Subnet4.IsValid()) {
		err = fmt.Errorf("version %d, subnet %s", st.Version, st.Subnet4)
	}
	if err != nil {
		s.log.Warn("unusable state of the process before this one", "err", err)
		return nil
	}
	return &st
}

// saveState writes the leases for whoever follows. Failing it costs a later
// process their addresses for as long as their owners take to come back.
func (s *server) saveState() {
	s.stateMu.Lock()
	defer s.stateMu.Unlock()
	st := state{Version: 1}
	st.Subnet4, st.Subnet6 = s.ipam.Subnets()
	var err error
	var b []byte
	if st.IPAM, err = s.ipam.MarshalJSON(); err == nil {
		if b, err = json.Marshal(st); err == nil {
			err = s.dir.write(stateName, b)
		}
	}
	if err != nil {
		s.log.Error("leases not saved", "err", err)
	}
}

func (s *server) info() Info {
	i := Info{PID: os.Getpid(), Name: s.cfg.Name, MTU: s.cfg.MTU}
	if i.MTU == 0 {
		i.MTU = netstack.DefaultMTU
	}
	i.Subnet4, i.Subnet6 = s.ipam.Subnets()
	i.Gateway4, i.Gateway6 = s.ipam.Gateways()
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
			// The state stays: sandboxes that are attached will want it.
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
	if s.ln != nil {
		s.ln.Close()
	}
	if s.net != nil {
		errs = append(errs, s.net.Close())
	}
	if s.dns != nil {
		errs = append(errs, s.dns.Close())
	}
	return errors.Join(append(errs, s.dir.close())...)
}
