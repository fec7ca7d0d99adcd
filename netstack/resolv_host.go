package netstack

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// resolvCheck is how often at most the host's file is looked at. A stat
	// takes a microsecond; an inotify watch would have to follow every
	// directory of a chain of links.
	resolvCheck = 100 * time.Millisecond
	// resolvSettle: a file changed less than this before it was read may change
	// again without a new time stamp, so it is read once more.
	resolvSettle = 2 * time.Second
)

// fileID changes whenever a file is replaced or written.
type fileID struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

// hostResolv follows the host's resolv.conf.
type hostResolv struct {
	path string
	log  *slog.Logger
	now  func() time.Time

	mu      sync.Mutex // guards what follows
	checked time.Time
	id      fileID
	settled bool
	conf    ResolvConf
	err     error
	loaded  bool
}

// get returns the servers as they are now; changed is true once after they
// have become different, so that the caller can forget the old ones' answers.
func (h *hostResolv) get() (conf ResolvConf, changed bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	if h.loaded && now.Sub(h.checked) < resolvCheck {
		return h.conf, false, h.err
	}
	h.checked = now
	// Stat follows links, so a link that now points elsewhere is a change.
	id, err := statID(h.path)
	if h.loaded && err == nil && h.err == nil && h.settled && id == h.id {
		return h.conf, false, nil
	}
	var conf2 ResolvConf
	if err == nil {
		conf2, err = readResolv(h.path)
	}
	if err != nil {
		if !h.loaded || h.err == nil {
			h.log.Warn("no name servers: sandboxes get SERVFAIL until the file is back", "path", h.path, "err", err)
		}
		changed = h.loaded && h.err == nil
		h.loaded, h.conf, h.err, h.id = true, ResolvConf{}, fmt.Errorf("read the host's name servers: %w", err), fileID{}
		return h.conf, changed, h.err
	}
	if h.loaded && h.err != nil || h.loaded && string(conf2.Bytes()) != string(h.conf.Bytes()) {
		changed = true
		h.log.Info("the host's name servers changed", "servers", conf2.Nameservers)
	}
	h.loaded, h.conf, h.err, h.id = true, conf2, nil, id
	h.settled = time.Since(time.Unix(id.ctime.Unix())) > resolvSettle && time.Since(time.Unix(id.mtime.Unix())) > resolvSettle
	return h.conf, changed, nil
}

func statID(path string) (fileID, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return fileID{}, err
	}
	st := fi.Sys().(*syscall.Stat_t)
	return fileID{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim}, nil
}

func readResolv(path string) (ResolvConf, error) {
	// O_NONBLOCK: whatever the user put there must not hold up every query.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return ResolvConf{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxResolvFile))
	if err != nil {
		return ResolvConf{}, err
	}
	c := ParseResolvConf(b)
	if len(c.Nameservers) == 0 {
		// What resolv.conf(5) says of a file without name servers.
		c.Nameservers = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	return c, nil
}
