package userns

// Support is what id mapping a user has to count on, for diagnostics.
type Support struct {
	// Direct: this process may write maps itself and needs no helper.
	Direct bool `json:"direct,omitempty"`
	// NewUIDMap and NewGIDMap are usable helpers; otherwise HelperErr says why not.
	NewUIDMap string `json:"newuidmap,omitempty"`
	NewGIDMap string `json:"newgidmap,omitempty"`
	HelperErr error  `json:"-"`
	// UIDs and GIDs are the numbers of usable subordinate ids, Source where they are
	// granted and Notes what was left out; otherwise SubIDErr says why there are none.
	UIDs     uint64   `json:"uids"`
	GIDs     uint64   `json:"gids"`
	Source   string   `json:"source,omitempty"`
	Notes    []string `json:"notes,omitempty"`
	Fix      string   `json:"fix,omitempty"`
	SubIDErr error    `json:"-"`
}

// Inspect looks at each precondition of ResolveMapping by itself.
func Inspect(cfg MappingConfig) (*Support, error) {
	h, err := thisHost()
	if err != nil {
		return nil, err
	}
	if err := cfg.complete(h); err != nil {
		return nil, err
	}
	s := &Support{Direct: h.direct()}
	s.NewUIDMap, s.NewGIDMap, s.HelperErr = findHelpers(cfg, h)
	g, err := granted(cfg, h)
	if err != nil {
		s.SubIDErr = err
		return s, nil
	}
	s.UIDs, s.GIDs, s.Source, s.Notes, s.Fix = count(g.uids), count(g.gids), g.source, g.notes, g.fix
	return s, nil
}
