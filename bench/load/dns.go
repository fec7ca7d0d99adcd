package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// dnsName is asked for again and again, so that a resolver with a cache has it.
const dnsName = "bench.sbx.test."

// dnsInFlight is how many questions each thread has open.
const dnsInFlight = 16

// serveDNS answers every question with one address, as the host's resolver.
func (a *agent) serveDNS(r Request) (Reply, error) {
	pc, err := net.ListenPacket("udp", r.Addr)
	if err != nil {
		return Reply{}, err
	}
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		if len(q.Question) == 1 && q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 3600},
				A:   net.IPv4(203, 0, 113, 10),
			}}
		}
		w.WriteMsg(m)
	})
	go (&dns.Server{PacketConn: pc, Handler: h}).ActivateAndServe()
	return Reply{}, nil
}

// dns asks the resolver at r.Addr as fast as it answers, on r.Streams sockets.
func (a *agent) dns(r Request) (Reply, error) {
	var wg sync.WaitGroup
	var got atomic.Int64
	errs := make([]error, max(r.Streams, 1))
	for i := range errs {
		wg.Go(func() { errs[i] = askDNS(r, &got) })
	}
	wg.Wait()
	rep := Reply{Got: got.Load(), Elapsed: r.For}
	rep.Rate = float64(rep.Got) / r.For.Seconds()
	if err := errors.Join(errs...); err != nil {
		return rep, err
	}
	if rep.Got == 0 {
		return rep, fmt.Errorf("%s answers no question", r.Addr)
	}
	return rep, nil
}

func askDNS(r Request, got *atomic.Int64) error {
	c, err := net.Dial("udp", r.Addr)
	if err != nil {
		return err
	}
	defer c.Close()
	question := new(dns.Msg)
	question.SetQuestion(dnsName, dns.TypeA)
	q, err := question.Pack()
	if err != nil {
		return err
	}
	var id uint16
	ask := func(n int) error {
		for range n {
			id++
			binary.BigEndian.PutUint16(q, id)
			if _, err := c.Write(q); err != nil {
				return err
			}
		}
		return nil
	}
	buf := make([]byte, 4096)
	begin := time.Now()
	if err := ask(dnsInFlight); err != nil {
		return err
	}
	for {
		c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := c.Read(buf)
		now := time.Since(begin)
		more := 1
		switch {
		case now >= r.Warm+r.For:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			more = dnsInFlight // all were lost
		case err != nil:
			return fmt.Errorf("receive: %w", err)
		case n < 12 || buf[3]&0xf != 0 || binary.BigEndian.Uint16(buf[6:]) == 0:
			return fmt.Errorf("an answer without an address (rcode %d)", buf[3]&0xf)
		case now >= r.Warm:
			got.Add(1)
		}
		if err := ask(more); err != nil {
			return err
		}
	}
}
