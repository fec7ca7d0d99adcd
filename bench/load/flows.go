package load

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"
)

// flowSet are the TCP connections that an agent holds open.
type flowSet struct {
	conns []net.Conn
	stop  chan struct{}
	wg    sync.WaitGroup
}

// openFlows opens connections until r.Count are open or r.For is over, and with
// r.Busy keeps an exchange of r.Size bytes going on each.
func (a *agent) openFlows(r Request) (Reply, error) {
	const atOnce = 64
	s := &a.flows
	if s.stop == nil {
		s.stop = make(chan struct{})
	}
	need := r.Count - len(s.conns)
	var mu sync.Mutex
	var failed error
	var wg sync.WaitGroup
	var next atomic.Int64
	until := time.Now().Add(r.For)
	for range min(atOnce, max(need, 0)) {
		wg.Go(func() {
			for next.Add(1) <= int64(need) && time.Now().Before(until) {
				c, err := holdOne(r.Addr)
				mu.Lock()
				if err != nil {
					failed = err
				} else {
					s.conns = append(s.conns, c)
				}
				stop := failed != nil
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	wg.Wait()
	if r.Busy {
		for _, c := range s.conns {
			s.wg.Go(func() { exchange(c, r.Size, s.stop) })
		}
	}
	rep := Reply{Got: int64(len(s.conns))}
	if failed != nil {
		return rep, fmt.Errorf("after %d flows: %w", len(s.conns), failed)
	}
	return rep, nil
}

// holdTimeout is how long a path may take for one connection and its answer.
const holdTimeout = 4 * time.Second

func holdOne(addr string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", addr, holdTimeout)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(holdTimeout))
	var b [1]byte
	if _, err = c.Write(header{kind: kindHold}.bytes()); err == nil {
		_, err = io.ReadFull(c, b[:])
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	c.SetDeadline(time.Time{})
	return c, nil
}

// exchange sends size bytes and reads their echo until stop.
func exchange(c net.Conn, size int, stop chan struct{}) {
	buf := make([]byte, size)
	for {
		select {
		case <-stop:
			return
		default:
		}
		if _, err := c.Write(buf); err != nil {
			return
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return
		}
	}
}

func (a *agent) closeFlows(Request) (Reply, error) {
	s := &a.flows
	if s.stop != nil {
		close(s.stop)
	}
	for _, c := range s.conns {
		c.Close()
	}
	s.wg.Wait()
	n := len(s.conns)
	a.flows = flowSet{}
	return Reply{Got: int64(n)}, nil
}

// exec runs a command and gives its output.
func (a *agent) exec(r Request) (Reply, error) {
	out, err := exec.Command(r.Args[0], r.Args[1:]...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %.300s", r.Args[0], err, out)
	}
	return Reply{Output: string(out)}, err
}
