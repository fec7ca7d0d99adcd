package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// A datagram begins with its session and its kind; a request to flood goes on with
// the rate in datagrams per second, the duration in ms and the size.
const (
	datagramMin  = 32
	datagramData = 'd'
	datagramAsk  = 'a'
	udpBatch     = 32
	udpBuffer    = 4 << 20
	udpLinger    = 150 * time.Millisecond // for what is still under way
)

// sessions are the counters of the UDP server, by session.
type sessions struct {
	mu sync.RWMutex
	m  map[uint32]*session
}

type session struct {
	got, sent atomic.Int64
	flooding  atomic.Bool
}

func (s *sessions) get(id uint32) *session {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.m[id]
}

// serve holds a session open as long as its TCP connection.
func (s *sessions) serve(c *net.TCPConn, id uint32) {
	ses := new(session)
	s.mu.Lock()
	s.m[id] = ses
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.m, id)
		s.mu.Unlock()
	}()
	var b [16]byte
	for {
		// The first answer says that the session is there.
		binary.BigEndian.PutUint64(b[:], uint64(ses.got.Load()))
		binary.BigEndian.PutUint64(b[8:], uint64(ses.sent.Load()))
		if _, err := c.Write(b[:]); err != nil {
			return
		}
		if _, err := io.ReadFull(c, b[:1]); err != nil {
			return
		}
	}
}

func serveUDP(addr string) (*sessions, error) {
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		return nil, err
	}
	c := pc.(*net.UDPConn)
	c.SetReadBuffer(udpBuffer)
	c.SetWriteBuffer(udpBuffer)
	s := &sessions{m: map[uint32]*session{}}
	go func() {
		p := ipv4.NewPacketConn(c)
		ms := messages(udpBatch)
		for {
			n, err := p.ReadBatch(ms, 0)
			if err != nil {
				if errors.Is(err, net.ErrClosed) {
					return
				}
				continue // an ICMP error of an earlier datagram
			}
			for _, m := range ms[:n] {
				s.datagram(c, m.Buffers[0][:m.N], m.Addr)
			}
		}
	}()
	return s, nil
}

func (s *sessions) datagram(c *net.UDPConn, b []byte, from net.Addr) {
	if len(b) < datagramMin {
		return
	}
	ses := s.get(binary.BigEndian.Uint32(b))
	if ses == nil {
		return
	}
	switch b[4] {
	case datagramData:
		ses.got.Add(1)
	case datagramAsk:
		if !ses.flooding.CompareAndSwap(false, true) {
			return
		}
		f := flood{
			session: binary.BigEndian.Uint32(b),
			rate:    float64(binary.BigEndian.Uint32(b[8:])),
			window:  time.Duration(binary.BigEndian.Uint32(b[12:])) * time.Millisecond,
			size:    int(binary.BigEndian.Uint32(b[16:])),
			to:      from.(*net.UDPAddr),
		}
		go f.run(c, &ses.sent)
	}
}

// udp offers datagrams of r.Size bytes at r.Rate for r.For, and counts what arrives.
func (a *agent) udp(r Request) (Reply, error) {
	id := rand.Uint32()
	tc, err := net.DialTimeout("tcp", r.Addr, 5*time.Second)
	if err != nil {
		return Reply{}, err
	}
	defer tc.Close()
	tc.SetDeadline(time.Now().Add(r.For + 10*time.Second))
	if _, err := tc.Write(header{kind: kindSession, session: id}.bytes()); err != nil {
		return Reply{}, err
	}
	var b [16]byte
	if _, err := io.ReadFull(tc, b[:]); err != nil {
		return Reply{}, fmt.Errorf("open the session: %w", err)
	}

	uc, err := net.Dial("udp", r.Addr)
	if err != nil {
		return Reply{}, err
	}
	defer uc.Close()
	c := uc.(*net.UDPConn)
	c.SetReadBuffer(udpBuffer)
	c.SetWriteBuffer(udpBuffer)

	f := flood{session: id, rate: r.Rate, window: r.For, size: r.Size}
	var rep Reply
	var got, sent atomic.Int64
	if r.Down {
		rep.Elapsed, err = f.receive(c, &got)
	} else {
		rep.Elapsed, err = f.run(c, &sent)
		time.Sleep(udpLinger)
	}
	if err != nil {
		return rep, err
	}
	if _, err := tc.Write(b[:1]); err != nil {
		return rep, err
	}
	if _, err := io.ReadFull(tc, b[:]); err != nil {
		return rep, fmt.Errorf("read the session: %w", err)
	}
	if r.Down {
		rep.Got, rep.Sent = got.Load(), int64(binary.BigEndian.Uint64(b[8:]))
	} else {
		rep.Got, rep.Sent = int64(binary.BigEndian.Uint64(b[:])), sent.Load()
	}
	if rep.Sent == 0 || rep.Got == 0 {
		return rep, fmt.Errorf("%d of %d datagrams arrived", rep.Got, rep.Sent)
	}
	rep.Rate = float64(rep.Got) / rep.Elapsed.Seconds()
	rep.Bytes = rep.Got * int64(r.Size)
	return rep, nil
}

