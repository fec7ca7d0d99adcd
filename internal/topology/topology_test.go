package topology

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

func example() *Graph {
	web := Box{Name: "web", Notes: []string{"10.1.0.2", "8080->80/tcp"}, Sharing: []Box{{Name: "side"}}}
	return &Graph{
		Networks: []Network{
			{Name: "bridge", Notes: []string{"10.1.0.0/24"}, Boxes: []Box{web, {Name: "db"}}},
			{Name: "store", Notes: []string{"internal"}, Closed: true, Boxes: []Box{{Name: "db", Notes: []string{`"<&>\`}}}},
			{Name: "empty"},
		},
		Host: []Box{{Name: "agent"}},
		None: []Box{{Name: "job"}},
	}
}

func TestText(t *testing.T) {
	const want = `host
├── bridge  10.1.0.0/24
│   ├── web  10.1.0.2  8080->80/tcp
│   │   └── side
│   └── db
├── store  internal
│   └── db  "<&>\
├── empty
│   └── (nobody)
├── (the host's own network)
│   └── agent
└── (no network)
    └── job
`
	var b strings.Builder
	if err := example().Text(&b); err != nil || b.String() != want {
		t.Errorf("%v\n%s", err, b.String())
	}
	b.Reset()
	if err := new(Graph).Text(&b); err != nil || b.String() != "host\n" {
		t.Errorf("%v\n%s", err, b.String())
	}
}

func TestDot(t *testing.T) {
	var b strings.Builder
	if err := example().Dot(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"network bridge" [shape=ellipse label="bridge\n10.1.0.0/24"]`,
		`"host" -- "network bridge"`,
		`"network bridge" -- "sandbox web" [label="10.1.0.2\n8080->80/tcp"]`,
		`"network store" -- "sandbox db" [label="\"<&>\\"]`,
		`"sandbox web" -- "sandbox side" [label="" style=dotted]`,
		`"host" -- "sandbox agent"`,
		`"sandbox job" [label="job"]`,
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("lacks %s:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), `"host" -- "network store"`) || strings.Count(b.String(), `"sandbox db" [`) != 1+strings.Count(b.String(), `-- "sandbox db" [`) {
		t.Error(b.String())
	}
}

// The picture is well-formed, has every name, and nothing lies outside of it.
func TestSVG(t *testing.T) {
	for _, g := range []*Graph{example(), {}} {
		var b strings.Builder
		if err := g.SVG(&b); err != nil {
			t.Fatal(err)
		}
		var text []string
		for d := xml.NewDecoder(strings.NewReader(b.String())); ; {
			tok, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, b.String())
			}
			if c, ok := tok.(xml.CharData); ok {
				text = append(text, strings.TrimSpace(string(c)))
			}
		}
		all := strings.Join(text, " ")
		for _, n := range g.Networks {
			for _, box := range n.Boxes {
				if !strings.Contains(all, box.Name) {
					t.Errorf("%s is missing", box.Name)
				}
			}
		}
		if strings.Contains(b.String(), `y="-`) || strings.Contains(b.String(), `x="-`) {
			t.Errorf("outside:\n%s", b.String())
		}
	}
}
