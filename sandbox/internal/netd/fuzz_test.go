package netd

import (
	"context"
	"encoding/json"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"
)

// FuzzControl sends requests of any kind to a process with another client. It must
// answer each one, and serve the other client on.
func FuzzControl(f *testing.F) {
	for typ, body := range map[string]string{
		msgHello: `{"name":"default"}`, msgStats: `{}`, msgPorts: ``, msgRmPort: `{"id":-1}`, "nonsense": `[[[`,
		msgLease:   `{"id":"x","name":"y","addr4":"10.0.0.1","mac":"AAAA"}`,
		msgAttach:  `{"driver":"tap","hdrlen":12,"publish":[{"proto":"tcp","parentPort":1,"childPort":70000}]}`,
		msgAddPort: `{"proto":"udp","parentIP":"::1","parentPort":-1,"childPort":0}`,
	} {
		f.Add(typ, []byte(body), true)
	}
	f.Add(msgLease, []byte(`{"id":7}`), false)
	// The fuzzer's goroutine for signals is none of the network's leaks.
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGWINCH)
	signal.Stop(c)
	n := newNetwork(f)
	other := n.ensure()
	f.Fuzz(func(t *testing.T, typ string, body []byte, hello bool) {
		if !json.Valid(body) {
			return // FuzzParse of package wire is about those
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		here := *n
		here.t = t
		c := here.raw()
		if hello {
			if err := c.call(ctx, msgHello, Hello{Name: "default"}, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.call(ctx, typ, json.RawMessage(body), nil); err != nil && ctx.Err() != nil {
			t.Fatalf("no answer: %v", err)
		}
		if _, err := other.Stats(ctx); err != nil {
			t.Fatalf("another client: %v", err)
		}
	})
}
