package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"golang.org/x/sync/errgroup"
)

// reachBox is a sandbox of TestReach. Who is of the same group reaches each other; who has
// the same place shares it.
type reachBox struct {
	name, network, group, place string
	row                         string // of the table in docs/networking.md
}

var reachBoxes = []reachBox{
	{"rc-one", "bridge", "bridge", "rc-one", "`bridge`"},
	{"rc-two", "bridge", "bridge", "rc-two", ""},
	{"rc-side", "container:rc-one", "bridge", "rc-one", "`container:` of one on `bridge`"},
	{"rc-path", "ns:", "bridge", "rc-two", "`ns:` of one on `bridge`"},
	{"rc-far", "rc-net", "rc-net", "rc-far", "a network of yours"},
	{"rc-far2", "rc-net", "rc-net", "rc-far2", ""},
	{"rc-in1", "rc-in", "rc-in", "rc-in1", "one with `--internal`"},
	{"rc-in2", "rc-in", "rc-in", "rc-in2", ""},
	{"rc-p1", "rc-priv", "rc-p1", "rc-p1", "one with `-o icc=false`"},
	{"rc-p2", "rc-priv", "rc-p2", "rc-p2", ""},
	{"rc-iso1", "rc-iso", "rc-iso", "rc-iso1", "one with `-o isolate=true`"},
	{"rc-iso2", "rc-iso", "rc-iso", "rc-iso2", ""},
	{"rc-six1", "rc-six", "rc-six", "rc-six1", "one with `--ipv4=false`"},
	{"rc-six2", "rc-six", "rc-six", "rc-six2", ""},
	{"rc-none", "none", "", "", "`none`"},
	{"rc-host", "host", "host", "", "`host`"},
}

// reachTarget is something to be reached, and the groups that do.
type reachTarget struct {
	addr, port string
	by         []string
}

// outside are the groups that reach the host, and what is published there, by name or
// an address of a family.
func outside(family string) []string {
	groups := []string{"bridge", "rc-net", "rc-p1", "rc-p2"}
	switch family {
	case "name":
		return append(groups, "rc-six")
	case "6":
		return append(groups, "rc-six", "host")
	}
	return append(groups, "host")
}

// reaches says who reaches what.
func (b reachBox) reaches(to reachTarget) bool {
	if _, err := netip.ParseAddr(to.addr); err != nil && b.name == "rc-path" {
		return false // its resolver is the host's
	}
	return slices.Contains(to.by, b.group)
}

// table is what docs/networking.md has.
func reachTable() string {
	var t strings.Builder
	type column struct {
		title string
		name  string // not of those who share it
		by    []string
	}
	var columns []column
	for _, b := range reachBoxes {
		if b.row != "" && b.group != "" && b.group != "host" && b.name == b.place {
			// Another sandbox there.
			i := slices.IndexFunc(reachBoxes, func(o reachBox) bool { return o.network == b.network && o.name != b.name && o.row == "" })
			columns = append(columns, column{b.row, reachBoxes[i].name, []string{reachBoxes[i].group}})
		}
	}
	columns = append(columns, column{"the host", "host.sbx.internal", outside("name")}, column{"published ports", "host.sbx.internal", outside("name")})
	t.WriteString("| from, to another one on |")
	for _, c := range columns {
		t.WriteString(" " + c.title + " |")
	}
	t.WriteString("\n|" + strings.Repeat("---|", len(columns)+1) + "\n")
	for _, b := range reachBoxes {
		if b.row == "" {
			continue
		}
		t.WriteString("| " + b.row + " |")
		for _, c := range columns {
			cell, by := "", c.by
			if c.name == "host.sbx.internal" {
				by = outside("6") // by the host's own addresses
			}
			if b.reaches(reachTarget{"192.0.2.1", "", by}) {
				cell = "address"
			}
			if b.reaches(reachTarget{c.name, "", c.by}) {
				cell = "name, address"
			}
			t.WriteString(" " + cell + " |")
		}
		t.WriteString("\n")
	}
	return t.String()
}

// TestReachDocs compares the table of the documentation with the one that is tested.
func TestReachDocs(t *testing.T) {
	b, err := os.ReadFile("../docs/networking.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := reachTable(); !strings.Contains(string(b), want) {
		t.Errorf("docs/networking.md lacks:\n%s", want)
	}
}

