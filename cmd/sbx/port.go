package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox"
)

func portCommand(g *globals) *command {
	c := &command{
		Use: "port SANDBOX [PORT[/PROTO]]", Short: "List published ports, or publish more of them and take them back", Args: wantArgs(1, 2),
		Long: `Lists the published ports of a sandbox, or the host's addresses of one, as
docker port does. What add and rm change holds at once if the sandbox runs, and
for its next start.`,
		Example: `  sbx port web
  sbx port web 80
  sbx port add web 8080:80 127.0.0.1:8053:53/udp
  sbx port rm web 8080:80`,
		Complete: completeBoxes(1, runningBox),
		RunE:     withBox(g, listPorts),
	}
	c.add(
		&command{
			Use: "ls SANDBOX [PORT[/PROTO]]", Short: "List published ports, or the host's addresses of one", Args: wantArgs(1, 2),
			Complete: completeBoxes(1, runningBox), RunE: withBox(g, listPorts), Aliases: []string{"list"},
		},
		&command{
			Use: "add SANDBOX SPEC [SPEC...]", Short: "Publish ports of a sandbox", Args: wantArgs(2, -1),
			Long: `SPEC is that of sbx run --publish. Either all of them are published, or none.
What was published before, and the connections there, go on.`,
			Complete: completeBoxes(1, nil),
			RunE: withBox(g, func(ctx context.Context, c *command, s *sandbox.Sandbox, args []string) error {
				specs, err := portfwd.ParsePublish(args)
				if err != nil {
					return &usage{msg: err.Error()}
				}
				ports, err := s.PublishPorts(ctx, specs)
				if err != nil {
					return err
				}
				var lines []string
				for _, p := range ports {
					lines = append(lines, bindingLines(sandbox.Bindings(portfwd.Spec{Spec: p.Spec}), "")...)
				}
				return printLines(c.Out(), lines...)
			}),
		},
		&command{
			Use: "rm SANDBOX SPEC [SPEC...]", Short: "Take published ports of a sandbox back", Args: wantArgs(2, -1), Aliases: []string{"remove"},
			Long: `SPEC is a port of the sandbox, as 80 or 53/udp, which takes back all that it is
published as, or the whole of what it was published as, as 127.0.0.1:8080:80.
Connections there are reset; others go on.`,
			Complete: completeBoxes(1, nil),
			RunE: withBox(g, func(ctx context.Context, c *command, s *sandbox.Sandbox, args []string) error {
				specs, err := portfwd.ParsePublish(args)
				if err != nil {
					return &usage{msg: err.Error()}
				}
				return s.UnpublishPorts(ctx, specs)
			}),
		},
	)
	return c
}

func listPorts(ctx context.Context, c *command, s *sandbox.Sandbox, args []string) error {
	in, err := s.Inspect(ctx)
	if err != nil {
		return err
	}
	want := ""
	if len(args) == 1 {
		if want = args[0]; !strings.Contains(want, "/") {
			want += "/tcp"
		}
	}
	lines := bindingLines(in.NetworkSettings.Ports, want)
	if want != "" && len(lines) == 0 {
		return fmt.Errorf("no public port '%s' published for %s", want, s.Name())
	}
	slices.Sort(lines)
	return printLines(c.Out(), lines...)
}

// bindingLines are the host's addresses of one port, or of all with the port's name.
func bindingLines(ports map[string][]sandbox.PortBinding, want string) (lines []string) {
	for port, hosts := range ports {
		for _, h := range hosts {
			addr := net.JoinHostPort(h.HostIP, h.HostPort)
			if want == port {
				lines = append(lines, addr)
			} else if want == "" {
				lines = append(lines, port+" -> "+addr)
			}
		}
	}
	return lines
}
