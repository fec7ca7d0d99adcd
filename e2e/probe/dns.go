package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// askOn asks its name server for one new name of a zone after another, by TCP, where what is
// refused is told. At the first refusal it prints how many had been answered, in how long.
func askOn(args []string) error {
	conf, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", net.JoinHostPort(conf.Servers[0], conf.Port))
	if err != nil {
		return err
	}
	conn := &dns.Conn{Conn: c}
	start, told := time.Now(), false
	for n := 0; ; n++ {
		if err := conn.WriteMsg(new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.%s.", n, args[0]), dns.TypeA)); err != nil {
			return err
		}
		m, err := conn.ReadMsg()
		if err != nil {
			return err
		}
		if m.Rcode == dns.RcodeServerFailure && !told {
			told = true
			fmt.Println("refused after", n, time.Since(start).Seconds())
		}
	}
}

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
