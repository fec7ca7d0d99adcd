package portfwd

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// The way of a TCP connection, in the order of the functions below: accepted,
// within the limits, sent the direct way or through the stack.

// tcpSocket is one listening socket.
type tcpSocket struct{ ln *net.TCPListener }

func (s *tcpSocket) localPort() uint16 { return s.ln.Addr().(*net.TCPAddr).AddrPort().Port() }
func (s *tcpSocket) close() error      { return s.ln.Close() }

func (s *tcpSocket) start(p *published) { p.wg.Go(func() { s.accept(p) }) }

// accept takes connections until the listener is closed. When the process is
// out of descriptors it waits, and the clients wait in the backlog.
func (s *tcpSocket) accept(p *published) {
	const minWait, maxWait = 5 * time.Millisecond, time.Second
	wait := minWait
	for {
		c, err := s.ln.AcceptTCP()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			p.m.count.acceptErrors.Add(1)
			if errors.Is(err, syscall.ECONNABORTED) {
				continue
			}
			p.m.cfg.Logger.Warn("accept on a published port", "port", describe(p.spec), "err", err, "retry_in", wait)
			select {
			case <-time.After(wait):
			case <-p.ctx.Done():
				return
			}
			wait = min(2*wait, maxWait)
			continue
		}
		wait = minWait
		p.m.count.accepted.Add(1)
		if !take(&p.m.count.conns, 1, int64(p.m.lim.Conns)) {
			p.m.count.overLimit.Add(1)
			reset(c)
			continue
		}
		select {
		case p.dials <- struct{}{}:
		case <-p.ctx.Done():
			reset(c)
			p.m.count.conns.Add(-1)
			return
		}
		p.wg.Go(func() {
			defer p.m.count.conns.Add(-1)
			p.serve(c)
		})
	}
}

// serve carries one connection to its end. It comes with a dial slot.
func (p *published) serve(c *net.TCPConn) {
	defer c.Close()
	client := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
	local := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	if src, dst, ok := p.viaStack(client, local); ok {
		// The stack bounds its own dials.
		<-p.dials
		p.m.count.stacked.Add(1)
		p.failed(client, p.m.cfg.Stack.ForwardTCP(p.ctx, c, src, dst))
		return
	}
	g, err := p.dialTCP(client.Addr())
	<-p.dials
	if err != nil {
		p.failed(client, err)
		reset(c)
		return
	}
	p.m.count.direct.Add(1)
	in, out := relay(p.ctx, p.m.pipes, c, g)
	p.m.count.bytesIn.Add(uint64(in))
	p.m.count.bytesOut.Add(uint64(out))
}

// failed counts and logs why a connection did not come about.
func (p *published) failed(client netip.AddrPort, err error) {
	switch {
	case err == nil || p.ctx.Err() != nil:
		return
	case errors.Is(err, syscall.ECONNREFUSED):
		p.m.count.refused.Add(1)
	default:
		p.m.count.dialErrors.Add(1)
	}
	p.m.cfg.Logger.LogAttrs(context.Background(), slog.LevelDebug, "published port: connection failed",
		slog.String("port", describe(p.spec)), slog.Any("client", client), slog.Any("err", err))
}

// reset closes a connection with a RST, which is what a client of a closed port
// gets.
func reset(c *net.TCPConn) {
	c.SetLinger(0) // fails only on a connection that is gone already
	c.Close()
}
