package confine

// A Stage sheds what a process does not need any more.
type Stage struct {
	Name string
	Shed func() error
}

// Shed goes through the stages in their order. kept is told of each that the kernel does
// not have, that a container around us forbids, or that something needs: the process
// works without.
func Shed(stages []Stage, kept func(stage string, why error)) {
	for _, s := range stages {
		if err := s.Shed(); err != nil {
			kept(s.Name, err)
		}
	}
}
