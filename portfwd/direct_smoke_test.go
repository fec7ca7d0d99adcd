package portfwd

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"testing"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
)

const holdEnv = "PORTFWD_TEST_HOLD"

func holdPort(string) int { return 0 }

func TestSmoke(t *testing.T) {
	g := newGuest(t)
	l := g.listen(t, "tcp", ":80")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	m, err := New(Config{Driver: "direct", Guest: g})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	st, err := m.AddPort(context.Background(), port.Spec{Proto: "tcp", ChildPort: 80})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []string{"127.0.0.1", "::1", hostLan4.String(), hostLan6.String()} {
		c := lanOrHost(h).dial(t, "tcp", net.JoinHostPort(h, fmt.Sprint(st.Spec.ParentPort)))
		fmt.Fprint(c, "hello")
		c.(*net.TCPConn).CloseWrite()
		b, err := io.ReadAll(c)
		if err != nil || string(b) != "hello" {
			t.Fatalf("%s: %q %v", h, b, err)
		}
	}
	t.Log(m.Stats(), os.Getuid())
}

func lanOrHost(h string) *netns {
	if h == "127.0.0.1" || h == "::1" {
		return nil
	}
	return lan
}