// TestReach is the table of who reaches whom in every mode: by name and by address, by
// TCP and UDP, IPv4 and IPv6, and what the host and others publish on its addresses.
func TestReach(t *testing.T) {
	e := harness.New(t, harness.BB)
	makeNetwork(t, e, "rc-net")
	makeNetwork(t, e, "rc-in", "--internal")
	makeNetwork(t, e, "rc-priv", "-o", "icc=false")
	makeNetwork(t, e, "rc-iso", "-o", "isolate=true")
	makeNetwork(t, e, "rc-six", "--ipv6", "--ipv4=false")
	hostPort, published := e.FreePort(), e.FreePort()
	// In each network namespace somebody listens on 7, and who shares it on 8.
	boxes := slices.Clone(reachBoxes)
	port := func(b reachBox) string {
		switch {
		case b.network == "host":
			return fmt.Sprint(hostPort)
		case b.place != "" && b.place != b.name:
			return "8"
		}
		return "7"
	}
	start := func(i int) {
		b := boxes[i]
		e.AtEnd("rm", "-f", b.name)
		args := []string{"run", "-d", "--name", b.name, "--network", b.network}
		if b.name == "rc-one" {
			args = append(args, "-p", fmt.Sprintf("%d:7", published), "-p", fmt.Sprintf("%d:7/udp", published))
		}
		if r := e.Run(append(args, harness.BB, "/probe", "who", port(b))...); r.Code != 0 {
			t.Errorf("%v", r)
		}
	}
	inspect := func(name, what string) string {
		return strings.TrimSpace(e.Must("inspect", "-f", "{{"+what+"}}", name))
	}
	start(0)
	start(1)
	boxes[3].network = "ns:/proc/" + inspect("rc-two", ".State.Pid") + "/ns/net"
	var some errgroup.Group
	some.SetLimit(3) // more at once are TestManyAtOnce's
	for i := range boxes[2:] {
		some.Go(func() error { start(i + 2); return nil })
	}
	some.Wait() // they fail the test
	if t.Failed() {
		return
	}

	var targets []reachTarget
	for _, b := range boxes {
		if b.place == "" {
			continue
		}
		network := map[bool]string{true: b.group, false: "rc-priv"}[!strings.HasPrefix(b.group, "rc-p")]
		p := endpoint(t, e, b.place, network)
		for _, a := range []string{b.place, p.IPAddress, p.GlobalIPv6Address} {
			if (a == "") != (network == "rc-six" && a == p.IPAddress) {
				t.Errorf("%s has the addresses %q and %q", b.place, p.IPAddress, p.GlobalIPv6Address)
			}
			if a != "" {
				targets = append(targets, reachTarget{a, port(b), []string{b.group}})
			}
		}
	}
	for _, port := range []int{hostPort, published} {
		targets = append(targets, reachTarget{"host.sbx.internal", fmt.Sprint(port), outside("name")})
		for _, family := range []string{"4", "6"} {
			if a, ok := harness.HostAddr(t, family); ok {
				targets = append(targets, reachTarget{a, fmt.Sprint(port), outside(family)})
			}
		}
	}

	attempts := []string{"/probe", "ask-all"}
	for _, to := range targets {
		for _, network := range []string{"tcp", "udp"} {
			attempts = append(attempts, network+","+net.JoinHostPort(to.addr, to.port))
		}
	}
	for _, b := range boxes { // they listen
		until(t, e, ":", "exec", b.name, "/probe", "ask", "tcp", "127.0.0.1:"+port(b))
	}
	var wg sync.WaitGroup
	for _, b := range boxes {
		wg.Go(func() {
			reached := map[string]bool{}
			// On a slow machine an answer may come too late for an attempt.
			harness.Eventually(t, time.Minute, func() error {
				for _, i := range strings.Fields(e.Must(append([]string{"exec", b.name}, attempts...)...)) {
					reached[i] = true
				}
				var wrong []error
				for i, to := range targets {
					for j, network := range []string{"tcp", "udp"} {
						if want, got := b.reaches(to), reached[fmt.Sprint(2*i+j)]; got && !want {
							t.Errorf("%s reaches %s port %s by %s", b.name, to.addr, to.port, network)
						} else if want && !got {
							wrong = append(wrong, fmt.Errorf("%s does not reach %s port %s by %s", b.name, to.addr, to.port, network))
						}
					}
				}
				return errors.Join(wrong...)
			})
		})
	}
	wg.Wait()
}
