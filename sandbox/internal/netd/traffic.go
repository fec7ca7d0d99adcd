package netd

import "context"

// Traffic is bytes to and from a sandbox.
type Traffic struct {
	In  uint64 `json:"in"`
	Out uint64 `json:"out"`
}

// Plus adds another one.
func (t Traffic) Plus(u Traffic) Traffic { return Traffic{t.In + u.In, t.Out + u.Out} }

// Traffic is what has crossed the sandbox's link, and what the published ports have
// carried past it; not what the builtin driver carries.
func (s *Stats) Traffic() Traffic {
	t := Traffic{In: s.Port.ToGuest.Bytes, Out: s.Port.FromGuest.Bytes}
	if f := s.Forward; f != nil {
		t = t.Plus(Traffic{f.BytesIn, f.BytesOut})
	}
	return t
}

// meter adds up over the processes of a network. What one that was killed had counted
// since it was asked last is lost.
type meter struct {
	process      int // how often the attachment had been made again
	before, last Traffic
}

func (m *meter) read(process int, t Traffic) Traffic {
	if process != m.process {
		m.process, m.before = process, m.before.Plus(m.last)
	}
	m.last = t
	return m.before.Plus(t)
}

// Traffic is that since Keep.
func (k *Keeper) Traffic(ctx context.Context) (Traffic, error) {
	k.metering.Lock() // so that one answer comes after the other
	defer k.metering.Unlock()
	st, process, err := k.Stats(ctx)
	if err != nil {
		return Traffic{}, err
	}
	return k.meter.read(process, st.Traffic()), nil
}