type flood struct {
	session uint32
	rate    float64 // zero is as fast as possible
	window  time.Duration
	size    int
	to      *net.UDPAddr // nil on a connected socket
}

// run sends for the window at the rate, in small batches evenly spread: a burst
// would measure the size of somebody's receive buffer.
func (f flood) run(c *net.UDPConn, sent *atomic.Int64) (time.Duration, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	batch := udpBatch
	if f.rate > 0 {
		batch = min(udpBatch, max(1, int(f.rate*100e-6)))
	}
	p := ipv4.NewPacketConn(c)
	ms := messages(batch)
	for i := range ms {
		b := ms[i].Buffers[0][:max(f.size, datagramMin)]
		binary.BigEndian.PutUint32(b, f.session)
		b[4] = datagramData
		ms[i].Buffers[0] = b
		if f.to != nil {
			ms[i].Addr = f.to
		}
	}
	begin := time.Now()
	var due int64
	for {
		now := time.Since(begin)
		if now >= f.window {
			return now, nil
		}
		if f.rate > 0 {
			if wait := time.Duration(float64(due)/f.rate*1e9) - now; wait > 0 {
				ts := unix.NsecToTimespec(wait.Nanoseconds())
				unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil)
			}
		}
		n, err := p.WriteBatch(ms, 0)
		due += int64(batch)
		sent.Add(int64(max(n, 0)))
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.ECONNREFUSED) {
			return 0, fmt.Errorf("send: %w", err)
		}
	}
}

// receive asks the server for a flood and counts it.
func (f flood) receive(c *net.UDPConn, got *atomic.Int64) (time.Duration, error) {
	ask := make([]byte, datagramMin)
	binary.BigEndian.PutUint32(ask, f.session)
	ask[4] = datagramAsk
	binary.BigEndian.PutUint32(ask[8:], uint32(f.rate))
	binary.BigEndian.PutUint32(ask[12:], uint32(f.window.Milliseconds()))
	binary.BigEndian.PutUint32(ask[16:], uint32(f.size))
	p := ipv4.NewPacketConn(c)
	ms := messages(udpBatch)
	var first, last time.Time
	for try := range 3 {
		if _, err := c.Write(ask); err != nil {
			return 0, err
		}
		wait := 500 * time.Millisecond << try
		for {
			c.SetReadDeadline(time.Now().Add(wait))
			n, err := p.ReadBatch(ms, 0)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return 0, fmt.Errorf("receive: %w", err)
			}
			last = time.Now()
			if first.IsZero() {
				first = last
			}
			wait = udpLinger
			got.Add(int64(n))
		}
		if !first.IsZero() {
			// A short burst must not look like a high rate.
			return max(last.Sub(first), f.window), nil
		}
	}
	return 0, errors.New("no datagram arrived")
}

func messages(n int) []ipv4.Message {
	ms := make([]ipv4.Message, n)
	for i := range ms {
		ms[i].Buffers = [][]byte{make([]byte, 65536)}
	}
	return ms
}
