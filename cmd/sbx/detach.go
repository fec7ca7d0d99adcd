package main

import (
	"bytes"
	"io"
	"strings"
	"sync"
)

const defaultDetachKeys = "ctrl-p,ctrl-q"

// parseDetachKeys reads Docker's form: characters, or ctrl- and one of a-z @ [ \ ] ^ _,
// with commas between. Nothing means that no keys detach.
func parseDetachKeys(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	var keys []byte
	for _, k := range strings.Split(s, ",") {
		name, ctrl := strings.CutPrefix(strings.ToLower(k), "ctrl-")
		switch {
		case len(k) == 1:
			keys = append(keys, k[0])
		case ctrl && len(name) == 1 && name[0] >= 'a' && name[0] <= 'z':
			keys = append(keys, name[0]-'a'+1)
		case ctrl && len(name) == 1 && strings.Contains(`@[\]^_`, name):
			keys = append(keys, name[0]-'@')
		default:
			return nil, &usage{msg: "--detach-keys: " + k + " is no key", fix: `write keys as a, ctrl-a or ctrl-\, with commas between`}
		}
	}
	return keys, nil
}

// detachment is the end of a session by its user.
type detachment struct {
	once sync.Once
	done chan struct{}
}

func (d *detachment) leave() { d.once.Do(func() { close(d.done) }) }

func (d *detachment) is() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// detachReader passes on what is typed, but for the keys that detach.
type detachReader struct {
	r    io.Reader
	keys []byte
	d    *detachment
	held []byte // the beginning of the keys, not passed on yet
	rest []byte // to be passed on
	err  error
}

func newDetachReader(r io.Reader, keys []byte) (io.Reader, *detachment) {
	d := &detachment{done: make(chan struct{})}
	if len(keys) == 0 {
		return r, d
	}
	return &detachReader{r: r, keys: keys, d: d}, d
}

func (d *detachReader) Read(p []byte) (int, error) {
	for len(d.rest) == 0 {
		if d.err != nil {
			return 0, d.err
		}
		buf := make([]byte, len(p))
		n, err := d.r.Read(buf)
		d.err = err
		for _, b := range buf[:n] {
			d.held = append(d.held, b)
			for len(d.held) > 0 && !bytes.HasPrefix(d.keys, d.held) {
				d.rest = append(d.rest, d.held[0])
				d.held = d.held[1:]
			}
			if len(d.held) == len(d.keys) {
				d.held, d.err = nil, io.EOF
				d.d.leave()
				break
			}
		}
		if d.err != nil {
			d.rest = append(d.rest, d.held...)
			d.held = nil
		}
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}
