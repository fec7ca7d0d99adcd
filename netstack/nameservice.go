package netstack

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

// Times of the gateway's port 53.
const (
	dnsTimeout     = 10 * time.Second // for one answer
	dnsIdleTimeout = 10 * time.Second // between queries of a connection
)

// exchange asks the network's handler. It blocks; nil is no answer. The guest is one client,
// of whichever of its addresses it asks.
func (p *Port) exchange(query []byte, tcp bool) []byte {
	ctx, cancel := context.WithTimeout(p.ctx, dnsTimeout)
	defer cancel()
	return p.net.cfg.DNS.Exchange(ctx, query, p.addrs[0], tcp)
}

// serveDNSDatagram answers one query from the guest's port.
func (p *Port) serveDNSDatagram(src, dst netip.AddrPort, query []byte) {
	query = bytes.Clone(query)
	select {
	case p.dns <- struct{}{}:
	default:
		p.count.drop(DropDNS)
		return
	}
	p.reader.account.charge(costQuery)
	p.wg.Add(1) // on the reader, which the group counts
	// A worker's stack has grown before, which a question would take an eighth of its
	// time for. The workers end after the group.
	p.workers.start(&dnsDatagram{p, src, dst, query})
}

// dnsDatagram is a query that waits for its answer.
type dnsDatagram struct {
	port     *Port
	src, dst netip.AddrPort
	query    []byte
}

// work implements job.
func (d *dnsDatagram) work(*worker) {
	p := d.port
	defer p.wg.Done()
	defer func() { <-p.dns }()
	if answer := p.exchange(d.query, false); answer != nil && len(answer) <= maxDatagram {
		p.sendDatagram(d.dst, d.src, answer)
	}
}

// serveDNSConn answers the queries of one connection, one after the other,
// each with its length before it (RFC 1035, section 4.2.2).
func (p *Port) serveDNSConn(f *tcpFlow) {
	f.port = p
	if !p.flows.add(p, f) {
		f.ep.Abort()
		return
	}
	c := gonet.NewTCPConn(&f.wq, f.ep)
	defer f.leave()

	for {
		if err := c.SetDeadline(time.Now().Add(dnsIdleTimeout)); err != nil {
			return
		}
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		// The query grows as it arrives: a length alone costs nothing.
		var query bytes.Buffer
		n := int64(binary.BigEndian.Uint16(size[:]))
		if got, err := io.CopyN(&query, c, n); err != nil || got == 0 {
			return
		}
		select {
		case p.dns <- struct{}{}:
		default:
			p.count.drop(DropDNS)
			return
		}
		answer := p.exchange(query.Bytes(), true)
		<-p.dns
		if answer == nil || len(answer) > 65535 {
			return
		}
		if err := c.SetDeadline(time.Now().Add(dnsIdleTimeout)); err != nil {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}
