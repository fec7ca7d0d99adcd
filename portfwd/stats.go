package portfwd

import "sync/atomic"

// Stats are a Manager's counters since New. Connections that the builtin driver
// carries are not counted.
type Stats struct {
	// Ports, Conns and UDPFlows are the present numbers, the others are totals.
	Ports    int
	Conns    int64
	UDPFlows int64

	// Accepted counts TCP connections taken from clients; of these, Direct and
	// Stacked say which way they went, Refused those that the guest refused,
	// DialErrors those that failed otherwise, and OverLimit those reset because
	// of Limits.Conns.
	Accepted, Direct, Stacked, Refused, DialErrors, OverLimit uint64
	// AcceptErrors counts accepts that failed, mostly for want of descriptors.
	AcceptErrors uint64

	// UDPIn and UDPOut count datagrams from and to clients. UDPDropped counts
	// datagrams lost to a full flow table, a full queue or a failed send.
	UDPIn, UDPOut, UDPDropped uint64
	// BytesIn and BytesOut count the payload to and from the guest that does not
	// cross its link: that of the direct driver.
	BytesIn, BytesOut uint64
}

type counters struct {
	conns, flows, udpBytes                                    atomic.Int64
	accepted, direct, stacked, refused, dialErrors, overLimit atomic.Uint64
	acceptErrors, udpIn, udpOut, udpDropped                   atomic.Uint64
	bytesIn, bytesOut                                         atomic.Uint64
}

func (m *manager) Stats() Stats {
	m.mu.Lock()
	n := len(m.ports)
	m.mu.Unlock()
	c := &m.count
	return Stats{
		Ports: n, Conns: c.conns.Load(), UDPFlows: c.flows.Load(),
		Accepted: c.accepted.Load(), Direct: c.direct.Load(), Stacked: c.stacked.Load(),
		Refused: c.refused.Load(), DialErrors: c.dialErrors.Load(), OverLimit: c.overLimit.Load(),
		AcceptErrors: c.acceptErrors.Load(),
		UDPIn:        c.udpIn.Load(), UDPOut: c.udpOut.Load(), UDPDropped: c.udpDropped.Load(),
		BytesIn: c.bytesIn.Load(), BytesOut: c.bytesOut.Load(),
	}
}

// take adds one to a gauge unless that would exceed its limit.
func take(v *atomic.Int64, n, limit int64) bool {
	if v.Add(n) > limit {
		v.Add(-n)
		return false
	}
	return true
}
