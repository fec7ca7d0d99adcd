package netstack

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestDNSRealServer asks dnsmasq (Debian package dnsmasq-base).
func TestDNSRealServer(t *testing.T) {
	bin, err := exec.LookPath("dnsmasq")
	if err != nil {
		if bin, err = exec.LookPath("/usr/sbin/dnsmasq"); err != nil {
			t.Skip("dnsmasq is not installed (package dnsmasq-base)")
		}
	}
	server := startDNSMasq(t, bin)
	r := newResolver(t, ResolverConfig{Timeout: 2 * time.Second}, netip.AddrPortFrom(server.Addr(), server.Port()))
	for _, tt := range []struct {
		name  string
		typ   uint16
		rcode int
		want  string
	}{
		{"a.example.", dns.TypeA, 0, "192.0.2.1"},
		{"a.example.", dns.TypeAAAA, 0, "2001:db8::1"},
		{"alias.example.", dns.TypeA, 0, "a.example. 192.0.2.1"},
		{"txt.example.", dns.TypeTXT, 0, `"hello"`},
		{"_http._tcp.example.", dns.TypeSRV, 0, "a.example."},
		{"example.", dns.TypeMX, 0, "a.example."},
		{"1.2.0.192.in-addr.arpa.", dns.TypePTR, 0, "a.example."},
		{"none.example.", dns.TypeA, dns.RcodeNameError, ""},
		{"txt.example.", dns.TypeA, 0, ""},
		{"elsewhere.test.", dns.TypeA, dns.RcodeRefused, ""},
	} {
		for _, tcp := range []bool{false, true} {
			a := dnsExchange(t, r, dnsQuery(tt.name, tt.typ), tcp)
			var got []string
			for _, rr := range a.Answer {
				f := strings.Fields(rr.String())
				got = append(got, f[len(f)-1])
				if ttl := rr.Header().Ttl; ttl > 77 || ttl < 70 && ttl != 0 {
					t.Errorf("TTL %d", ttl)
				}
			}
			if a.Rcode != tt.rcode || strings.Join(got, " ") != tt.want {
				t.Errorf("%s %s: %v", tt.name, dns.TypeToString[tt.typ], a)
			}
		}
	}
	if a := dnsExchange(t, r, dnsQuery("big.example.", dns.TypeTXT), false); !a.Truncated {
		t.Errorf("10 KB in a datagram of 512: %d records", len(a.Answer))
	}
	if a := dnsExchange(t, r, dnsQuery("big.example.", dns.TypeTXT), true); a.Truncated || len(a.Answer) != 100 {
		t.Errorf("by TCP: %d records, TC %v", len(a.Answer), a.Truncated)
	}
}

// startDNSMasq runs a server on a port that is free for both UDP and TCP. Another
// test may take it first: then the server ends, and the next port is tried.
func startDNSMasq(t *testing.T, bin string) netip.AddrPort {
	t.Helper()
	var log strings.Builder
	for range 5 {
		pc, ln := listenBoth(t)
		server := ln.Addr().(*net.TCPAddr).AddrPort()
		pc.Close()
		ln.Close()
		args := []string{"--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=", "--group=", "--pid-file=",
			"--listen-address=127.0.0.1", "--bind-interfaces", fmt.Sprint("--port=", server.Port()), "--local=/example/", "--local-ttl=77",
			"--host-record=a.example,192.0.2.1,2001:db8::1", "--cname=alias.example,a.example", "--txt-record=txt.example,hello",
			"--srv-host=_http._tcp.example,a.example,8080,1,2", "--mx-host=example,a.example,10"}
		for i := range 100 {
			args = append(args, fmt.Sprintf("--txt-record=big.example,%03d%s", i, strings.Repeat("x", 100)))
		}
		cmd := exec.Command(bin, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		cmd.Stderr = &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			cmd.Wait() // its log says more than the error
		}()
		t.Cleanup(func() { cmd.Process.Kill(); <-ended })
		for deadline := time.After(10 * time.Second); ; {
			if c, err := net.Dial("tcp", server.String()); err == nil {
				c.Close()
				return server
			}
			select {
			case <-time.After(10 * time.Millisecond):
				continue
			case <-ended:
			case <-deadline:
			}
			break
		}
	}
	t.Fatalf("dnsmasq does not listen: %s", log.String())
	return netip.AddrPort{}
}
