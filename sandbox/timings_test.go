package sandbox_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/sandbox"
)

// The order of the stages is the design: nothing that takes long waits for what it
// does not need. No time is asserted.
func TestTimings(t *testing.T) {
	w := newWorld(t)
	cfg := w.config("true")
	cfg.Networks = sandbox.On(sandbox.NetworkDefault)
	s := w.start(cfg)
	if st, err := w.wait(s); err != nil || st.Code != 0 {
		t.Fatal(st, err)
	}
	of := map[string][]string{}
	stages := s.Timings()
	for i, st := range stages {
		if st.At <= 0 || i > 0 && st.At < stages[i-1].At {
			t.Errorf("stage %d, %+v, is out of order", i, st)
		}
		of[st.Process] = append(of[st.Process], st.Name)
	}
	for process, want := range map[string][]string{
		"sbx": {"configuration checked", "ids and storage chosen", "image found", "directory made", "configuration resolved",
			"monitor cloned, its ids mapped", "workload runs", "monitor gone", "output written"},
		// Init is loaded while the monitor works, and the network is joined while
		// init builds the root.
		"monitor": {"loaded", "ids mapped", "asked to start", "init cloned", "addresses leased, storage prepared", "files written",
			"network device there", "network joined, root built", "workload runs", "workload ended", "network left", "directory removed"},
		"init": {"loaded", "ids mapped", "network device made", "layers mounted", "root built"},
	} {
		got := slices.DeleteFunc(of[process], func(s string) bool { return !slices.Contains(want, s) })
		if !slices.Equal(got, want) {
			t.Errorf("%s: %s\nwant %s", process, strings.Join(got, ", "), strings.Join(want, ", "))
		}
	}
}
