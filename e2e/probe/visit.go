package probe

import (
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// patience is how long a visitor goes on trying: the network's process may have been
// killed a moment ago, and the machine be busy.
const patience = time.Minute

// Visit asks a server of who until it answers; it must be the one of this name, and must
// have seen one of these addresses if there are any.
func Visit(network, addr, name string, own ...string) error {
	var answer string
	var err error
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if answer, err = askOnce(network, addr); err == nil {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s by %s: %w", addr, network, err)
		}
	}
	client, server, _ := strings.Cut(answer, " ")
	host, _, err := net.SplitHostPort(client)
	if err != nil || server != name || len(own) > 0 && !slices.Contains(own, host) {
		return fmt.Errorf("%s by %s: wrong delivery: %q has answered and has seen %q", addr, network, server, client)
	}
	return nil
}

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
		if err := Visit(network, net.JoinHostPort(name, "7"), name, own...); err != nil {
			return err
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

// turns asks servers of who, ADDR=NAME, by turns and N times each, through one
// unconnected UDP socket. Each answer must come from the address that was asked.
func turns(args []string) error {
	times, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	u, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return err
	}
	defer u.Close()
	for range times {
		for _, a := range args[1:] {
			addr, name, _ := strings.Cut(a, "=")
			if err := askFrom(u, addr, name); err != nil {
				return fmt.Errorf("%s: %w", a, err)
			}
		}
	}
	return nil
}

func askFrom(u *net.UDPConn, addr, name string) error {
	to, err := net.ResolveUDPAddr("udp4", addr)
	if err != nil {
		return err
	}
	buf := make([]byte, 256)
	for end := time.Now().Add(patience); ; { // a datagram may be lost
		if _, err := u.WriteTo([]byte("?"), to); err != nil {
			return err
		}
		if err := u.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		n, from, err := u.ReadFromUDP(buf)
		if err != nil && time.Now().Before(end) {
			continue
		}
		if err != nil {
			return err
		}
		if _, server, _ := strings.Cut(string(buf[:n]), " "); server != name || from.String() != to.String() {
			return fmt.Errorf("wrong delivery: %q answers from %s", server, from)
		}
		return nil
	}
}
