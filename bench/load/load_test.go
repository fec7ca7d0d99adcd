package load

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// testAgent is an agent that is spoken to as the bench does.
type testAgent struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
}

func newTestAgent(t *testing.T) *testAgent {
	t.Helper()
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- Run(inR, outW) }()
	t.Cleanup(func() {
		inW.Close()
		if err := <-done; err != nil {
			t.Errorf("the agent ended with %v", err)
		}
	})
	return &testAgent{t, inW, bufio.NewReader(outR)}
}

func (a *testAgent) line(line string) Reply {
	a.t.Helper()
	if _, err := io.WriteString(a.in, line+"\n"); err != nil {
		a.t.Fatal(err)
	}
	answer, err := a.out.ReadBytes('\n')
	if err != nil {
		a.t.Fatal(err)
	}
	var rep Reply
	if err := json.Unmarshal(answer, &rep); err != nil {
		a.t.Fatalf("%v: %s", err, answer)
	}
	return rep
}

// call fails the test unless the answer is a good one.
func (a *testAgent) call(r Request) Reply {
	a.t.Helper()
	data, err := json.Marshal(r)
	if err != nil {
		a.t.Fatal(err)
	}
	rep := a.line(string(data))
	if rep.Err != "" {
		a.t.Fatalf("%s: %s", r.Op, rep.Err)
	}
	return rep
}

// freeAddr is an address with a port that nobody uses, for TCP and UDP.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		p, err := net.ListenPacket("udp", addr)
		l.Close()
		if err == nil {
			p.Close()
			return addr
		}
	}
	t.Fatal("no port is free for TCP and UDP")
	return ""
}

const testWindow = 100 * time.Millisecond

func TestOperations(t *testing.T) {
	a, addr := newTestAgent(t), freeAddr(t)
	a.call(Request{Op: "serve", Addr: addr})
	for _, down := range []bool{false, true} {
		rep := a.call(Request{Op: "bulk", Addr: addr, Streams: 2, Down: down, Warm: testWindow / 4, For: testWindow})
		if rep.Bytes <= 0 || rep.Total < rep.Bytes || rep.Stuck != "" {
			t.Errorf("bulk, down %v: %+v", down, rep)
		}
		if want := float64(rep.Bytes) * 8 / testWindow.Seconds(); rep.Rate < want*0.999 || rep.Rate > want*1.001 {
			t.Errorf("bulk, down %v: rate %v of %d bytes in %v", down, rep.Rate, rep.Bytes, testWindow)
		}
		rep = a.call(Request{Op: "udp", Addr: addr, Down: down, Size: 1400, Rate: 2000, For: testWindow})
		if rep.Got <= 0 || rep.Got > rep.Sent || rep.Bytes != rep.Got*1400 {
			t.Errorf("udp, down %v: %+v", down, rep)
		}
	}
	rep := a.call(Request{Op: "pingpong", Addr: addr, For: testWindow})
	if rep.Got <= 0 || rep.P50 <= 0 || rep.P99 < rep.P50 {
		t.Errorf("pingpong: %+v", rep)
	}
	rep = a.call(Request{Op: "connect", Addr: addr, Streams: 4, For: testWindow})
	if rep.Got <= 0 || rep.Failed != 0 {
		t.Errorf("connect: %+v", rep)
	}
}

func TestFlows(t *testing.T) {
	a, addr := newTestAgent(t), freeAddr(t)
	a.call(Request{Op: "serve", Addr: addr})
	for _, busy := range []bool{false, true} {
		if rep := a.call(Request{Op: "flows", Addr: addr, Count: 20, Busy: busy, Size: 100, For: time.Minute}); rep.Got != 20 {
			t.Errorf("busy %v: %d flows are open, want 20", busy, rep.Got)
		}
		if rep := a.call(Request{Op: "noflows"}); rep.Got != 20 {
			t.Errorf("busy %v: %d flows were closed, want 20", busy, rep.Got)
		}
	}
	// The time to open them in is over.
	if rep := a.call(Request{Op: "flows", Addr: addr, Count: 20}); rep.Got != 0 {
		t.Errorf("%d flows opened in no time", rep.Got)
	}
}

func TestDNS(t *testing.T) {
	a, addr := newTestAgent(t), freeAddr(t)
	a.call(Request{Op: "servedns", Addr: addr})
	if rep := a.call(Request{Op: "dns", Addr: addr, Streams: 2, For: testWindow}); rep.Got <= 0 {
		t.Errorf("dns: %+v", rep)
	}
}

// What cannot be done is an answer, and the agent goes on.
func TestErrors(t *testing.T) {
	a, nobody := newTestAgent(t), freeAddr(t)
	for line, want := range map[string]string{
		`{"Op":"fly"}`: "no operation",
		`nonsense`:     "invalid character",
		`{"Op":"bulk","Streams":1,"Addr":"` + nobody + `"}`:                          "refused",
		`{"Op":"connect","Streams":1,"For":10000000,"Addr":"` + nobody + `"}`:        "refused",
		`{"Op":"flows","Count":3,"For":1000000000,"Addr":"` + nobody + `"}`:          "after 0 flows",
		`{"Op":"exec","Args":["/nonexistent"]}`:                                      "/nonexistent",
		`{"Op":"exec","Args":["/bin/sh","-c","echo it is wrong >&2; exit 3"],"X":1}`: "it is wrong",
	} {
		if rep := a.line(line); !strings.Contains(rep.Err, want) {
			t.Errorf("%s: error %q, want %q", line, rep.Err, want)
		}
	}
	a.call(Request{Op: "ping"})
}

func TestHeader(t *testing.T) {
	h := header{kind: kindDown, session: 0xfedcba98, from: time.Unix(1, 23), window: time.Minute}
	b := h.bytes()
	if len(b) != headerLen {
		t.Fatalf("%d bytes, want %d", len(b), headerLen)
	}
	if got := parseHeader(b); got != h {
		t.Errorf("%+v, want %+v", got, h)
	}
}

func TestLatencies(t *testing.T) {
	var took []time.Duration
	for i := range 100 {
		took = append(took, time.Duration(100-i))
	}
	rep := latencies(took, 2*time.Second)
	if rep.P50 != 51 || rep.P99 != 100 || rep.Got != 100 || rep.Rate != 50 {
		t.Errorf("%+v", rep)
	}
	if rep := latencies(nil, time.Second); rep.Got != 0 || rep.Rate != 0 {
		t.Errorf("of nothing: %+v", rep)
	}
}
