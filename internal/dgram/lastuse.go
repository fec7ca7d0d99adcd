package dgram

import (
	"sync/atomic"
	"time"
)

// LastUse is when a flow had its last datagram, by the clock that nobody sets: when the
// machine's time goes back by hours, no flow stays for hours.
type LastUse struct{ ns atomic.Int64 }

var epoch = time.Now()

// Set notes that it was used at now, which time.Now has returned.
func (u *LastUse) Set(now time.Time) { u.ns.Store(int64(now.Sub(epoch))) }

// Ago is how long before now that was.
func (u *LastUse) Ago(now time.Time) time.Duration {
	return now.Sub(epoch) - time.Duration(u.ns.Load())
}
