package workload

type seccompFilter struct{}

func (*seccompFilter) load() error                                       { return nil }
func compileSeccomp(profile string, caps capSet) (*seccompFilter, error) { return nil, nil }
