package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// dnsServer answers for the names that it is told, with NXDOMAIN for all others.
func dnsServer(args []string) error {
	names := map[string]netip.Addr{}
	for _, a := range args[1:] {
		name, ip, _ := strings.Cut(a, "=")
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			return err
		}
		names[dns.CanonicalName(name)] = addr
	}
	u, err := net.ListenPacket("udp", args[0])
	if err != nil {
		return err
	}
	ready()
	return answerNames(u, names)
}

// lookup prints the addresses of a name, or what the resolver says.
func lookup(args []string) error {
	addrs, err := net.LookupHost(args[0])
	var de *net.DNSError
	if errors.As(err, &de) {
		fmt.Println("error", de.Err)
		return nil
	}
	if err == nil {
		fmt.Println(strings.Join(addrs, " "))
	}
	return err
}
