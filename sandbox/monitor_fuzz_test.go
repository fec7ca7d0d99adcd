package sandbox_test

import (
	"context"
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxsock"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

// FuzzMonitor sends requests of any kind to the monitor of a sandbox that runs. It must
// answer each one, serve others, and keep the sandbox.
func FuzzMonitor(f *testing.F) {
	for typ, body := range map[string]string{
		proto.MsgStats: `{}`, proto.MsgPause: ``, proto.MsgUnpause: ``, proto.MsgDetach: ``, proto.MsgRenamed: ``,
		proto.MsgSignal: `{"number":-1}`, proto.MsgUpdate: `{"limits":{"memory":-1},"restart":{"policy":"x"}}`,
		proto.MsgConnect: `{"network":"default","ip":"::"}`, proto.MsgDisconnect: `{"name":"../x"}`, proto.MsgNetNS: ``,
		proto.MsgPorts: `{"add":[{"proto":"tcp","parentPort":-1}]}`, proto.MsgExec: `{"args":["true"],"user":"-1","cwd":"x","tty":true,"rows":65535}`,
		proto.MsgFiles: ``, proto.MsgHold: ``, proto.MsgAttach: `{"stdin":true}`, proto.MsgStart: `{"id":"x"}`, "nonsense": `[[`,
	} {
		f.Add(typ, []byte(body), len(body)%2 == 0)
	}
	w := bareWorld(f) // the fuzzer itself has more descriptors at its end
	s := w.create(w.config("sleep", "1000"))
	if err := s.Start(f.Context()); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := s.Remove(context.Background()); err != nil {
			f.Error(err)
		}
	})
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { null.Close() })
	path := proto.BoxSocket(w.opts.RuntimeDir, s.ID())
	f.Fuzz(func(t *testing.T, typ string, body []byte, files bool) {
		switch typ {
		case proto.MsgStop, proto.MsgWait, proto.MsgSignal: // do what they say, or wait for the end
			if typ != proto.MsgSignal || string(body) != `{"number":-1}` {
				return
			}
		}
		if len(body) > 0 && !json.Valid(body) {
			return // FuzzParse of package wire is about those
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		dial := func() *wire.Conn {
			c, err := boxsock.Dial(ctx, path)
			if err != nil {
				t.Fatalf("the monitor does not answer: %v", err)
			}
			go c.Serve(func(*wire.Message) {})
			return c
		}
		c := dial()
		defer c.Close()
		var with []wire.File
		if files {
			for _, name := range []string{"stdin", "stdout", "stderr", "out", "in"} {
				with = append(with, wire.File{Name: name, File: null})
			}
		}
		var raw any
		if len(body) > 0 {
			raw = json.RawMessage(body)
		}
		m, err := c.Call(ctx, typ, raw, nil, with...)
		if err == nil {
			m.CloseFiles()
		} else if ctx.Err() != nil {
			t.Fatalf("no answer: %v", err)
		}
		c.Close()
		other := dial()
		defer other.Close()
		if m, err := other.Call(ctx, proto.MsgUnpause, nil, nil); err == nil { // an error: it is not paused
			m.CloseFiles()
		} else if ctx.Err() != nil {
			t.Fatalf("another connection: %v", err)
		}
		st, err := s.Inspect(ctx)
		if err != nil || !st.State.Running {
			t.Fatalf("the sandbox is gone: %v", err)
		}
	})
}
