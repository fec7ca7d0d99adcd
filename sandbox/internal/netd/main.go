package netd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/netstack"
	"golang.org/x/sys/unix"
)

const (
	defaultLinger = 3 * time.Second
	// claimTime is how long leases of before are kept for their owners.
	claimTime = 10 * time.Second
)

// server is the process's state.
type server struct {
	name string
	dir  netDir
	log  *slog.Logger
	net  *netstack.Network
	dns  *netstack.Resolver
	ipam *netstack.IPAM

	mu       sync.Mutex // guards what follows
	sessions map[*session]struct{}
	active   time.Time // when the last session ended
	closing  bool
}

// Main is the body of the process. conn leads to the starter, who waits until the
// process listens; nothing after that depends on it.
func Main(ctx context.Context, conn *wire.Conn) error {
	runtime.UnlockOSThread()
	m, err := conn.Recv()
	if err != nil {
		return err
	}
	var cfg serve
	if m.Type != msgServe {
		return fmt.Errorf("expected %q, got %q", msgServe, m.Type)
	}
	if err := m.Decode(&cfg); err != nil {
		return err
	}
	linger := defaultLinger
	if cfg.Linger != "" {
		if linger, err = time.ParseDuration(cfg.Linger); err != nil || linger < 0 {
			return conn.Reply(m, nil, fmt.Errorf("linger time %q is not a duration such as 3s", cfg.Linger))
		}
	}
	s, ln, err := newServer(cfg)
	if err != nil {
		return conn.Reply(m, nil, err)
	}
	if err := conn.Reply(m, nil, nil); err != nil {
		s.log.Info("the starter has gone", "err", err)
	}
	conn.Close()
	return s.run(ctx, ln, linger)
}

