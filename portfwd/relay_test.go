package portfwd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"math/rand"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
)

// fillUp writes until nothing more goes through, and returns the hash of what did.
func fillUp(t *testing.T, c net.Conn) hash.Hash {
	t.Helper()
	h := sha256.New()
	b := make([]byte, 1<<20)
	rand.New(rand.NewSource(1)).Read(b)
	for {
		c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := c.Write(b)
		h.Write(b[:n])
		if err != nil {
			if !isTimeout(err) {
				t.Fatal(err)
			}
			c.SetWriteDeadline(time.Time{})
			return h
		}
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// Peers that do not read hold a pipe each and nobody else up; a reset in the
// middle of the stream gives everything back.
func TestStalledPeers(t *testing.T) {
	const stalled = bigPipes + 4
	for _, d := range []string{DriverDirect, DriverStack} {
		t.Run(d, func(t *testing.T) {
			run(t, d, Limits{}, func(t *testing.T, s *suite) {
				silent := make(chan *net.TCPConn, stalled)
				release := make(chan struct{})
				serve(t, s.g.listen(t, "tcp", ":80"), func(c *net.TCPConn) {
					c.SetReadBuffer(16 << 10)
					silent <- c
					<-release
				})
				defer close(release)
				serve(t, s.g.listen(t, "tcp", ":81"), echo)
				sink := s.publish(t, port.Spec{Proto: "tcp", ChildPort: 80})
				live := s.publish(t, port.Spec{Proto: "tcp", ChildPort: 81})
				var clients, guests []*net.TCPConn
				for range stalled {
					c := (*netns)(nil).dial(t, "tcp", s.loopback(sink)).(*net.TCPConn)
					fillUp(t, c)
					clients = append(clients, c)
					guests = append(guests, <-silent)
				}
				pipes := s.m.(*manager).pipes
				if n := pipes.used.Load(); d == DriverDirect && n != stalled {
					t.Errorf("%d pipes for %d stalled connections", n, stalled)
				}
				if err := ping(t, (*netns)(nil).dial(t, "tcp", s.loopback(live)), make([]byte, 256<<10)); err != nil {
					t.Error("beside stalled connections:", err)
				}
				for i := range clients {
					if i%2 == 0 {
						reset(clients[i])
						guests[i].SetReadDeadline(time.Now().Add(10 * time.Second))
						if _, err := io.Copy(io.Discard, guests[i]); !errors.Is(err, syscall.ECONNRESET) {
							t.Errorf("the guest after the client's reset: %v", err)
						}
						continue
					}
					reset(guests[i])
					clients[i].SetDeadline(time.Now().Add(10 * time.Second))
					if _, err := clients[i].Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
						t.Errorf("the client after the guest's reset: %v", err)
					}
				}
				eventually(t, "the pipes are back", func() bool { return pipes.used.Load() == 0 && s.m.Stats().Conns <= 1 })
			})
		})
	}
}

// meet publishes a server in the guest and connects to it; the guest's end comes when
// it is accepted.
func (s *suite) meet(t *testing.T) (client *net.TCPConn, guest <-chan *net.TCPConn) {
	t.Helper()
	conns := make(chan *net.TCPConn, 1)
	release := make(chan struct{})
	serve(t, s.g.listen(t, "tcp", ":80"), func(c *net.TCPConn) {
		conns <- c
		<-release
	})
	t.Cleanup(func() { close(release) })
	st := s.publish(t, port.Spec{Proto: "tcp", ChildPort: 80})
	return (*netns)(nil).dial(t, "tcp", s.loopback(st)).(*net.TCPConn), conns
}

// A reader that begins late, reads in small pieces and stops now and then gets
// every byte, whichever side it is on.
func TestSlowReader(t *testing.T) {
	forEach(t, func(t *testing.T, s *suite) {
		client, conns := s.meet(t)
		guest := <-conns
		for name, way := range map[string][2]*net.TCPConn{"in": {client, guest}, "out": {guest, client}} {
			src, dst := way[0], way[1]
			sent := fillUp(t, src) // nobody reads yet
			got := sha256.New()
			done := make(chan error, 1)
			go func() {
				b := make([]byte, 4<<10)
				for total := 0; ; {
					n, err := dst.Read(b)
					got.Write(b[:n])
					if err != nil {
						done <- err
						return
					}
					if total += n; total%(1<<20) < n {
						time.Sleep(time.Millisecond)
					}
				}
			}()
			more := make([]byte, 3<<20)
			rand.New(rand.NewSource(2)).Read(more)
			src.SetWriteDeadline(time.Now().Add(30 * time.Second))
			if _, err := src.Write(more); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			sent.Write(more)
			if err := src.CloseWrite(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			dst.SetReadDeadline(time.Now().Add(30 * time.Second))
			if err := <-done; err != io.EOF {
				t.Errorf("%s: %v", name, err)
			}
			if !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
				t.Errorf("%s: other bytes than were sent", name)
			}
		}
	})
}

// slowGuest makes no socket until the gate opens.
type slowGuest struct {
	*guest
	gate chan struct{}
}

func (g slowGuest) Socket(ctx context.Context, family, typ int) (*os.File, error) {
	<-g.gate
	return g.guest.Socket(ctx, family, typ)
}

// A client that has sent more than the guest takes, before there was a way to the
// guest, loses nothing.
func TestSentBeforeConnected(t *testing.T) {
	checkLeaks(t)
	g := slowGuest{newGuest(t), make(chan struct{})}
	m, err := New(Config{Driver: DriverDirect, Guest: g, Limits: Limits{SocketPool: -1}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	s := &suite{driver: DriverDirect, g: g.guest, m: m}
	client, conns := s.meet(t)
	sent := fillUp(t, client)
	close(g.gate)
	guest := <-conns
	client.CloseWrite()
	got := sha256.New()
	guest.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.Copy(got, guest); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
		t.Error("other bytes than were sent")
	}
}

// Ten thousand clients at once get an answer or a reset; what is carried stays
// within the limit, and all of it is given back.
func TestManyConnects(t *testing.T) {
	const limit = 256
	for _, d := range []string{DriverDirect, DriverStack} {
		t.Run(d, func(t *testing.T) {
			clients := raiseFiles(t, 10000+4*limit) - 4*limit
			run(t, d, Limits{Conns: limit}, func(t *testing.T, s *suite) {
				serve(t, s.g.listen(t, "tcp", ":80"), echo)
				st := s.publish(t, port.Spec{Proto: "tcp", ChildPort: 80})
				var answered, reset, other atomic.Int64
				var open, gone sync.WaitGroup
				done := make(chan struct{})
				open.Add(clients)
				for range clients {
					gone.Go(func() {
						c, err := net.DialTimeout("tcp", s.loopback(st), 60*time.Second)
						if err == nil {
							defer c.Close()
							c.SetDeadline(time.Now().Add(60 * time.Second))
							if _, err = c.Write([]byte("x")); err == nil {
								_, err = io.ReadFull(c, make([]byte, 1))
							}
						}
						switch {
						case err == nil:
							answered.Add(1)
						case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
							reset.Add(1)
						default:
							other.Add(1)
							t.Error(err)
						}
						open.Done()
						<-done // they all stay
					})
				}
				open.Wait()
				n := s.m.Stats()
				// When the listener's queue is full, the kernel may make two connections of
				// one: the client has given up the first, or was answered by a SYN cookie.
				if n.Conns > limit || answered.Load() != limit || reset.Load() != int64(clients-limit) || n.OverLimit < uint64(clients-limit) {
					t.Errorf("%d of %d answered, %d reset, %d else: %+v", answered.Load(), clients, reset.Load(), other.Load(), n)
				}
				close(done)
				gone.Wait()
				eventually(t, "all are gone", func() bool { return s.m.Stats().Conns == 0 })
				if err := ping(t, (*netns)(nil).dial(t, "tcp", s.loopback(st)), []byte("x")); err != nil {
					t.Error("after them:", err)
				}
			})
		})
	}
}

// raiseFiles allows n open files, or as many as the user may have beside 1,000 of
// the test's own, and returns how many.
func raiseFiles(t *testing.T, n int) int {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	raised := old
	raised.Cur = min(old.Max, uint64(n)+1000)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old) })
	return int(raised.Cur) - 1000
}
