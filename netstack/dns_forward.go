package netstack

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxJunk is how many packets that answer another question are read before
	// a server is given up: somebody is guessing.
	maxJunk = 64
	// badFor is how long a server that was silent is asked last.
	badFor = 30 * time.Second
	maxBad = 16
)

// upstreamConf is who to ask, and how.
type upstreamConf struct {
	servers     []netip.AddrPort
	timeout     time.Duration
	attempts    int
	rotate, tcp bool
}

var (
	errSpoofed  = errors.New("too many answers to other questions")
	errNoServer = errors.New("no name server")
)

// upstreamQuery is the client's query as we ask it: its question and flags, an
// id of ours, EDNS with our size.
func upstreamQuery(req *dns.Msg) *dns.Msg {
	m := &dns.Msg{Question: []dns.Question{req.Question[0]}}
	m.RecursionDesired, m.CheckingDisabled, m.AuthenticatedData = req.RecursionDesired, req.CheckingDisabled, req.AuthenticatedData
	out := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	out.SetUDPSize(ednsSize)
	if opt := req.IsEdns0(); opt != nil {
		out.SetDo(opt.Do())
		out.Option = endToEnd(opt.Option)
	}
	m.Extra = []dns.RR{out}
	return m
}

// ask tries each server, as often as there are attempts. A server that fails
// (time-out, SERVFAIL, REFUSED and the like) is followed by the next one; its
// answer is what the client gets if nobody has a better one.
func (r *Resolver) ask(ctx context.Context, m *dns.Msg, conf upstreamConf) (*dns.Msg, error) {
	servers := r.bad.order(conf.servers, conf.rotate)
	var second *dns.Msg
	last := errNoServer
	for range conf.attempts {
		for _, s := range servers {
			a, err := r.askServer(ctx, m, s, conf)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err != nil {
				last = err
				r.bad.mark(s)
				continue
			}
			r.bad.clear(s)
			switch {
			case a.Truncated:
				second = a // the whole one was not to be had here
				continue
			case a.Rcode == dns.RcodeSuccess, a.Rcode == dns.RcodeNameError:
				return a, nil
			}
			if second == nil {
				second = a
			}
		}
		if second != nil {
			// A server that says no says so again.
			return second, nil
		}
	}
	return nil, last
}

// askServer asks one server, by UDP first; a truncated answer again by TCP.
func (r *Resolver) askServer(ctx context.Context, m *dns.Msg, s netip.AddrPort, conf upstreamConf) (*dns.Msg, error) {
	network := "udp"
	if conf.tcp {
		network = "tcp"
	}
	a, err := r.roundTrip(ctx, network, m, s, conf.timeout)
	if err != nil {
		return nil, err
	}
	if (a.Rcode == dns.RcodeFormatError || a.Rcode == dns.RcodeNotImplemented) && a.IsEdns0() == nil {
		// A server from before EDNS.
		plain := m.Copy()
		plain.Extra = nil
		if a, err = r.roundTrip(ctx, network, plain, s, conf.timeout); err != nil {
			return nil, err
		}
	}
	if a.Truncated && network == "udp" {
		whole, err := r.roundTrip(ctx, "tcp", m, s, conf.timeout)
		if err != nil {
			r.log.Debug("truncated answer, and none by TCP", "server", s, "err", err)
			return a, nil
		}
		return whole, nil
	}
	return a, nil
}

// roundTrip sends m with a fresh id from a fresh port and waits for its answer.
func (r *Resolver) roundTrip(ctx context.Context, network string, m *dns.Msg, s netip.AddrPort, timeout time.Duration) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := r.cfg.Dial(ctx, network, s.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	q := *m // the sections are only read
	q.Id = randomID()
	wire, err := q.Pack()
	if err != nil {
		return nil, fmt.Errorf("pack query: %w", err)
	}
	if network == "tcp" {
		wire = append(binary.BigEndian.AppendUint16(nil, uint16(len(wire))), wire...)
	}
	if _, err := conn.Write(wire); err != nil {
		return nil, err
	}
	buf := dnsBuffers.Get().(*[]byte)
	defer dnsBuffers.Put(buf)
	for range maxJunk {
		n, err := readAnswer(conn, network, *buf)
		if err != nil {
			return nil, err
		}
		a := new(dns.Msg)
		if n >= 12 && binary.BigEndian.Uint16(*buf) == q.Id && a.Unpack((*buf)[:n]) == nil && answers(&q, a) {
			return a, nil
		}
		if n >= 12 && binary.BigEndian.Uint16(*buf) == q.Id && headerOnlyError((*buf)[:n]) {
			// Old servers refuse without repeating the question.
			return &dns.Msg{MsgHdr: dns.MsgHdr{Response: true, Rcode: int((*buf)[3] & 15)}}, nil
		}
		r.count.spoofed.Add(1)
		if network == "tcp" {
			break // the server we connected to, and it is confused
		}
	}
	return nil, fmt.Errorf("%s: %w", s, errSpoofed)
}

var dnsBuffers = sync.Pool{New: func() any { b := make([]byte, dns.MaxMsgSize); return &b }}

func readAnswer(conn net.Conn, network string, buf []byte) (int, error) {
	if network == "udp" {
		return conn.Read(buf)
	}
	if _, err := io.ReadFull(conn, buf[:2]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(buf))
	if _, err := io.ReadFull(conn, buf[:n]); err != nil {
		return 0, err
	}
	return n, nil
}

// answers says whether a is an answer to q and not just any packet.
func answers(q, a *dns.Msg) bool {
	if !a.Response || a.Opcode != dns.OpcodeQuery || len(a.Question) != 1 {
		return false
	}
	x, y := q.Question[0], a.Question[0]
	return x.Qtype == y.Qtype && x.Qclass == y.Qclass && strings.EqualFold(x.Name, y.Name)
}

// headerOnlyError is an answer of a bare header that says FORMERR, NOTIMP,
// SERVFAIL or REFUSED.
func headerOnlyError(b []byte) bool {
	if len(b) != 12 || b[2]&0xf8 != 0x80 {
		return false
	}
	for _, c := range b[4:] {
		if c != 0 {
			return false
		}
	}
	switch int(b[3] & 15) {
	case dns.RcodeFormatError, dns.RcodeNotImplemented, dns.RcodeServerFailure, dns.RcodeRefused:
		return true
	}
	return false
}

// randomID is the one secret an attacker off the path must guess besides the
// port, so it does not come from a generator whose state may leak.
func randomID() uint16 {
	var b [2]byte
	rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint16(b[:])
}

// badServers remembers who was silent, so that a dead first server costs its
// time-out once in a while and not with every query.
type badServers struct {
	now func() time.Time

	mu    sync.Mutex // guards until
	until map[netip.AddrPort]time.Time
}

func (b *badServers) mark(s netip.AddrPort) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.until == nil || len(b.until) >= maxBad {
		b.until = map[netip.AddrPort]time.Time{} // old ones from other networks
	}
	b.until[s] = b.now().Add(badFor)
}

func (b *badServers) clear(s netip.AddrPort) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.until, s)
}

// order puts the silent ones last, otherwise as configured or rotated.
func (b *badServers) order(servers []netip.AddrPort, rotate bool) []netip.AddrPort {
	n := len(servers)
	start := 0
	if rotate && n > 1 {
		start = mrand.IntN(n)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	var good, bad []netip.AddrPort
	for i := range n {
		s := servers[(start+i)%n]
		if now.Before(b.until[s]) {
			bad = append(bad, s)
		} else {
			good = append(good, s)
		}
	}
	return append(good, bad...)
}