// newServer makes the network. The starter holds the lock meanwhile.
func newServer(cfg serve) (_ *server, _ *net.UnixListener, err error) {
	if err := dropPrivilege(); err != nil {
		return nil, nil, err
	}
	d, err := openDir(cfg.RuntimeDir, cfg.Name)
	if err != nil {
		return nil, nil, err
	}
	s := &server{
		name: cfg.Name, dir: d, sessions: map[*session]struct{}{}, active: time.Now(),
		log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	state, err := os.ReadFile(d.file("state.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	if s.ipam, err = s.openIPAM(state); err != nil {
		return nil, nil, err
	}
	sub4, sub6 := s.ipam.Subnets()
	gw4, gw6 := s.ipam.Gateways()
	if s.dns, err = netstack.NewResolver(netstack.ResolverConfig{
		Gateway4: gw4, Gateway6: gw6, Subnets: []netip.Prefix{sub4, sub6}, Logger: s.log,
	}); err != nil {
		return nil, nil, err
	}
	if s.net, err = netstack.New(netstack.Config{
		Name: cfg.Name, Subnet4: sub4, Subnet6: sub6, Gateway4: gw4, Gateway6: gw6, DNS: s.dns, Logger: s.log,
	}); err != nil {
		return nil, nil, err
	}
	ln, err := d.listen()
	return s, ln, err
}

// openIPAM takes the subnets of the process before, whose sandboxes may still run,
// or chooses free ones.
func (s *server) openIPAM(state []byte) (*netstack.IPAM, error) {
	var saved struct {
		Subnet4 netip.Prefix `json:"subnet4"`
		Subnet6 netip.Prefix `json:"subnet6"`
	}
	if len(state) > 0 {
		if err := json.Unmarshal(state, &saved); err != nil {
			s.log.Warn("the saved state cannot be read and is given up", "err", err)
		}
	}
	cfg := netstack.IPAMConfig{Subnet4: saved.Subnet4, Subnet6: saved.Subnet6}
	if !cfg.Subnet4.IsValid() {
		host, err := netstack.HostPrefixes()
		if err != nil {
			return nil, err
		}
		choice, err := netstack.ChooseSubnets(uint32(os.Getuid()), s.name, nil, host)
		if err != nil {
			return nil, err
		}
		cfg.Subnet4, cfg.Subnet6 = choice.Subnet4, choice.Subnet6
		if choice.Overlap.IsValid() {
			s.log.Warn("the subnet lies in a route of the host's", "subnet", choice.Subnet4, "route", choice.Overlap)
		}
	}
	p, err := netstack.NewIPAM(cfg)
	if err != nil {
		return nil, err
	}
	if saved.Subnet4.IsValid() {
		n, err := p.Restore(state, claimTime)
		if err != nil {
			s.log.Warn("the saved leases are given up", "err", err)
		}
		s.log.Info("took over from a process that was killed", "leases", n)
	}
	return p, nil
}

// dropPrivilege gives up what a process started by a monitor (after its
// predecessor was killed) has in that sandbox's user namespace. Only real root
// keeps the right to publish ports below 1024.
func dropPrivilege() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have, keep [2]unix.CapUserData
	if err := unix.Capget(&hdr, &have[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	bind := uint32(1<<unix.CAP_NET_BIND_SERVICE) & have[0].Permitted
	keep[0] = unix.CapUserData{Effective: bind, Permitted: bind}
	for _, call := range [][3]uintptr{
		{unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL},
		{unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&keep[0]))},
	} {
		if _, _, e := syscall.AllThreadsSyscall6(call[0], call[1], call[2], 0, 0, 0, 0); e != 0 {
			return os.NewSyscallError("drop capabilities", e)
		}
	}
	return nil
}

// run serves until nobody has been attached for the linger time, or a signal.
func (s *server) run(ctx context.Context, ln *net.UnixListener, linger time.Duration) error {
	defer s.close()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	go s.accept(ln)
	t := time.NewTicker(max(linger/4, 10*time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			s.log.Info("ended by a signal")
			return s.leave(ln, true)
		case <-t.C:
			s.mu.Lock()
			idle := len(s.sessions) == 0 && time.Since(s.active) >= linger
			s.mu.Unlock()
			if !idle {
				continue
			}
			if err := s.leave(ln, false); err != errBusy {
				return err
			}
		}
	}
}

var errBusy = errors.New("a sandbox came in between")

// leave closes the socket under the lock: a starter who holds it finds either a
// process that stays, or none.
func (s *server) leave(ln *net.UnixListener, always bool) error {
	lock, err := s.dir.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	s.mu.Lock()
	if len(s.sessions) > 0 && !always {
		s.mu.Unlock()
		return errBusy
	}
	s.closing = true
	s.mu.Unlock()
	err = s.dir.clear()
	return errors.Join(err, ln.Close())
}

func (s *server) close() {
	s.mu.Lock()
	s.closing = true
	var list []*session
	for x := range s.sessions {
		list = append(list, x)
	}
	s.mu.Unlock()
	for _, x := range list {
		x.conn.Close()
		<-x.done
	}
	if s.net != nil {
		if err := s.net.Close(); err != nil {
			s.log.Warn("close the network", "err", err)
		}
	}
	if s.dns != nil {
		s.dns.Close()
	}
}

// accept starts a session for each connection of the same user.
func (s *server) accept(ln *net.UnixListener) {
	for {
		uc, err := ln.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.log.Warn("accept", "err", err)
			time.Sleep(50 * time.Millisecond) // out of descriptors, say
			continue
		}
		conn := wire.NewUnixConn(uc)
		if err := checkPeer(conn); err != nil {
			s.log.Warn("refused a connection", "err", err)
			conn.Close()
			continue
		}
		s.mu.Lock()
		if s.closing || len(s.sessions) >= maxConns {
			s.mu.Unlock()
			conn.Close()
			continue
		}
		x := &session{s: s, conn: conn, done: make(chan struct{})}
		s.sessions[x] = struct{}{}
		s.mu.Unlock()
		go x.serve()
	}
}

// save writes the leases, so that they survive a kill.
func (s *server) save() error {
	b, err := json.Marshal(s.ipam)
	if err != nil {
		return err
	}
	tmp := s.dir.file("state.json.tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(s.dir.path, "state.json"))
}
