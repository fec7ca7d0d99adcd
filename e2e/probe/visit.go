package probe

import (
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// visit asks servers of who by their names, in any order, and checks that each time
// the right one has answered, and that it saw an address of ours.
func visit(args []string) error {
	times, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	var own []string
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			own = append(own, n.IP.String())
		}
	}
	names := args[1:]
	for range times {
		name := names[rand.IntN(len(names))]
		network := []string{"tcp4", "tcp6", "udp4", "udp6"}[rand.IntN(4)]
		answer, err := Ask(network, net.JoinHostPort(name, "7"))
		if err != nil {
			return fmt.Errorf("%s by %s: %w", name, network, err)
		}
		client, server, _ := strings.Cut(answer, " ")
		host, _, err := net.SplitHostPort(client)
		if err != nil || server != name || !slices.Contains(own, host) {
			return fmt.Errorf("%s by %s: wrong delivery: %q has answered and has seen %q", name, network, server, client)
		}
	}
	fmt.Println("visited", times)
	return nil
}

// askAll asks servers of who, all at the same time, and prints which have answered. Its
// arguments are NETWORK,ADDR.
func askAll(args []string) error {
	var wg sync.WaitGroup
	for i, a := range args {
		network, addr, ok := strings.Cut(a, ",")
		if !ok {
			return fmt.Errorf("%q is not NETWORK,ADDR", a)
		}
		wg.Go(func() {
			if _, err := askOnce(network, addr); err == nil {
				fmt.Println(i)
			}
		})
	}
	wg.Wait()
	return nil
}
