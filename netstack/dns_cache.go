package netstack

import (
	"container/list"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxTTL bounds how long an answer is kept, maxNegativeTTL a negative one:
	// RFC 2308, 5 asks for one to three hours at most.
	maxTTL         = 24 * time.Hour
	maxNegativeTTL = time.Hour
	// failureTTL for SERVFAIL and REFUSED (RFC 9520 wants at least a second):
	// enough to keep a guest in a loop from the host's servers.
	failureTTL = time.Second
	// maxCached is the largest answer kept.
	maxCached = 16 << 10
	// entryOverhead is about what the map, the list and the key take.
	entryOverhead = 256
)

// cacheKey is a question; the class is always IN.
type cacheKey struct {
	name           string
	typ            uint16
	rd, cd, ad, do bool
}

type cacheEntry struct {
	key             cacheKey
	wire            []byte
	stored, expires time.Time
}

// dnsCache keeps answers in wire format, so that its size is what it says and
// nobody can change what others will read. The least recently used goes first.
type dnsCache struct {
	maxEntries, maxBytes int
	now                  func() time.Time

	mu    sync.Mutex // guards what follows
	m     map[cacheKey]*list.Element
	lru   list.List // front: used last
	bytes int
	epoch uint64 // counts clear: an older query's answer is not stored
}

func (c *dnsCache) init(entries, bytes int, now func() time.Time) {
	c.maxEntries, c.maxBytes, c.now = max(entries, 0), bytes, now
	c.m = map[cacheKey]*list.Element{}
}

// get returns an answer of the caller's own, its TTLs counted down.
func (c *dnsCache) get(k cacheKey) *dns.Msg {
	now := c.now()
	c.mu.Lock()
	el := c.m[k]
	if el == nil {
		c.mu.Unlock()
		return nil
	}
	e := el.Value.(*cacheEntry)
	if !now.Before(e.expires) {
		c.drop(el)
		c.mu.Unlock()
		return nil
	}
	c.lru.MoveToFront(el)
	c.mu.Unlock() // an entry never changes

	m := new(dns.Msg)
	if m.Unpack(e.wire) != nil {
		return nil
	}
	age := uint32(max(now.Sub(e.stored), 0) / time.Second)
	for _, sec := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range sec {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl -= min(h.Ttl, age)
			}
		}
	}
	return m
}

// put keeps an answer for as long as it says it is valid.
func (c *dnsCache) put(k cacheKey, m *dns.Msg, wire []byte, epoch uint64) {
	ttl := answerTTL(k, m)
	if ttl <= 0 || len(wire) > maxCached || c.maxEntries == 0 {
		return
	}
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if epoch != c.epoch {
		return
	}
	if el := c.m[k]; el != nil {
		c.drop(el)
	}
	c.m[k] = c.lru.PushFront(&cacheEntry{k, wire, now, now.Add(ttl)})
	c.bytes += len(wire) + len(k.name) + entryOverhead
	for len(c.m) > c.maxEntries || c.bytes > c.maxBytes {
		c.drop(c.lru.Back())
	}
}

func (c *dnsCache) drop(el *list.Element) {
	e := c.lru.Remove(el).(*cacheEntry)
	delete(c.m, e.key)
	c.bytes -= len(e.wire) + len(e.key.name) + entryOverhead
}

func (c *dnsCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.m)
	c.lru.Init()
	c.bytes = 0
	c.epoch++
}

func (c *dnsCache) epochNow() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.epoch
}

func (c *dnsCache) size() (entries, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.m), c.bytes
}

// answerTTL is how long an answer may be kept; 0 not at all.
func answerTTL(k cacheKey, m *dns.Msg) time.Duration {
	switch m.Rcode {
	case dns.RcodeSuccess, dns.RcodeNameError:
	case dns.RcodeServerFailure, dns.RcodeRefused:
		return failureTTL
	default:
		return 0
	}
	shortest, limit := uint32(maxTTL/time.Second), maxTTL
	positive := false
	for _, rr := range m.Answer {
		h := rr.Header()
		if h.Rrtype == k.typ || k.typ == dns.TypeCNAME {
			positive = true
		}
		shortest = min(shortest, saneTTL(h.Ttl))
	}
	if m.Rcode == dns.RcodeNameError || !positive {
		// RFC 2308: only with the zone's SOA, for the lesser of its two times.
		soa := false
		for _, rr := range m.Ns {
			if s, ok := rr.(*dns.SOA); ok {
				soa = true
				shortest = min(shortest, saneTTL(s.Minttl), saneTTL(s.Hdr.Ttl))
			}
		}
		if !soa {
			return 0
		}
		limit = maxNegativeTTL
	}
	for _, sec := range [][]dns.RR{m.Ns, m.Extra} {
		for _, rr := range sec {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				shortest = min(shortest, saneTTL(h.Ttl))
			}
		}
	}
	return min(time.Duration(shortest)*time.Second, limit)
}

// saneTTL: with the top bit set a TTL is zero (RFC 2181, 8).
func saneTTL(t uint32) uint32 {
	if t > 1<<31-1 {
		return 0
	}
	return t
}
