// Package probe is what the end-to-end tests run inside sandboxes, and as servers
// in the world outside: an HTTP server of reproducible bytes, echo servers, dialers
// that report the errno they got, and reports on the process itself. It is compiled
// into the test binaries, which are copied into the images as /probe.
package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

type command struct {
	usage string
	args  int // at least so many
	run   func(args []string) error
}

// Commands are grouped by file: serve.go, who.go, visit.go, dns.go, segment.go, client.go, process.go, try.go, try_spoil.go, obey.go.
func commands() map[string]command {
	return map[string]command{
		"serve":   {"serve PORT...: HTTP on each port; see serve.go", 1, serve},
		"echo":    {"echo [ADDR:]PORT...: TCP and UDP echo", 1, echo},
		"who":     {"who PORT...: tell each client its address, TCP and UDP", 1, who},
		"visit":   {"visit N NAME...: ask servers of who, N times, and check who answers", 2, visit},
		"ask-all": {"ask-all NETWORK,ADDR...: ask all of them at once, print the numbers of those that answer", 1, askAll},
		"turns":   {"turns N ADDR=NAME...: ask them through one UDP socket", 2, turns},
		"ask":     {"ask NETWORK ADDR: print what a server of who answers", 2, ask},
		"dns":     {"dns ADDR NAME=IP...: a name server", 2, dnsServer},
		"segment": {"segment PREFIX ADDR: a LAN behind a TAP; see segment.go", 2, segment},
		"lookup":  {"lookup NAME: print its addresses", 1, lookup},
		"ask-on":  {"ask-on ZONE: new names of it, until killed; print when one is refused", 1, askOn},
		"get":     {"get URL: print the body", 1, get},
		"down":    {"down URL N SEED: fetch N bytes, compare", 3, down},
		"up":      {"up URL N SEED: send N bytes, compare sums", 3, up},
		"dial":    {"dial NETWORK ADDR: connect and print ok or the errno", 2, dial},
		"talk":    {"talk ADDR [NETWORK]: one connection to an echo server; print how often it has answered", 1, talk},
		"pace":    {"pace ADDR MS: round trips and bytes of an echo server in so long; see pace.go", 2, pace},
		"storm":   {"storm KIND,... TARGET: frames at full speed; see storm.go", 2, storm},
		"many":    {"many ADDR N PARALLEL: short connections to an echo server", 3, many},
		"cast":    {"cast ADDR N: N datagrams to an address, which may be everybody's", 2, cast},
		"udp":     {"udp ADDR SIZE...: datagrams to an echo server", 2, udp},
		"offload": {"offload all|no-segments|none: what devices do for the kernel", 1, offload},
		"exit":    {"exit STATUS", 1, exit},
		"signal":  {"signal: print each signal; TERM ends with 42", 0, signals},
		"status":  {"status KEY...: lines of /proc/self/status", 1, status},
		"fds":     {"fds: the open descriptors", 0, fds},
		"ids":     {"ids: real and effective ids and groups", 0, ids},
		"calls":   {"calls NAME...: attempts without arguments; print the errno of each", 1, calls},
		"try":     {"try NAME [ARG...]: an attempt to get out or to do harm; see try.go", 1, try},
		"spoil":   {"spoil DIR [NAME...]: what can be done in a directory; see try_spoil.go", 1, spoil},
		"obey":    {"obey SOCKET UID: run what this user orders; see obey.go", 2, obey},
		"listen":  {"listen: print the marks of frames that arrive; see try_packet.go", 0, listen},
		"rlimit":  {"rlimit: the open-files limit", 0, rlimit},
		"stdin":   {"stdin: count and sum what comes in", 0, stdin},
		"reread":  {"reread FILE: from its disk, again and again", 1, reread},
		"flood":   {"flood N: N bytes to stdout, N to stderr", 1, flood},
	}
}

// ErrUsage is returned for a command line that is not one of ours.
var ErrUsage = errors.New("probe: no such command")

// IsProbe tells whether this process was started as /probe in an image.
func IsProbe() bool {
	return slices.Contains([]string{"probe", "suid-probe"}, filepath.Base(os.Args[0]))
}

// Main runs the command line and returns the exit status.
func Main() int {
	if err := Run(os.Args[1:]); err != nil {
		var code exitCode
		if errors.As(err, &code) {
			return int(code)
		}
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Run runs one command.
func Run(args []string) error {
	if len(args) == 0 {
		return ErrUsage
	}
	cmd, ok := commands()[args[0]]
	if !ok || len(args)-1 < cmd.args {
		return fmt.Errorf("%w: %q: %s", ErrUsage, args, cmd.usage)
	}
	return cmd.run(args[1:])
}

// exitCode is the error that means nothing but a status.
type exitCode int

func (c exitCode) Error() string { return "status " + strconv.Itoa(int(c)) }

func exit(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	return exitCode(n)
}
