package userns

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// fullRange is how many ids an image may expect: 0 to 65535.
const fullRange = 1 << 16

// MappingConfig says what map is wanted. The zero value is ModeAuto for the
// calling process.
type MappingConfig struct {
	// Mode: "" is ModeAuto.
	Mode Mode
	// UID and GID of the user; 0 is the calling process's own.
	UID, GID int
	// SubUIDFile and SubGIDFile: "" is /etc/subuid and /etc/subgid, or the service
	// that /etc/nsswitch.conf names.
	SubUIDFile, SubGIDFile string
	// NewUIDMap and NewGIDMap are the helpers' paths: "" looks in PATH.
	NewUIDMap, NewGIDMap string
}

// ResolveMapping chooses the id maps. ModeAuto never fails for want of
// subordinate ids or helpers, it returns a single-id map with Reason and Fix; a
// mode that was asked for by name and is impossible is an *Error of kind
// ErrNoSubIDs or ErrNoHelper.
func ResolveMapping(cfg MappingConfig) (*Mapping, error) {
	h, err := thisHost()
	if err != nil {
		return nil, fmt.Errorf("resolve the id map: %w", err)
	}
	return resolve(cfg, h)
}

func resolve(cfg MappingConfig, h *host) (*Mapping, error) {
	if err := cfg.complete(h); err != nil {
		return nil, err
	}
	switch cfg.Mode {
	case "":
		cfg.Mode = ModeAuto
	case ModeAuto, ModeKeepID:
	case ModeSingle:
		return single(cfg, "", ""), nil
	default:
		return nil, &Error{Kind: ErrMode, Step: "resolve the id map", Msg: fmt.Sprintf("unknown mode %q", cfg.Mode), Fix: "use auto, single or keep-id"}
	}
	m, err := subordinate(cfg, h)
	if err == nil {
		return m, nil
	}
	if cfg.UID == 0 && h.direct() {
		return rootIdentity(cfg, h), nil
	}
	if cfg.Mode == ModeKeepID {
		return nil, err
	}
	var e *Error
	if !errors.As(err, &e) {
		return nil, err
	}
	return single(cfg, e.Error(), e.Fix), nil
}

// complete fills in whose ids are meant.
func (cfg *MappingConfig) complete(h *host) error {
	if cfg.UID == 0 {
		cfg.UID = h.uid
	}
	if cfg.GID == 0 {
		cfg.GID = h.gid
	}
	if cfg.UID < 0 || cfg.UID >= noID || cfg.GID < 0 || cfg.GID >= noID {
		return &Error{Step: "resolve the id map", Msg: fmt.Sprintf("uid %d or gid %d is out of range", cfg.UID, cfg.GID)}
	}
	return nil
}

func single(cfg MappingConfig, reason, fix string) *Mapping {
	return &Mapping{
		Mode:   ModeSingle,
		UIDs:   []IDMap{{0, uint32(cfg.UID), 1}},
		GIDs:   []IDMap{{0, uint32(cfg.GID), 1}},
		Reason: reason,
		Fix:    fix,
	}
}

// subordinate maps the user and the ids granted to him.
func subordinate(cfg MappingConfig, h *host) (*Mapping, error) {
	g, err := granted(cfg, h)
	if err != nil {
		return nil, err
	}
	m := &Mapping{Mode: cfg.Mode}
	if !h.direct() {
		m.Helper = true
		if m.NewUIDMap, m.NewGIDMap, err = findHelpers(cfg, h); err != nil {
			return nil, err
		}
	}
	var self, selfGID uint32
	if cfg.Mode == ModeKeepID {
		self, selfGID = uint32(cfg.UID), uint32(cfg.GID)
	}
	m.UIDs = layout(self, uint32(cfg.UID), g.uids)
	m.GIDs = layout(selfGID, uint32(cfg.GID), g.gids)
	notes := g.notes
	if n := min(total(m.UIDs), total(m.GIDs)); n < fullRange {
		notes = append(notes, fmt.Sprintf("only %d of %d ids are available: images that use higher ones will fail", n, fullRange))
		m.Fix = g.fix
	}
	m.Reason = strings.Join(notes, "; ")
	return m, nil
}

// usableIDs are the subordinate ids that the user has and that can be mapped.
type usableIDs struct {
	uids, gids []span
	notes      []string
	source     string
	fix        string
}

func granted(cfg MappingConfig, h *host) (*usableIDs, error) {
	name := h.userName(cfg.UID)
	g, err := lookupGrants(cfg, h.nsswitch, name)
	if err != nil {
		return nil, &Error{Kind: ErrNoSubIDs, Step: "read the subordinate ids", Errno: errnoOf(err), Msg: err.Error(),
			Fix: "see what getsubids prints for the user"}
	}
	uids, absent, notes := usable(g.uids, uint32(cfg.UID), h.uids)
	gids, gabsent, gnotes := usable(g.gids, uint32(cfg.GID), h.gids)
	notes = append(append(g.skipped, notes...), gnotes...)
	who := name
	if who == "" {
		who = strconv.Itoa(cfg.UID)
	}
	u := &usableIDs{uids: uids, gids: gids, notes: notes, source: g.uidSource, fix: subIDFix(who, absent+gabsent > 0)}
	if len(uids) > 0 && len(gids) > 0 {
		return u, nil
	}
	var missing []string
	if len(uids) == 0 {
		missing = append(missing, "uids in "+g.uidSource)
	}
	if len(gids) == 0 {
		missing = append(missing, "gids in "+g.gidSource)
	}
	msg := fmt.Sprintf("user %s has no subordinate %s", who, strings.Join(missing, " and no subordinate "))
	if len(notes) > 0 {
		msg += " (" + strings.Join(notes, "; ") + ")"
	}
	return nil, &Error{Kind: ErrNoSubIDs, Step: "read the subordinate ids", Msg: msg, Fix: u.fix}
}

// subIDFix names the usual range. usermod does not look whether it is taken. In a
// user namespace that lacks the granted ids, other ids are needed.
func subIDFix(who string, absent bool) string {
	if absent {
		return "put ids that /proc/self/uid_map and gid_map list into /etc/subuid and /etc/subgid for " + who +
			", or give the outer container more ids"
	}
	return "ask the administrator: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 " + who +
		" (another range if that one is taken)"
}

// rootIdentity is for root without subordinate ids: the ids that exist, as they
// are. Inside somebody's container these may be few.
func rootIdentity(cfg MappingConfig, h *host) *Mapping {
	m := &Mapping{
		Mode: cfg.Mode,
		UIDs: identity(fullRange, h.uids),
		GIDs: identity(fullRange, h.gids),
	}
	if _, ok := m.HostUID(0); !ok || total(m.UIDs) == 1 || total(m.GIDs) == 1 {
		return single(cfg, "this user namespace has no further ids", "give the outer container more ids")
	}
	if n := min(total(m.UIDs), total(m.GIDs)); n < fullRange {
		m.Reason = fmt.Sprintf("this user namespace has only %d of %d ids", n, fullRange)
	}
	return m
}
