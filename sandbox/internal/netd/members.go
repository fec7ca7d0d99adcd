package netd

import (
	"cmp"
	"slices"
	"strings"

	"github.com/rootless-sbx/sbx/internal/wire"
)

// sameName compares names as DNS does.
func sameName(a, b string) bool {
	return strings.EqualFold(strings.TrimSuffix(a, "."), strings.TrimSuffix(b, "."))
}

// memberList describes who is on the network.
func (s *server) memberList() (Members, error) {
	list := Members{Info: s.info(), Members: []MemberInfo{}, DNS: s.dns.Stats(), Refused: s.refused.Load()}
	all := s.net.Stats()
	stats := all.Ports
	list.Uplink = all.Uplink
	var err error
	if list.Usage, err = s.usage(); err != nil {
		return list, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, x := range s.byID {
		st, attached := stats[id]
		if attached {
			list.Members = append(list.Members, MemberInfo{Lease: x.lease.Lease, Names: x.nameList(x.member), Stats: st})
		}
	}
	slices.SortFunc(list.Members, func(a, b MemberInfo) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return list, nil
}

// mustLeave makes the process leave as soon as who asks has gone, without its linger
// time, unless there is a sandbox. Others that are connected only look.
func (s *server) mustLeave(asks *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.byID {
		return &wire.Error{Code: CodeBusy, Msg: "sandbox " + x.lease.Name + " is on the network"}
	}
	for x := range s.sessions {
		if x != asks {
			x.cancel()
		}
	}
	s.cfg.Linger, s.told = 1, true
	return nil
}
