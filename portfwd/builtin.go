package portfwd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port/builtin"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port/builtin/opaque"
)

const (
	builtinSocket = ".bp.sock"
	builtinReady  = ".bp-ready.pipe"
)

// BuiltinOpaque is what RunBuiltinChild needs to find the parent that New made
// with this StateDir. New must have returned before the child is started.
func BuiltinOpaque(stateDir string) map[string]string {
	return map[string]string{
		opaque.SocketPath:         filepath.Join(stateDir, builtinSocket),
		opaque.ChildReadyPipePath: filepath.Join(stateDir, builtinReady),
	}
}

// RunBuiltinChild is the guest's half of the builtin driver; it returns when ctx
// ends. It runs in a process that is in the guest's network namespace, or, with
// netns (an open /proc/PID/ns/net), in one that has CAP_SYS_ADMIN over it and
// over its own user namespace; then only the dialling threads enter it.
func RunBuiltinChild(ctx context.Context, opaque map[string]string, netns *os.File, log *slog.Logger) error {
	path := ""
	if netns != nil {
		path = fmt.Sprintf("/proc/self/fd/%d", netns.Fd())
	}
	err := builtin.NewChildDriver(newLogWriter(log)).RunChildDriver(opaque, ctx.Done(), path)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// builtinDriver adapts RootlessKit's driver: one of its ports per bound address.
type builtinDriver struct {
	rk    port.ParentDriver
	dir   string
	quit  chan struct{}
	init  chan struct{} // closed when the child has answered
	ended chan struct{} // closed when RunParentDriver has returned
	err   error         // set before ended is closed
	once  sync.Once
}

func newBuiltin(dir string, log *slog.Logger) (*builtinDriver, error) {
	const maxUnixPath = 107
	switch sock := filepath.Join(dir, builtinSocket); {
	case dir == "":
		return nil, errors.New("portfwd: driver builtin needs Config.StateDir")
	case len(sock) > maxUnixPath:
		return nil, fmt.Errorf("portfwd: driver builtin: socket path %s has %d characters, a Unix socket's may have %d", sock, len(sock), maxUnixPath)
	default:
		// Left over from a process that was killed; the child binds it anew.
		if err := os.Remove(sock); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("portfwd: driver builtin: %w", err)
		}
	}
	// Transparency would need iptables inside the guest; the stack driver is
	// our way to keep the client's address.
	rk, err := builtin.NewParentDriver(newLogWriter(log), dir, false)
	if err != nil {
		return nil, fmt.Errorf("portfwd: driver builtin: %w", err)
	}
	b := &builtinDriver{rk: rk, dir: dir, quit: make(chan struct{}), init: make(chan struct{}), ended: make(chan struct{})}
	ready := make(chan struct{}, 1)
	go func() {
		b.err = rk.RunParentDriver(ready, b.quit, nil)
		close(b.ended)
	}()
	go func() {
		select {
		case <-ready:
			close(b.init)
		case <-b.ended:
		}
	}()
	return b, nil
}

// ready waits for the guest's half.
func (b *builtinDriver) ready(ctx context.Context) error {
	select {
	case <-b.init:
		return nil
	case <-b.ended:
		if b.err != nil {
			return fmt.Errorf("the builtin driver has ended: %w", b.err)
		}
		return ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("wait for the guest's half of the builtin driver: %w", context.Cause(ctx))
	}
}

func (b *builtinDriver) close() error {
	b.once.Do(func() {
		close(b.quit)
		// Without a child, RunParentDriver still waits for a writer to open this.
		path := filepath.Join(b.dir, builtinReady)
		for waiting := true; waiting; {
			f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
			if err == nil {
				f.Close()
			}
			select {
			case <-b.ended:
				waiting = false
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	// The child removes the socket when its listener is closed.
	if err := os.Remove(filepath.Join(b.dir, builtinReady)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// bind adds one address. The driver cannot choose a port: one that is free is
// looked up first, and taken by somebody else in between is a reason to retry.
func (b *builtinDriver) bind(ctx context.Context, spec port.Spec, ap netip.AddrPort, g Guest) (boundSocket, error) {
	proto := transport(spec.Proto)
	if ap.Port() == 0 {
		n, err := pickPort(ctx, proto, ap)
		if err != nil {
			return nil, err
		}
		ap = netip.AddrPortFrom(ap.Addr(), n)
	}
	child := spec.ChildIP
	if child == "" {
		// Its own default is 127.0.0.1, where services listen that are not meant
		// to be reached from outside.
		ip := g.Addr4()
		if !ip.IsValid() {
			ip = g.Addr6()
		}
		child = ip.String()
	}
	st, err := b.rk.AddPort(ctx, port.Spec{Proto: network(proto, ap.Addr()), ParentIP: ap.Addr().String(),
		ParentPort: int(ap.Port()), ChildIP: child, ChildPort: spec.ChildPort})
	if err != nil {
		return nil, err
	}
	return &builtinSocketHandle{b: b, id: st.ID, port: ap.Port()}, nil
}

func pickPort(ctx context.Context, proto string, ap netip.AddrPort) (uint16, error) {
	var s boundSocket
	var err error
	if proto == "udp" {
		s, err = listenUDP(ctx, ap)
	} else {
		s, err = listenTCP(ctx, ap, 1)
	}
	if err != nil {
		return 0, err
	}
	return s.localPort(), s.close()
}

type builtinSocketHandle struct {
	b    *builtinDriver
	id   int
	port uint16
}

func (h *builtinSocketHandle) localPort() uint16 { return h.port }
func (h *builtinSocketHandle) start(*published)  {} // AddPort has started it
func (h *builtinSocketHandle) close() error      { return h.b.rk.RemovePort(context.Background(), h.id) }

// logWriter logs each line that RootlessKit writes. It writes whole lines.
type logWriter struct{ log *slog.Logger }

func newLogWriter(log *slog.Logger) io.Writer {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return logWriter{log}
}

func (w logWriter) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		w.log.Debug("builtin port driver", "msg", strings.TrimSpace(line))
	}
	return len(b), nil
}
